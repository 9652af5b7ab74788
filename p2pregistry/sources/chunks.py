"""Bodies in chunks (RFC 9112, 7.1), decoded as they come: for streams of many small lines, each a chunk."""

from __future__ import annotations

import re

from p2pregistry.errors import Unreachable

#: Size in hex, then what this program has no use for.
_HEAD = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
#: The longest head of a chunk, bytes.
_LONGEST = 256


class Chunks:
    """Feed it what comes; ``done`` once the last chunk has. Trailers are not taken: nobody sends us any."""

    def __init__(self) -> None:
        self.done = False
        self._last = False
        self._left = -1  # bytes of the current chunk, its end of line included; -1: a head comes next
        self._held = b""  # part of a head

    def feed(self, data: bytes) -> list[bytes]:
        """The parts of the body in ``data``. Raises Unreachable for what is no chunk."""
        parts: list[bytes] = []
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left < 0:
                line = data.find(b"\r\n", at, at + _LONGEST)
                if line < 0:
                    if end - at >= _LONGEST:
                        raise Unreachable("the answer is not HTTP: a chunk's size is too long")
                    self._held = data[at:]
                    break
                match = _HEAD.fullmatch(data, at, line)
                if match is None:
                    raise Unreachable("the answer is not HTTP: a chunk without a size")
                self._left = int(match[1], 16) + 2
                self._last = self._left == 2
                at = line + 2
                continue
            body = min(end - at, self._left - 2)
            if body > 0:
                parts.append(data[at : at + body])
                at += body
                self._left -= body
            while at < end and 0 < self._left <= 2:
                if data[at] != b"\r\n"[2 - self._left]:
                    raise Unreachable("the answer is not HTTP: a chunk that does not end")
                at += 1
                self._left -= 1
            if self._left == 0:
                self._left, self.done = -1, self._last
        return parts

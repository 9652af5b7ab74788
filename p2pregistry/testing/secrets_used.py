"""Watches that no secret of the tests' processes gets where it may not be: into a log, or among a process's arguments.

A helper that starts a process says which secrets it hands over (``used``) and, when the process has stopped, has its
folder looked at (``check``): the log for these secrets, for the keys in the folder's files, and for whatever looks like
a secret of ours; the files that hold keys for who may read them.
"""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

#: The shortest text that is looked for: a shorter one could stand in a log by chance.
SHORTEST: Final = 8
#: Secrets that a process makes itself have forms by which they are known.
FORMS: Final = {
    "a token or join token": re.compile(r"p2pr_[a-z]+_[A-Za-z0-9_-]{16,}"),
    "a signed token": re.compile(r"v4\.public\.[A-Za-z0-9_-]{40,}"),
    "a JSON web token": re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}"),
    "a private or wrapped key": re.compile(r"k4\.(?:secret|local|secret-wrap|local-wrap)\.[A-Za-z0-9_.-]{20,}"),
    "a private key": re.compile(r"BEGIN [A-Z ]*PRIVATE KEY"),
    "a session": re.compile(r"Session [0-9A-Za-z]{32,}"),
    "credentials": re.compile(r"(?:Basic|Bearer) [A-Za-z0-9_.=-]{16,}"),
    "a password in a URL": re.compile(r"[a-z]+://[^\s/@:]+:[^\s/@:]+@"),
}

_used: dict[str, str] = {}


def used(text: str, what: str, *, user: str | None = None) -> str:
    """From now on ``text`` may stand in no log; gives it back. ``user``: whose password it is, which is also sent in
    base64 with the name in front."""
    for form in {text, quote(text, safe="")}:
        if len(form) >= SHORTEST:
            _used[form] = what
    if user is not None:
        _used[b64(f"{user}:{text}").rstrip("=")] = f"{what}, as it is sent"
    return text


def b64(text: str) -> str:
    """As the scheme Basic sends it."""
    return base64.b64encode(text.encode()).decode("ascii")


def used_in_url(url: str, what: str) -> None:
    """The password in a URL, if there is one."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        used(password, what)


def found_in(text: str) -> list[str]:
    """What of the secrets stands in ``text``: what they are, never the secrets themselves."""
    known = [what for secret, what in _used.items() if secret in text]
    return sorted({*known, *(what for what, form in FORMS.items() if form.search(text))})


def check(folder: Path, logs: Iterable[Path] = (), arguments: Iterable[str] = ()) -> None:
    """Look at what a process left in ``folder``, at ``folder``/log and these ``logs``. Raises AssertionError."""
    for path in _key_files(folder):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if not line.startswith("-----"):
                used(line.strip(), f"the key in {path.name}")
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o077, f"{path} holds a key and has mode {mode:o}"
    for log in (folder / "log", *logs):
        if log.exists():
            found = found_in(log.read_text("utf-8", errors="replace"))
            assert not found, f"{log} holds {', '.join(found)}"
    found = found_in(" ".join(arguments))
    assert not found, f"a process was started with {', '.join(found)} among its arguments"


def check_arguments(pid: int) -> None:
    """The same for a process and its children, where the system tells what they were started with."""
    for number in (pid, *_children(pid)):
        try:
            said = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", errors="replace")
        except OSError:
            continue  # it has ended, or this is no Linux
        found = found_in(said)
        assert not found, f"a process was started with {', '.join(found)} among its arguments"


def _children(pid: int) -> Iterator[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return
    for text in listed:
        yield int(text)
        yield from _children(int(text))


def _key_files(folder: Path) -> Iterator[Path]:
    """Small files that hold a private key."""
    for path in folder.rglob("*.key"):
        if path.is_file() and path.stat().st_size < 10_000:
            text = path.read_text("utf-8", errors="replace")
            if "PRIVATE KEY" in text or text.startswith(("k4.secret", "k4.local")):
                yield path

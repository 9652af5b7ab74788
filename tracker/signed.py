"""The signed records of tags and repositories, as the peer API gives them out.

They are signed when they are asked for and not stored: so each carries the time at which the tracker said it, and a key
that is revoked leaves nothing behind. Signing takes some 30 microseconds; what was signed is given again for a while.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.messages import MOST_NAMES
from p2pregistry.oci.reference import check_name
from p2pregistry.trust.keys import Signer
from p2pregistry.trust.records import RepositoryClaim, Stamp, TagClaim, sign_repository, sign_tag
from tracker.catalog.base import Standing

#: Seconds for which a record is given again, and how many are kept.
_AGE: Final = 60.0
_SIZE: Final = 20_000


class SignedRecords:
    """``signer`` gives the key that signs now; ``now`` unix seconds."""

    def __init__(self, signer: Callable[[], Signer], *, now: Callable[[], float] = time.time) -> None:
        self._signer, self._now = signer, now
        self._made: OrderedDict[object, tuple[str, float]] = OrderedDict()

    def repository(self, name: str, standing: Standing) -> str:
        """The record of a repository."""
        key = (name, standing)
        claim = RepositoryClaim(name, standing.private, standing.stamp, int(self._now()))
        return self._again(key, lambda signer: sign_repository(signer, claim))

    def tag(self, repository: str, tag: str, digest: Digest | None, stamp: Stamp) -> str:
        """The record of a tag; ``digest`` None: that it points nowhere any more."""
        key = (repository, tag, digest, stamp)
        claim = TagClaim(repository, tag, digest, stamp, int(self._now()))
        return self._again(key, lambda signer: sign_tag(signer, claim))

    def _again(self, key: object, sign: Callable[[Signer], str]) -> str:
        signer, now = self._signer(), trio.current_time()
        key = (key, signer.kid)
        token, until = self._made.get(key, ("", 0.0))
        if until <= now:
            token = sign(signer)
            self._made[key] = token, now + _AGE
            self._made.move_to_end(key)
            while len(self._made) > _SIZE:
                self._made.popitem(last=False)
        return token


class _Names(msgspec.Struct):
    names: Annotated[list[str], msgspec.Meta(max_length=MOST_NAMES)]


def read_names(data: bytes) -> list[str]:
    """The repositories of a question for their records, each once. Raises RequestError (UNSUPPORTED or NAME_INVALID,
    400)."""
    try:
        raw = msgspec.json.decode(data, type=_Names)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise RequestError("UNSUPPORTED", 'send {"names": [...]}', status=400) from err
    return [check_name(name) for name in dict.fromkeys(raw.names)]

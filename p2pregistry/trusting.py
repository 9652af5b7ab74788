"""What a node believes of the tracker: its root key, key set, revocations and clock; and what they make of a token.

All but the time of the last answer outlives restarts, so that neither an older key set nor a shorter list of
revocations is taken after one. While the tracker answers, the node is *live*: what was revoked is refused within a
minute. While it does not, credentials hold for ``offline_grace`` longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import trio

from p2pregistry.errors import BadContent
from p2pregistry.observe import logger
from p2pregistry.sources.tracker import Swarm, TrackerSource
from p2pregistry.trust.claims import ManifestClaim, verify_manifest_claim
from p2pregistry.trust.keys import KeySet
from p2pregistry.trust.records import (
    SKEW,
    Credential,
    RepositoryClaim,
    Revocations,
    TagClaim,
    verify_credential,
    verify_repository,
    verify_revocations,
    verify_tag,
)

#: Seconds between two looks for a newer key set because of a token of an unknown key.
KEY_REFRESH: Final = 10.0
#: Seconds after which the tracker's last answer says nothing about now.
LIVE: Final = 60.0
#: Keys of the index.
_ROOT, _KEYS, _REVOCATIONS, _OFFSET, _KEPT = "root_key", "key_set", "revocations", "clock_offset", "keys_kept"

_log = logger(__name__)
_T = TypeVar("_T")


class Memory(Protocol):
    """The part of the index that is used here."""

    def get_meta(self, key: str) -> bytes | None: ...
    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None: ...


async def _keep_all(_keys: KeySet) -> None:
    pass


class Trust:
    """``root_key``: pinned by the operator; else the first one seen is. ``swarm``: which one credentials must be for.
    ``offline_grace``: seconds. ``clock``: this machine's, in unix seconds. ``forget``: called with a new key set, to
    drop all that was kept because a key vouched for it which is not in there any more."""

    def __init__(
        self,
        memory: Memory,
        tracker: TrackerSource | None,
        root_key: str | None,
        *,
        swarm: str = "default",
        offline_grace: float = 3600.0,
        clock: Callable[[], float] = time.time,
        forget: Callable[[KeySet], Awaitable[None]] = _keep_all,
    ) -> None:
        self._memory, self._tracker, self._swarm = memory, tracker, swarm
        self._grace, self._clock, self._forget = offline_grace, clock, forget
        pinned = memory.get_meta(_ROOT)
        self._root = root_key or (pinned.decode("ascii") if pinned else None)
        self._keys: KeySet | None = None
        self._revocations: Revocations | None = None
        self._offset = self._stored_offset()
        self._tried = -math.inf
        self._heard = -math.inf
        self._refetching = trio.Lock()
        self._learning = trio.Lock()
        self._load()

    def _load(self) -> None:
        stored = self._memory.get_meta(_KEYS)
        if not self._root or not stored:
            return
        try:
            self._keys = KeySet.verify(stored.decode("ascii"), self._root)
        except BadContent:
            _log.warning("the stored key set is of another root key; asking the tracker anew")
            return
        revocations = self._memory.get_meta(_REVOCATIONS)
        if revocations:
            self._revocations = _read_revocations(revocations)

    def _stored_offset(self) -> float | None:
        stored = self._memory.get_meta(_OFFSET)
        try:
            return float(stored.decode("ascii")) if stored else None
        except ValueError:
            return None

    @property
    def root_key(self) -> str | None:
        """The pinned root key (k4.public...), None before the first contact."""
        return self._root

    @property
    def keys(self) -> KeySet | None:
        """The key set in use, None before the first contact."""
        return self._keys

    @property
    def revocations(self) -> Revocations | None:
        """The list with the highest number that was seen; None: none yet."""
        return self._revocations

    @property
    def live(self) -> bool:
        """Whether the tracker has answered a moment ago, so that what is known of revocations is new."""
        return trio.current_time() - self._heard < LIVE

    def now(self) -> float:
        """Unix seconds by the tracker's clock, as far as it is known."""
        return self._clock() + (self._offset or 0.0)

    def revoked(self, peer_id: str) -> bool:
        """Whether this node's credentials do not count any more."""
        return self._revocations is not None and peer_id in self._revocations.nodes

    # ------------------------------------------------------------------------------------------------------- learning

    async def learn(self, swarm: Swarm) -> None:
        """Take the tracker's key set, revocations and time. Without a configured or stored root key the first one seen
        is pinned.

        Raises BadContent if the set is not signed by the pinned root, is older than the one in use, or differs from it
        under the same version; or if the revocations are not signed by a key of the set.
        """
        async with self._learning:
            root = self._root or swarm.root_key
            keys = KeySet.verify(swarm.key_set, root)
            keys.follows(self._keys)
            revocations = verify_revocations(keys, swarm.revocations) if swarm.revocations else None
            await self._take_keys(root, keys, swarm.key_set)
            if revocations is not None and not await self._take_revocations(revocations):
                return
            if swarm.time is not None:
                await self._take_time(swarm.time)
            self._heard = trio.current_time()

    async def _take_keys(self, root: str, keys: KeySet, token: str) -> None:
        if self._root is None:
            _log.info("trusting this tracker from now on", root_key=root)
        if self._memory.get_meta(_ROOT) != root.encode("ascii"):
            await self._memory.put_meta(_ROOT, root.encode("ascii"))
        self._root, self._keys = root, keys
        if self._memory.get_meta(_KEYS) != token.encode("ascii"):
            await self._memory.put_meta(_KEYS, token.encode("ascii"))
        # recorded only afterwards: a node that dies in between does it when it next hears of the set
        kept = " ".join(sorted(keys.keys)).encode("ascii")
        if self._memory.get_meta(_KEPT) != kept:
            await self._forget(keys)
            await self._memory.put_meta(_KEPT, kept)

    async def _take_revocations(self, revocations: Revocations) -> bool:
        """False for a list that is older than the one in use: somebody may be repeating an old answer."""
        known = self._revocations
        if known is not None and revocations.number < known.number:
            _log.warning(
                "the tracker's revocations are older than known", number=revocations.number, known=known.number
            )
            return False
        if known is None or (revocations.number, revocations.nodes) != (known.number, known.nodes):
            stored = f"{revocations.number}\n{revocations.issued}\n" + "\n".join(sorted(revocations.nodes))
            await self._memory.put_meta(_REVOCATIONS, stored.encode("utf-8"))
        self._revocations = revocations
        return True

    async def _take_time(self, there: float) -> None:
        offset = there - self._clock()
        if self._offset is None or abs(offset - self._offset) > 5.0:
            await self._memory.put_meta(_OFFSET, f"{offset:.3f}".encode("ascii"), rebuildable=True)
        self._offset = offset

    async def _refetch(self, token: str) -> KeySet:
        """The key set, asked for anew, now and then, where it lacks the key of a token. Raises RemoteError."""
        if self._keys is not None and self._keys.knows(token):
            return self._keys
        async with self._refetching:  # those who come meanwhile wait for the one answer
            known = self._keys
            if known is None or not known.knows(token):
                if self._tracker is None:
                    raise BadContent("no key set to verify a claim with")
                if trio.current_time() - self._tried < KEY_REFRESH:
                    raise BadContent("a claim is signed with a key that the tracker does not name")
                self._tried = trio.current_time()
                await self.learn(await self._tracker.swarm())
        assert self._keys is not None
        return self._keys

    # ------------------------------------------------------------------------------------------------------ verifying

    async def claim(self, token: str) -> ManifestClaim:
        """Verify that a repository holds a manifest. Raises BadContent, as do those below; RemoteError where the key is
        not known and the tracker cannot be asked."""
        return await self._verified(verify_manifest_claim, token)

    async def tag(self, token: str) -> TagClaim:
        """Verify where a tag points."""
        return await self._verified(verify_tag, token)

    async def repository(self, token: str) -> RepositoryClaim:
        """Verify whether a repository is private."""
        return await self._verified(verify_repository, token)

    async def credential(self, token: str, peer_id: str) -> Credential:
        """Verify that a node with this peer id, which it has proved to be its own, belongs to the swarm now."""
        found = await self._verified(verify_credential, token)
        self.check(found, peer_id)
        return found

    def check(self, credential: Credential, peer_id: str) -> None:
        """Whether a credential that was verified before still holds for this peer id. Raises BadContent."""
        if credential.peer_id != peer_id:
            raise BadContent("a credential is another node's")
        if credential.swarm != self._swarm:
            raise BadContent("a credential is for another swarm")
        if credential.kid and (self._keys is None or credential.kid not in self._keys.keys):
            raise BadContent("a credential is signed with a key that the tracker has dropped")
        if self.revoked(peer_id):
            raise BadContent("a node's credential has been revoked")
        if self.now() >= self.until(credential):
            raise BadContent("a node's credential has expired")

    def until(self, credential: Credential) -> float:
        """Until when a credential holds, unix seconds, as things are now."""
        late = 0.0 if self.live else self._grace
        return credential.expires + late + (SKEW if self._offset is None else 0.0)

    async def _verified(self, verify: Callable[[KeySet, str], _T], token: str) -> _T:
        return verify(await self._refetch(token), token)


def _read_revocations(stored: bytes) -> Revocations | None:
    """What ``_take_revocations`` has written; None if it cannot be read."""
    try:
        number, issued, *nodes = stored.decode("utf-8").split("\n")
        return Revocations(int(number), int(issued), frozenset(node for node in nodes if node))
    except ValueError:
        return None

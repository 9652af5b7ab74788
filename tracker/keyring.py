"""What a tracker signs with, and which key signs when.

Terms: a key is *published* once a key set names it, so that nodes verify with it; it *signs* from its ``sign_from`` on,
when every node has had the time to hear of it, until that of a later key comes: then it is *superseded*, and goes on
verifying. It is *dropped* by a key set that does not name it any more: because it was stolen (revoked), or because
nothing that it signed is in use (retired). A *prepared* key waits for the root, which may be kept elsewhere, to sign a
set with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.trust.keys import KeySet, Signer, TrackerKeys
from p2pregistry.trust.paserk import LOCAL, new_local, raw_bytes

#: Seconds after which nothing is in use that a superseded key has signed, claims aside: credentials last a day.
IN_USE: Final = 36 * 3600.0


@dataclass(slots=True)
class Keyring:
    """What all trackers of a database share; kept up to date by ``KeyKeeper``, so read the fields anew each time.

    ``key_set``: the set with the highest version, as the root signed it; ``keys``: what is in it. ``root_public``: what
    nodes pin. ``peer_key``: with which the trackers show nodes who they are. ``nonce_key``: 32 bytes, for nonces that
    any tracker of the database accepts.
    """

    root_public: str
    key_set: str
    keys: KeySet
    signer: Signer
    peer_key: Ed25519PrivateKey = field(repr=False)
    nonce_key: bytes = field(repr=False)

    @property
    def peer_id(self) -> str:
        """The peer id of the trackers' peer listeners, base58."""
        return base58(peer_id_of(self.peer_key))

    @classmethod
    def fresh(cls, keys: TrackerKeys | None = None) -> Keyring:
        """New keys without a database, for a tracker in a test."""
        own = keys or TrackerKeys.fresh()
        key_set = own.key_set()
        nonce_key = raw_bytes(new_local(), LOCAL)
        verified = KeySet.verify(key_set, own.root_public)
        return cls(own.root_public, key_set, verified, own.signer, Ed25519PrivateKey.generate(), nonce_key)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A signing key as the database keeps it; times in unix seconds. ``sign_from`` None: prepared. ``dropped`` None: in
    the latest key set, or prepared."""

    kid: str
    public: str
    created: float
    sign_from: float | None
    dropped: float | None = None

    @property
    def published(self) -> bool:
        """Whether the latest key set names it."""
        return self.sign_from is not None and self.dropped is None


def signing(keys: Iterable[SigningKey], now: float) -> SigningKey | None:
    """Which of them signs now: of those whose time has come the latest; None if there is none."""
    ready = [key for key in keys if key.published and key.sign_from is not None and key.sign_from <= now]
    return max(ready, key=lambda key: (key.sign_from, key.created, key.kid), default=None)


def superseded(keys: Sequence[SigningKey], now: float) -> dict[str, float]:
    """The published keys that do not sign any more, and since when (unix seconds)."""
    started = sorted(
        (key.sign_from, key.created, key.kid)
        for key in keys
        if key.published and key.sign_from is not None and key.sign_from <= now
    )
    return {one[2]: following[0] for one, following in itertools.pairwise(started)}


def retirable(
    keys: Sequence[SigningKey], claims: Mapping[str, int], now: float, in_use: float = IN_USE
) -> tuple[list[str], dict[str, str]]:
    """The ids of superseded keys that can be dropped, and of the others why they cannot. ``claims``: how many each has
    signed that are live."""
    gone: list[str] = []
    kept: dict[str, str] = {}
    for kid, since in superseded(keys, now).items():
        if claims.get(kid, 0):
            kept[kid] = f"{claims[kid]} claims have yet to be signed again"
        elif now - since < in_use:
            kept[kid] = f"credentials that it signed may be in use for {(in_use - now + since) / 3600:.1f} more hours"
        else:
            gone.append(kid)
    return gone, kept


def begin(keys: Sequence[SigningKey], named: Collection[str], now: float, overlap: float) -> dict[str, float]:
    """From when on the keys sign whose time changes with a set of the keys ``named``: a prepared one after ``overlap``
    seconds; but somebody must sign now, and where nobody else does it is the one whose time comes first."""
    times = {
        key.kid: now + overlap if key.sign_from is None else key.sign_from
        for key in keys
        if key.kid in named and key.dropped is None
    }
    if times and all(time > now for time in times.values()):
        times[min(times, key=lambda kid: (times[kid], kid))] = now
    before = {key.kid: key.sign_from for key in keys}
    return {kid: time for kid, time in times.items() if time != before[kid]}

"""Keeps a tracker's keyring: from files and the database at the start, then up to date with the other trackers.

The root key signs key sets and nothing else. It is read from its file for each set and not kept; once there is a set
it may be taken elsewhere, and ``p2pregistry tracker keys`` signs with it there. What was signed by a key that does not
sign any more is signed again in the background, by whichever tracker comes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from p2pregistry.errors import LocalError, RequestError, SettingsError
from p2pregistry.observe import logger
from p2pregistry.trust.claims import ManifestClaim, sign_manifest_claim
from p2pregistry.trust.keys import KeySet, Signer, sign_key_set
from p2pregistry.trust.paserk import (
    LOCAL,
    SECRET,
    TOKEN_ERRORS,
    Wrapping,
    load_key,
    load_or_create_key,
    new_local,
    new_secret,
    private_of,
    public_of,
    raw_bytes,
)
from tracker.catalog import signing as rows
from tracker.catalog.signing import Change, Draft, First, NewKey, Stored
from tracker.catalog.trail import By
from tracker.db import Connection, Db
from tracker.keyring import Keyring, SigningKey, signing, superseded

#: Seconds between two looks at the database: how much later other trackers sign with what one has changed.
REFRESH: Final = 3.0
#: Claims that are signed again in one transaction, and seconds of rest between two of them.
_BATCH: Final = 200
_REST: Final = 0.05

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where keys come from: ``directory`` holds root.key and, unless another is named, wrapping.key. ``wrapping``: the
    wrapping key itself, from the environment."""

    directory: Path
    wrapping_file: Path | None = None
    wrapping: str | None = field(default=None, repr=False)

    def root(self, public: str) -> Path | None:
        """The file of the root key with this public half, None if it is kept elsewhere. Raises SettingsError for one
        of another root, LocalError."""
        path = self.directory / "root.key"
        found = load_key(path, SECRET)
        if found is None:
            return None
        if public_of(found).to_paserk() != public:
            raise _other_root()
        return path

    def wrapping_key(self, *, make: bool) -> Wrapping:
        """Raises SettingsError if there is none, unless it is to be made, or if it is none."""
        if self.wrapping is not None:
            try:
                return Wrapping.read(self.wrapping)
            except TOKEN_ERRORS as err:
                raise SettingsError("$.keys.wrapping_key: this is no k4.local key") from err
        path = self.wrapping_file or self.directory / "wrapping.key"
        if make and self.wrapping_file is None:
            found = load_or_create_key(path, LOCAL)
        elif (loaded := load_key(path, LOCAL)) is not None:
            found = loaded
        else:
            raise SettingsError(
                f"$.keys.wrapping_key_file: {path} is missing, and the keys in the database are wrapped with it;"
                " copy it from another tracker of this database, or from a backup"
            )
        try:
            return Wrapping.read(found.to_paserk())
        except TOKEN_ERRORS as err:
            raise SettingsError(f"{path} does not hold a k4.local key of 32 bytes") from err


def _other_root() -> SettingsError:
    return SettingsError(
        "$.keys.dir: a tracker with another root.key uses this database; give this one the same, or none and only the"
        " wrapping key. If the root key is lost for good, see 'Keys' in docs/operating.md: nodes must then be told the"
        " new one"
    )


class KeyKeeper:
    """Made by ``open_keys``. ``overlap``: seconds between publishing a key and signing with it."""

    def __init__(self, db: Db, files: KeyFiles, wrapping: Wrapping, stored: Stored, overlap: float) -> None:
        self._db, self._files, self._wrapping, self._overlap = db, files, wrapping, overlap
        self._signers: dict[str, Signer] = {}
        self._stored = stored
        nonce = raw_bytes(wrapping.unwrap(stored.secrets[rows.NONCE_KEY]), LOCAL)
        peer_key = private_of(wrapping.unwrap(stored.secrets[rows.PEER_KEY]))
        keys = KeySet.verify(stored.key_set, stored.root_public)
        self.keyring = Keyring(stored.root_public, stored.key_set, keys, self._signer(stored), peer_key, nonce)

    # ---------------------------------------------------------------------------------------------------- up to date

    async def run(self) -> None:
        """For ever: what other trackers change is here within REFRESH seconds; claims are signed again."""
        while True:
            await trio.sleep(REFRESH * random.uniform(0.8, 1.0))  # noqa: S311 - spreads load, guards nothing
            try:
                await self.refresh()
                await self.sign_again()
            except (LocalError, SettingsError) as err:
                _log.warning("keys cannot be looked after now", error=err.message)

    async def refresh(self) -> None:
        """Take what the database holds now. Raises LocalError, SettingsError."""
        version, now = await self._db.query(rows.latest)
        if version != self._stored.version:
            stored = await self._db.tx(rows.read, retry=True)
            if stored is None:
                raise LocalError("the database has lost its keys")
            self._take(stored)
        else:
            self._take(replace(self._stored, now=now))

    def _take(self, stored: Stored) -> None:
        """All at once, or nothing where something cannot be read."""
        ring, before = self.keyring, self.keyring.signer.kid
        signer = self._signer(stored)
        if stored.key_set != ring.key_set:
            ring.keys = KeySet.verify(stored.key_set, stored.root_public)
            ring.key_set = stored.key_set
            _log.info("there is another key set", version=stored.version)
        ring.signer, self._stored = signer, stored
        if signer.kid != before:
            _log.info("another key signs from now on", kid=signer.kid)

    def _signer(self, stored: Stored) -> Signer:
        key = signing(stored.keys, stored.now)
        if key is None:
            raise LocalError("the database names no key to sign with")
        if key.kid not in self._signers:
            self._signers = {key.kid: Signer(key.kid, self._wrapping.unwrap(stored.wrapped[key.kid]))}
        return self._signers[key.kid]

    async def sign_again(self) -> int:
        """Sign all claims anew that are not of the key that signs now; how many. Raises LocalError.

        It can be cut off anywhere: what is left is found the next time.
        """
        total = 0
        while True:
            signer = self.keyring.signer

            def sign(claim: ManifestClaim, signer: Signer = signer) -> str:
                return sign_manifest_claim(signer, claim)

            count = await self._db.tx(rows.sign_again, signer.kid, sign, _BATCH)
            total += count or 0
            if not count:
                break
            await trio.sleep(_REST)
        if total:
            _log.info("claims have been signed anew", claims=total, kid=self.keyring.signer.kid)
        return total

    # ------------------------------------------------------------------------------------------------------- changes

    async def draft(self, change: Change) -> Draft:
        """A key set that makes this change, for the root to sign elsewhere. Raises NotFound, LocalError."""
        return await self._db.tx(rows.draft, change, self._new_key)

    async def publish(self, token: str, change: Change, by: By) -> None:
        """Publish a key set that the root has signed. Raises RequestError (400), LocalError."""
        self._take(await self._db.tx(rows.apply, token, change, self._overlap, by))

    async def change(self, change: Change, by: By) -> Draft:
        """Make and publish a key set, with the root key that is here. Raises NotFound, RequestError, LocalError."""
        path = self._files.root(self.keyring.root_public)
        if path is None:
            raise RequestError(
                "DENIED", "the root key is not kept with this tracker; name its file with --root-key", status=409
            )
        root = load_key(path, SECRET)
        if root is None:
            raise LocalError(f"{path} has been removed just now")
        made = await self.draft(change)
        await self.publish(sign_key_set(root, made.version, made.keys), change, by)
        return made

    def _new_key(self) -> NewKey:
        return _new_key(self._wrapping)

    async def status(self) -> dict[str, object]:
        """The keys as the operator sees them. Raises LocalError."""
        await self.refresh()
        stored = await self._db.tx(rows.read, retry=True)
        claims = await self._db.query(rows.claims_by_key)
        assert stored is not None
        return {
            "version": stored.version,
            "root_key": stored.root_public,
            "root_here": self._files.root(stored.root_public) is not None,
            "unknown_claims": claims.get("", 0),
            "keys": [_shown(key, stored, claims.get(key.kid, 0)) for key in stored.keys],
        }


def _shown(key: SigningKey, stored: Stored, claims: int) -> dict[str, object]:
    now = signing(stored.keys, stored.now)
    if key.dropped is not None:
        state = "dropped"
    elif key.sign_from is None:
        state = "prepared"
    elif now is not None and key.kid == now.kid:
        state = "signs"
    else:
        state = "superseded" if key.kid in superseded(stored.keys, stored.now) else "published"
    return {
        "kid": key.kid,
        "public": key.public,
        "state": state,
        "created": key.created,
        "sign_from": key.sign_from,
        "dropped": key.dropped,
        "claims": claims,
    }


def _new_key(wrapping: Wrapping) -> NewKey:
    secret = new_secret()
    signer = Signer.of(secret)
    return NewKey(signer.kid, signer.public, wrapping.wrap(secret))


# --------------------------------------------------------------------------------------------------------------- start


async def open_keys(db: Db, files: KeyFiles, *, overlap: float = 600.0) -> KeyKeeper:
    """The keys of this database; at its first start they are made, or taken from the files of an older program.

    Of several trackers that start at once one makes them. Raises SettingsError if the files are not those of this
    database, LocalError.
    """
    stored, wrapping = await db.tx(_start, files, retry=True)
    return KeyKeeper(db, files, wrapping, stored, overlap)


def _start(connection: Connection, files: KeyFiles) -> tuple[Stored, Wrapping]:
    rows.lock(connection)
    stored = rows.read(connection)
    if stored is None:
        rows.establish(connection, _first(files, rows.root_of(connection)))
        stored = rows.read(connection)
        assert stored is not None
    files.root(stored.root_public)  # one of another root is an error at the start, not when it is used
    return stored, files.wrapping_key(make=False)


def _first(files: KeyFiles, known_root: str | None) -> First:
    """The first keys of a database, whose root key may be known: an older program signed key sets at each start."""
    path = files.directory / "root.key"
    if known_root is not None and files.root(known_root) is None:
        raise SettingsError(
            f"$.keys.dir: {path} is needed once, to sign the first key set of this database; give this tracker the keys"
            " that it had before"
        )
    root = load_or_create_key(path, SECRET)
    wrapping = files.wrapping_key(make=True)
    # an older program's; it is not needed here any more
    secret = load_key(files.directory / "signing.key", SECRET) or new_secret()
    signer = Signer.of(secret)
    secrets: dict[str, Callable[[], str]] = {
        rows.PEER_KEY: lambda: wrapping.wrap(new_secret()),
        rows.NONCE_KEY: lambda: wrapping.wrap(new_local()),
    }
    return First(
        public_of(root).to_paserk(),
        sign_key_set(root, 1, [signer.public]),
        signer.kid,
        signer.public,
        wrapping.wrap(secret),
        {name: make() for name, make in secrets.items()},
    )

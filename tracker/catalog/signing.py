"""The trackers' keys in Postgres. Plain functions for ``Db``; tables: migrations/0006_identity.sql.

Every change of keys is one new key set, made and applied under a lock that all trackers of the database share. Secrets
come and go wrapped: nothing here can read them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.errors import BadContent, NotFound, RequestError
from p2pregistry.trust.claims import ManifestClaim
from p2pregistry.trust.keys import KeySet
from tracker.catalog.keys import key_digest
from tracker.catalog.trail import By, record
from tracker.db import Connection
from tracker.keyring import SigningKey, begin, retirable

#: Names in ``tracker_secrets``.
PEER_KEY: Final = "peer_key"
NONCE_KEY: Final = "nonce_key"

_LOCK: Final = "select pg_advisory_xact_lock(hashtext('p2pregistry.keys'))"
_TRY_LOCK: Final = "select pg_try_advisory_xact_lock(hashtext('p2pregistry.claims'))"
_NOW: Final = "select extract(epoch from now())::float8"
_KEYS: Final = """
select kid, public, secret, extract(epoch from created_at)::float8, extract(epoch from sign_from)::float8,
    extract(epoch from dropped_at)::float8
from signing_keys order by created_at, kid
"""
_LATEST: Final = "select version, token, extract(epoch from now())::float8 from key_sets order by version desc limit 1"
# Two ranges and null, each of which an index finds at once; "is distinct from" would read everything.
_OTHERS: Final = "claim_kid is null or claim_kid < %(kid)s or claim_kid > %(kid)s"
_DROPPED: Final = "claim_kid in (select kid from signing_keys where dropped_at is not null)"
# Blobs in the order in which the manifest names them.
_CLAIMS: Final = """
with picked as (
    select repository_id, manifest_id from repository_manifests where {which} limit %(limit)s for update skip locked
)
select p.repository_id, p.manifest_id, r.name, m.digest,
    array_remove(array_agg(b.digest::bytea order by at.place), null),
    array_remove(array_agg(b.size order by at.place), null), array_remove(array_agg(b.root order by at.place), null)
from picked p join repositories r on r.id = p.repository_id join manifests m on m.id = p.manifest_id
left join manifest_blobs mb on mb.repository_id = p.repository_id and mb.manifest_id = p.manifest_id
left join blobs b on b.id = mb.blob_id
left join lateral (
    select position(convert_to(encode(substring(b.digest from 2), 'hex'), 'UTF8') in m.body) as place
) at on true
group by p.repository_id, p.manifest_id, r.name, m.digest
"""
_SIGNED: Final = """
update repository_manifests rm set claim = n.claim
from unnest(%s::bigint[], %s::bigint[], %s::text[]) as n (repository_id, manifest_id, claim)
where rm.repository_id = n.repository_id and rm.manifest_id = n.manifest_id
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds; ``now``: its clock, unix seconds. ``wrapped`` by the key's id, ``secrets`` by name."""

    root_public: str
    version: int
    key_set: str
    keys: tuple[SigningKey, ...]
    now: float
    wrapped: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class First:
    """The keys of a new database: the first signing key and the secrets, wrapped, and a set that the root signed."""

    root_public: str
    key_set: str
    kid: str
    public: str
    wrapped: str = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A signing key that has just been made."""

    kid: str
    public: str
    wrapped: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of the keys: a new one (``drop`` None), or one that is stolen. ``retire``: what is not in use
    any more goes too."""

    drop: str | None = None
    retire: bool = False

    @property
    def name(self) -> str:
        """The action's name in the audit log."""
        return "keys.rotate" if self.drop is None else "keys.revoke"


@dataclass(frozen=True, slots=True)
class Draft:
    """A key set for the root to sign. ``kept``: keys that were not retired, and why."""

    version: int
    keys: list[str]
    kept: Mapping[str, str]


def lock(connection: Connection) -> None:
    """One at a time, until the end of the transaction."""
    connection.execute(_LOCK)


def root_of(connection: Connection) -> str | None:
    """The public root key, None in a new database."""
    row = connection.execute("select public from root_key").fetchone()
    return None if row is None else str(row[0])


def latest(connection: Connection) -> tuple[int, float]:
    """The version of the latest key set, and the database's clock in unix seconds."""
    row = connection.execute(_LATEST).fetchone()
    assert row is not None
    return int(row[0]), float(row[2])


def read(connection: Connection) -> Stored | None:
    """All of it; None in a database without a key set."""
    root, row = root_of(connection), connection.execute(_LATEST).fetchone()
    if root is None or row is None:
        return None
    rows = connection.execute(_KEYS).fetchall()
    keys = tuple(SigningKey(kid, public, made, start, gone) for kid, public, _, made, start, gone in rows)
    secrets: dict[str, str] = dict(connection.execute("select name, wrapped from tracker_secrets").fetchall())
    return Stored(root, row[0], row[1], keys, row[2], {one[0]: one[2] for one in rows}, secrets)


def establish(connection: Connection, first: First) -> None:
    """The first key set of a database."""
    connection.execute("insert into root_key (public) values (%s) on conflict do nothing", (first.root_public,))
    _insert(connection, NewKey(first.kid, first.public, first.wrapped))
    connection.execute("update signing_keys set sign_from = now()")
    connection.execute("insert into key_sets (version, token) values (1, %s)", (first.key_set,))
    for name, wrapped in first.secrets.items():
        connection.execute("insert into tracker_secrets (name, wrapped) values (%s, %s)", (name, wrapped))


def _insert(connection: Connection, key: NewKey) -> None:
    connection.execute(
        "insert into signing_keys (kid, public, secret) values (%s, %s, %s)", (key.kid, key.public, key.wrapped)
    )


def claims_by_key(connection: Connection) -> dict[str, int]:
    """How many claims each key has signed; "" for those of which it is not known."""
    rows = connection.execute("select claim_kid, count(*) from repository_manifests group by claim_kid").fetchall()
    return {kid or "": count for kid, count in rows}


# ------------------------------------------------------------------------------------------------------------- changes


def draft(connection: Connection, change: Change, make: Callable[[], NewKey]) -> Draft:
    """The key set that makes this change; a key that it needs is prepared. Drafting again is no harm.

    Raises NotFound if no key set names the key that is to be dropped.
    """
    lock(connection)
    stored = read(connection)
    assert stored is not None, "the tracker has started"
    published = {key.kid: key.public for key in stored.keys if key.published}
    gone: list[str] = []
    kept: dict[str, str] = {}
    if change.drop is not None:
        if change.drop not in published:
            raise NotFound("NAME_UNKNOWN", "there is no such key in the key set")
        gone.append(change.drop)
    if change.retire:
        retired, kept = retirable(stored.keys, claims_by_key(connection), stored.now)
        gone += retired
    publics = [public for kid, public in published.items() if kid not in gone]
    if change.drop is None or not publics:
        publics.append(_prepared(connection, stored.keys, make))
    return Draft(max(stored.version + 1, int(stored.now)), publics, kept)


def _prepared(connection: Connection, keys: Sequence[SigningKey], make: Callable[[], NewKey]) -> str:
    for key in keys:
        if key.sign_from is None and key.dropped is None:
            return key.public
    made = make()
    _insert(connection, made)
    return made.public


def apply(connection: Connection, token: str, change: Change, overlap: float, by: By) -> Stored:
    """Publish a key set that the root has signed; what the keys are then.

    Raises RequestError (400) unless it is signed by the root of this database, newer than the latest, and names keys of
    this database that were not dropped before, but not the one that this change drops.
    """
    lock(connection)
    stored = read(connection)
    assert stored is not None, "the tracker has started"
    try:
        keys = KeySet.verify(token, stored.root_public, at_least=stored.version + 1)
    except BadContent as err:
        raise _refused(f"{err.message}; ask for a draft and sign that one") from err
    good = {key.kid for key in stored.keys if key.dropped is None}
    if not keys.keys or not keys.keys.keys() <= good or change.drop in keys.keys:
        raise _refused("the key set does not name the keys of this tracker")
    times = begin(stored.keys, keys.keys.keys(), stored.now, overlap)
    connection.execute("insert into key_sets (version, token) values (%s, %s)", (keys.version, token))
    for kid, time in times.items():
        connection.execute("update signing_keys set sign_from = to_timestamp(%s) where kid = %s", (time, kid))
    gone = [key.kid for key in stored.keys if key.published and key.kid not in keys.keys]
    connection.execute("update signing_keys set dropped_at = now() where kid = any(%s)", (gone,))
    detail: dict[str, object] = {"version": keys.version, "dropped": gone, "begin": sorted(times)}
    record(connection, by, change.name, reference=change.drop, detail=detail)
    connection.execute("select note_change('keys', '', '', null, false)")
    after = read(connection)
    assert after is not None
    return after


def _refused(message: str) -> RequestError:
    return RequestError("INVALID", message, status=400)


# -------------------------------------------------------------------------------------------------------------- claims


def sign_again(connection: Connection, kid: str, sign: Callable[[ManifestClaim], str], limit: int) -> int | None:
    """Sign up to ``limit`` claims that are not of the key ``kid`` with it, those of dropped keys first; how many it
    were. None: another tracker is at it."""
    row = connection.execute(_TRY_LOCK).fetchone()
    if row is None or not row[0]:
        return None
    for which in (_DROPPED, _OTHERS):
        rows = connection.execute(_CLAIMS.format(which=which).encode(), {"kid": kid, "limit": limit}).fetchall()
        if rows:
            made = [sign(_claim(*found)) for _, _, *found in rows]
            connection.execute(_SIGNED, ([one[0] for one in rows], [one[1] for one in rows], made))
            return len(rows)
    return 0


def _claim(
    name: str, digest: bytes, digests: Iterable[bytes], sizes: Collection[int], roots: Collection[bytes]
) -> ManifestClaim:
    blobs = tuple(BlobRef(key_digest(key), size, root) for key, size, root in zip(digests, sizes, roots, strict=True))
    return ManifestClaim(name, key_digest(digest), blobs)

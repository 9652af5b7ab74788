"""What a tracker remembers of who may be told of a digest follows what any tracker of the database changes."""

from __future__ import annotations

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.errors import NotFound
from p2pregistry.trust.records import ANYONE
from tracker.catalog.check import BY, Signer, add, manifest
from tracker.catalog.migrate import migrate
from tracker.catalog.postgres import PostgresCatalog
from tracker.db import Db
from tracker.named import Follower, Named

BLOB = Metainfo.of_bytes(b"a blob")


async def test_a_repository_that_becomes_private_or_goes_is_noticed(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        catalog = PostgresCatalog(db, private=False)
        await add(catalog, "acme/app", BLOB)
        pushed = manifest(b"first", [BLOB])
        await catalog.put_manifest("acme/app", pushed, ("latest",), Signer(), BY)
        named = Named(catalog)
        follower = Follower(db, named)
        await follower.follow()
        await named.check(BLOB.digest, ANYONE)
        await catalog.put_manifest("acme/app", pushed, ("another",), Signer(), BY)
        await follower.follow()
        assert named.unknown([BLOB.digest]) == [], "a tag changes nothing of who may pull"
        await catalog.set_visibility("acme/app", True, BY)
        await named.check(BLOB.digest, ANYONE)
        await follower.follow()
        with pytest.raises(NotFound):
            await named.check(BLOB.digest, ANYONE)
        await catalog.set_visibility("acme/app", False, BY)
        await named.check(BLOB.digest, ANYONE)
        await follower.follow()
        await named.check(BLOB.digest, ANYONE)
        await catalog.delete_repository("acme/app", BY)
        await follower.follow()
        with pytest.raises(NotFound):
            await named.check(BLOB.digest, ANYONE)
    finally:
        db.close()

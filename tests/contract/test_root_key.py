"""Trackers of one database sign with the same keys, or do not start."""

from __future__ import annotations

import pytest
import trio

from p2pregistry.errors import SettingsError
from tracker.catalog.migrate import migrate
from tracker.catalog.root import check_root
from tracker.db import Db


async def test_the_first_tracker_decides_and_others_must_have_its_keys(database: str) -> None:
    db = Db(database)
    try:
        await migrate(db)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(check_root, db, "k4.public.one")
        with pytest.raises(SettingsError, match=r"keys\.dir"):
            await check_root(db, "k4.public.two")
        await check_root(db, "k4.public.one")
    finally:
        db.close()

"""Where a flight gets the piece table of its blob: kept from before, from the tracker, or from whoever has the blob."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteError, Unreachable
from p2pregistry.sources.base import Source
from p2pregistry.surroundings import Finder, Tables

#: Seconds before peers are asked for a table that the tracker has not given yet.
HEDGE = 0.3
TIMEOUT = 10.0
#: Seconds after which sources of last resort are asked too.
LATE = 5.0
#: Tables asked for at once ahead of any flight.
AT_ONCE = 4
#: Sources asked for one table.
MOST_ASKED = 10


class TableSearch:
    """One search. ``news`` is called whenever ``sources`` has grown or ``searched`` may have become true."""

    def __init__(
        self,
        ref: BlobRef,
        finder: Finder,
        sources: Mapping[str, Source],
        *,
        searched: Callable[[], bool],
        note: Callable[[RegistryError], None],
        bad: Callable[[str], None],
    ) -> None:
        self._ref, self._finder, self._sources = ref, finder, sources
        self._searched, self._note, self._bad = searched, note, bad
        self._news = trio.Event()
        self._found: list[Metainfo] = []
        self._tried: set[str] = set()
        self._asked = 0  # questions that are under way
        self._in_need = trio.Event()
        self._sought = False

    def news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def run(self) -> Metainfo:
        """The table, verified against the blob's root. Raises Unreachable if nobody gives it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_all, nursery.cancel_scope)
        if not self._found:
            raise Unreachable("no source gave the blob's piece table")
        return self._found[0]

    async def _ask_all(self, scope: trio.CancelScope) -> None:
        tracker, tried = self._finder.tracker, self._tried
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_more)
            if tracker is not None:
                tried.add(tracker.name)
                done = trio.Event()
                self._asked += 1
                nursery.start_soon(self._ask, tracker, scope, done)
                with trio.move_on_after(HEDGE):
                    await done.wait()
            while True:
                for source in list(self._sources.values()):
                    if source.name not in tried and (len(tried) < MOST_ASKED or source.kind == "ipfs"):
                        tried.add(source.name)
                        self._asked += 1
                        nursery.start_soon(self._ask, source, scope, trio.Event())
                if self._searched() and self._asked == 0:
                    self._in_need.set()
                    if self._sought:
                        return
                await self._news.wait()

    async def _look_for_more(self) -> None:
        """Sources of last resort, where there are any, once the others have not given it for long, or will not."""
        with trio.move_on_after(LATE):
            await self._in_need.wait()
        try:
            await self._finder.look_up(self._ref.digest, need=lambda: True)
        except RemoteError as err:
            self._note(err)
        self._sought = True
        self.news()

    async def _ask(self, source: Source, scope: trio.CancelScope, done: trio.Event) -> None:
        try:
            # IPFS may have to make the table from the whole blob; each of its blocks has a time-out of its own
            with trio.move_on_after(math.inf if source.kind == "ipfs" else TIMEOUT):
                blocks = await source.table(self._ref)
                self._found.append(Metainfo.of_table(self._ref, blocks))
                scope.cancel()
        except BadContent as err:
            self._finder.ban(source.name, err.message)
            self._bad(source.name)
        except (RemoteError, NotFound) as err:
            self._note(err)  # others may have it
        finally:
            self._asked -= 1
            done.set()
            self.news()


class TablesAhead:
    """Tables that the tracker is asked for when a manifest is served, so that a flight finds them there."""

    def __init__(self, finder: Finder, tables: Tables, note: Callable[[RegistryError], None]) -> None:
        self._finder, self._tables, self._note = finder, tables, note
        self._asked: dict[Digest, _Asked] = {}
        self._at_once = trio.CapacityLimiter(AT_ONCE)

    def begin(self, nursery: trio.Nursery, refs: Iterable[BlobRef]) -> None:
        """Ask for the tables of those that have more than one piece and are not known."""
        for ref in refs:
            if Metainfo.of_small(ref) is None and ref.digest not in self._asked:
                if self._finder.tracker is None or self._tables.metainfo(ref.digest) is not None:
                    continue
                asked = self._asked[ref.digest] = _Asked()
                nursery.start_soon(self._ask, ref, asked)

    async def get(self, ref: BlobRef) -> Metainfo | None:
        """The table, once the question about it that is under way has been answered; None where there is none."""
        asked = self._asked.get(ref.digest)
        if asked is None:
            return None
        with trio.move_on_after(HEDGE):  # others can be asked too
            await asked.done.wait()
        return asked.info

    async def _ask(self, ref: BlobRef, asked: _Asked) -> None:
        try:
            async with self._at_once:
                tracker = self._finder.tracker
                if tracker is None:
                    return
                with trio.move_on_after(TIMEOUT):
                    asked.info = Metainfo.of_table(ref, await tracker.table(ref))
            asked.done.set()
            if asked.info is not None:
                await self._tables.put_metainfo(asked.info)
        except (RemoteError, NotFound) as err:
            self._note(err)  # the flight asks again, and others too
        finally:
            asked.done.set()
            del self._asked[ref.digest]


class _Asked:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.info: Metainfo | None = None


async def learn(tables: Tables, ahead: TablesAhead, search: TableSearch, ref: BlobRef) -> tuple[Metainfo, bool]:
    """The blob's table, and whether it is new: one piece needs none; else it is kept, asked for ahead, or searched."""
    info = Metainfo.of_small(ref) or tables.metainfo(ref.digest)
    if info is not None and info.root == ref.root:
        return info, False
    info = await ahead.get(ref)
    if info is not None and info.root == ref.root:
        return info, False
    return await search.run(), True

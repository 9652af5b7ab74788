"""What a stream reads for itself: the whole state of what is fresh to a node, and what changed since its cursor.

First the state, read thing by thing while others change it; then every change since the cursor, which is from before
that reading began. So whatever the first part has missed is in the second, and it takes no more memory than a page.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from p2pregistry.feed_messages import ChangesRequest, Interest
from p2pregistry.trust.records import Caller, Stamp
from tracker.catalog.changes import Change, Changes
from tracker.feed_events import Events, prefixes_of, scope_of

#: Changes, tags or repositories that are read at once, and repositories of which the tags are.
PAGE: Final = 1000
_TOGETHER: Final = 50


class Listener(Protocol):
    """The part of a subscriber that is used here."""

    request: ChangesRequest
    caller: Caller
    cursor: Stamp


async def catch_up(
    changes: Changes, events: Events, one: Listener, fresh: Interest
) -> AsyncGenerator[tuple[bytes, Stamp], None]:
    """Bytes to be sent, each with the cursor from then on, until there is no more. Its marks have no time, because it
    has only caught up when it joins the others. Raises LocalError."""
    interest, cursor = one.request.interest, one.cursor
    state = await changes.state()
    if not state.can_go_on(cursor):
        cursor, fresh = state.stamp, interest
        # the cursor stays until the whole state is out
        yield events.reset(cursor), one.cursor
    if fresh:
        async with aclosing(_whole(changes, events, one, fresh, cursor.epoch)) as parts:
            async for data in parts:
                yield data, one.cursor
        yield events.mark(cursor, 0.0), cursor
    scope = scope_of(interest)
    while True:
        page = await changes.since(cursor.number, PAGE, scope)
        if page.state.epoch != cursor.epoch or page.upto < cursor.number:
            return  # another database: whoever asks next is told to begin anew
        async with aclosing(_page(changes, events, one, page.changes, cursor)) as parts:
            async for data in parts:
                yield data, cursor
        cursor = Stamp(cursor.epoch, page.upto)
        yield events.mark(cursor, 0.0), cursor
        if page.upto == page.state.number:
            return


async def _page(
    changes: Changes, events: Events, one: Listener, found: Sequence[Change], cursor: Stamp
) -> AsyncGenerator[bytes, None]:
    """What changed, with the tags of repositories that came into sight."""
    parts: list[bytes] = []
    sight: list[str] = []
    interest = one.request.interest
    for change in found:
        if change.kind not in ("tag", "repository"):
            parts.append(events.notice(cursor.epoch, change, one.caller))
        elif not change.with_repository and _concerns(interest, change):
            shown = change.shown(one.caller, cursor.number)
            if shown is not None:
                parts.append(events.shown(cursor.epoch, change, shown))
            if shown == "repository":
                sight.append(change.repository)
    if parts:
        yield b"".join(parts)
    async with aclosing(_tags(changes, events, one, sight, cursor.epoch)) as tags:
        async for data in tags:
            yield data


def _concerns(interest: Interest, change: Change) -> bool:
    if change.kind == "tag":
        return interest.covers(change.repository, change.name)
    return interest.touches(change.repository)


async def _whole(
    changes: Changes, events: Events, one: Listener, fresh: Interest, epoch: int
) -> AsyncGenerator[bytes, None]:
    """The state of what ``fresh`` covers. Of a repository by name it is said too that it may not be seen, whether it
    is private or not there."""
    names = sorted(fresh.repositories)
    for at in range(0, len(names), PAGE):
        asked = names[at : at + PAGE]
        found = {change.repository: change for change in await changes.repositories(asked)}
        absent = Change(0, "repository")
        gone = [name for name in asked if found.get(name, absent).shown(one.caller, 0) != "repository"]
        if gone:
            yield b"".join(events.gone(Stamp(epoch, 0), name) for name in gone)
        there = [change for name, change in found.items() if name not in gone]
        async with aclosing(_repositories(changes, events, one, there, epoch)) as parts:
            async for data in parts:
                yield data
    for start in prefixes_of(fresh.patterns):
        after, more = "", True
        while more:
            page = await changes.repositories_from(start, after, PAGE)
            more, after = len(page) == PAGE, page[-1].repository if page else ""
            there = [change for change in page if _begins_to_concern(fresh, change, one.caller)]
            async with aclosing(_repositories(changes, events, one, there, epoch)) as parts:
                async for data in parts:
                    yield data


def _begins_to_concern(fresh: Interest, change: Change, caller: Caller) -> bool:
    """Whether it is fresh by a pattern, and not by its name, and may be seen."""
    if change.repository in fresh.repositories or change.shown(caller, change.number) != "repository":
        return False
    return fresh.touches(change.repository)


async def _repositories(
    changes: Changes, events: Events, one: Listener, there: Sequence[Change], epoch: int
) -> AsyncGenerator[bytes, None]:
    """Repositories that may be seen, with the tags of them that the interest covers."""
    if there:
        yield b"".join(events.shown(epoch, change, "repository") for change in there)
    async with aclosing(_tags(changes, events, one, [change.repository for change in there], epoch)) as tags:
        async for data in tags:
            yield data


async def _tags(
    changes: Changes, events: Events, one: Listener, repositories: Collection[str], epoch: int
) -> AsyncGenerator[bytes, None]:
    names = sorted(set(repositories))
    for at in range(0, len(names), _TOGETHER):
        some, after, more = names[at : at + _TOGETHER], ("", ""), True
        while more:
            page = await changes.tags([name for name in some if name >= after[0]], after, PAGE)
            more = len(page) == PAGE
            after = (page[-1].repository, page[-1].name) if page else after
            data = b"".join(
                events.shown(epoch, change, "tag")
                for change in page
                if one.request.interest.covers(change.repository, change.name)
                and change.shown(one.caller, change.number) == "tag"
            )
            if data:
                yield data

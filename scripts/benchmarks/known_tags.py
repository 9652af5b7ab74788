"""The node's part of scripts/bench feed: an index that knows very many tags. How long one look-up takes, and how long
a node that has it takes to start, beside one that knows nothing."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Final

import trio
from measure import say
from processes import PROGRAM, BenchError, running
from report import Report
from usage import percentile

from p2pregistry.digest import Digest
from p2pregistry.feed_messages import Interest
from p2pregistry.store.applied import Table, transact
from p2pregistry.store.index import open_index
from p2pregistry.trust.records import Stamp

#: Repositories that the tags are spread over, tags in one transaction, and look-ups that are timed.
REPOSITORIES: Final = 10_000
AT_ONCE: Final = 20_000
LOOKUPS: Final = 20_000
#: About the length of the record of a tag.
_TOKEN: Final = "v4.public." + "r" * 480


def measure_known_tags(folder: Path, report: Report, *, tags: int, runs: int) -> None:
    """Adds three lines to the report; the targets are for 1,000,000 tags. Raises BenchError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("empty", "full"):
        (folder / name).mkdir(mode=0o700)
    say(f"writing {tags} tags of {REPOSITORIES} repositories")
    each = trio.run(_fill, folder / "full", tags)
    report.limit("a look-up of a known tag", [percentile(each, 0.5) * 1e6], "us", most=20)
    report.limit("a look-up of a known tag, p99", [percentile(each, 0.99) * 1e6], "us", most=None)
    starts: dict[str, list[float]] = {"empty": [], "full": []}
    for number in range(runs):
        for name, found in starts.items():
            found.append(_start(folder / name))
        say(f"round {number + 1} of {runs}: {starts['full'][-1]:.2f} s, and {starts['empty'][-1]:.2f} s without tags")
    report.limit("start of a node with these tags", starts["full"], "s", most=2.0)
    report.value("start of a node without any", starts["empty"], "s")


def place(number: int) -> tuple[str, str]:
    """Repository and tag of this number."""
    return f"team{number % 100}/app{number % REPOSITORIES}", f"v1.{number // REPOSITORIES}"


async def _fill(data: Path, tags: int) -> list[float]:
    """Write the index as the feed does; seconds of each look-up."""
    digest, random_ = Digest.of(b"one"), random.Random(1)
    async with open_index(data / "index.lmdb") as index:
        for first in range(0, tags, AT_ONCE):

            def work(table: Table, first: int = first) -> None:
                for number in range(first, min(first + AT_ONCE, tags)):
                    table.put_tag(*place(number), digest, Stamp(1, number + 1), _TOKEN)

            await transact(index, work, time.time())
        names = [place(number)[0] for number in range(min(1000, REPOSITORIES))]

        def finish(table: Table) -> None:
            table.put_cursor(Stamp(1, tags), time.time())
            table.put_interest(names, Interest(frozenset(names)))

        await transact(index, finish, time.time())
        each = []
        for _ in range(LOOKUPS):
            where = place(random_.randrange(tags))
            began = time.perf_counter()
            found = index.tag(*where)
            each.append(time.perf_counter() - began)
            if found is None or found.digest != digest:
                raise BenchError("a tag is not known that was written")
    return each


def _start(data: Path) -> float:
    """Seconds from the start of the process until the node says that it is ready."""
    sets = ["pull.port=0", "peer.port=0", "peer.plain=true", "peer.host=127.0.0.1", "libp2p.port=0"]
    sets += ["libp2p.host=127.0.0.1", "metrics.port=0"]
    command = [*PROGRAM, "node", "run", "--json", "--data-dir", str(data)]
    command += [part for one in sets for part in ("--set", one)]
    with (data.parent / f"{data.name}.log").open("ab") as log:
        began = time.perf_counter()
        with running(command, log, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchError(f"the node did not start; its log is {log.name}")
            return time.perf_counter() - began

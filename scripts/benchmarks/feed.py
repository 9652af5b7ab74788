"""scripts/bench feed: tags that move, and nodes that hear of it.

The tracker has many tags in a hundred repositories, written by SQL. Nodes in another process listen over sockets, each
to one of the repositories; others listen to what never changes. Tags then move, each in a transaction of its own. What
is measured is the time from before that transaction to the event at each node that listens to the repository, and what
a node that hears nothing costs the tracker; then what it costs a node to know as many tags. Peers speak plain HTTP
here: TLS has its own memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Final

import psycopg
import trio
from known_tags import measure_known_tags
from measure import say
from processes import PROGRAM, BenchError, running
from report import Report

from p2pregistry.testing import postgres
from tracker.catalog.migrate import migrate
from tracker.db import Db
from tracker.embedded import embedded_postgres

REPOSITORIES: Final = 100
WRITERS: Final = 4
ROUNDS: Final = 3
HERE: Final = Path(__file__).parent

_SETUP: Final = """
set session_replication_role = replica;
insert into repositories (name, private) select 'bench/r' || i, false from generate_series(0, 99) as i;
insert into manifests (digest, body) select '\\x12'::bytea || sha256(i::text::bytea), '{}' from generate_series(1, 2) i;
insert into repository_manifests (repository_id, manifest_id, media_type, claim, claim_number)
select r.id, m.id, 'application/vnd.oci.image.manifest.v1+json', 'none', 1 from repositories r, manifests m;
insert into changes (number, kind, repository, at)
select row_number() over (), 'repository', name, now() from repositories;
"""
_TAGS: Final = """
insert into tags (repository_id, name, manifest_id)
select r.id, 'v' || i, (select min(id) from manifests) from repositories r, generate_series(1, %s) as i
"""
_CHANGES: Final = """
insert into changes (number, kind, repository, name, digest, at)
select 100 + row_number() over (), 'tag', r.name, t.name, m.digest, now()
from tags t join repositories r on r.id = t.repository_id join manifests m on m.id = t.manifest_id
"""
_MOVE: Final = """
update tags set manifest_id = (select max(id) from manifests)
where repository_id = (select id from repositories where name = %s) and name = %s
"""

Moves = dict[tuple[str, str], float]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--tags", type=int, default=1_000_000, help="tags of all repositories together")
    parser.add_argument("--listeners", type=int, default=50, help="nodes that hear of moves, 100 at most")
    parser.add_argument("--idle", type=int, default=450, help="nodes that hear nothing")
    parser.add_argument("--rate", type=int, default=200, help="moves a second")
    parser.add_argument("--seconds", type=int, default=20, help="of moves, in each round")


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    rounds = args.runs or ROUNDS
    each = args.tags // REPOSITORIES
    if not 0 < args.listeners <= REPOSITORIES or each * REPOSITORIES < args.rate * args.seconds * rounds:
        raise BenchError("there must be 1 to 100 listeners, and a tag for each move")
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name:
        folder = Path(name)
        with postgres.running(lambda: embedded_postgres(folder / "postgres")) as dsn:
            say(f"writing {args.tags} tags")
            cursor = _fill(dsn, each)
            with _tracker(folder, dsn) as tracker:
                _measure(tracker, cursor, args, report, dsn, folder)
        measure_known_tags(folder / "node", report, tags=args.tags, runs=rounds)


def _measure(
    tracker: tuple[str, int],
    cursor: tuple[int, int],
    args: argparse.Namespace,
    report: Report,
    dsn: str,
    folder: Path,
) -> None:
    address, pid = tracker
    with _listening(address, cursor, "bench/r", args.listeners, folder) as hearing:
        before = _resident(pid)
        with _listening(address, cursor, "idle/r", args.idle, folder):
            time.sleep(6)  # a heartbeat
            memory = (_resident(pid) - before) / max(1, args.idle) / 1024
            moves: Moves = {}
            for turn in range(args.runs or ROUNDS):
                moves |= _move(dsn, turn, args)
            time.sleep(2)
        assert hearing.stdin is not None
        assert hearing.stdout is not None
        hearing.stdin.close()
        heard = {(repository, tag): at for repository, tag, at in json.loads(hearing.stdout.readline())}
    _figures(moves, heard, args, report)
    report.limit("memory for a node that hears nothing", [memory], "KiB", most=100.0)


def _figures(moves: Moves, heard: Moves, args: argparse.Namespace, report: Report) -> None:
    wanted = {place: at for place, at in moves.items() if int(place[0].removeprefix("bench/r")) < args.listeners}
    missing = wanted.keys() - heard.keys()
    if missing:
        raise BenchError(f"{len(missing)} of {len(wanted)} moves were not heard of")
    parts = quantiles([(heard[place] - at) * 1000 for place, at in wanted.items()], n=100)
    rate = len(moves) / (max(moves.values()) - min(moves.values()))
    report.value("moves", [rate], "/s")
    report.value("from a move to the event, half of them", [parts[49]], "ms")
    report.limit("from a move to the event, 99 of 100", [parts[98]], "ms", most=200.0)


async def _migrated(dsn: str) -> None:
    db = Db(dsn)
    try:
        await migrate(db)
    finally:
        db.close()


def _fill(dsn: str, each: int) -> tuple[int, int]:
    """Rows as pushes would have left them; the last change."""
    trio.run(_migrated, dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SETUP.encode())
        connection.execute(_TAGS, (each,))
        connection.execute(_CHANGES)
        connection.execute("vacuum analyze tags, changes, repositories, manifests")
        connection.execute("update change_state set number = (select max(number) from changes)")
        row = connection.execute("select epoch, number from change_state").fetchone()
        assert row is not None
        return int(row[0]), int(row[1])


def _move(dsn: str, turn: int, args: argparse.Namespace) -> Moves:
    """So many moves a second from several connections; when each began."""
    moves: Moves = {}
    began = time.monotonic()

    def write(first: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for number in range(first, args.rate * args.seconds, WRITERS):
                time.sleep(max(0.0, began + number / args.rate - time.monotonic()))
                at = turn * args.rate * args.seconds + number
                place = (f"bench/r{at % REPOSITORIES}", f"v{1 + at // REPOSITORIES}")
                moves[place] = time.monotonic()
                connection.execute(_MOVE, place)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(f"round {turn + 1}: {len(moves)} moves in {time.monotonic() - began:.1f} s")
    return moves


@contextmanager
def _tracker(folder: Path, dsn: str) -> Iterator[tuple[str, int]]:
    """The address of its peer API, and its process id."""
    (folder / "dsn").write_text(dsn)
    sets = [f"{section}.port=0" for section in ("registry", "peer", "libp2p", "metrics")]
    sets += [f"database.dsn_file={folder / 'dsn'}", "peer.plain=true"]
    command = [*PROGRAM, "tracker", "run", "--json", "--data-dir", str(folder / "data")]
    command += [part for one in sets for part in ("--set", one)]
    with (folder / "log").open("wb") as log, running(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the tracker did not start:\n{(folder / 'log').read_text()}")
        yield str(json.loads(line)["peer_url"]).removeprefix("http://"), process.pid


@contextmanager
def _listening(
    address: str, cursor: tuple[int, int], prefix: str, count: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(HERE / "listeners.py"), address, *map(str, cursor), prefix, str(count)]
    with (folder / "listeners.log").open("ab") as log, running(command, log, pipes=True) as process:
        assert process.stdout is not None
        if count and process.stdout.readline() != b"ready\n":
            raise BenchError(f"the listeners failed:\n{(folder / 'listeners.log').read_text()}")
        yield process


def _resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError("the tracker is gone")

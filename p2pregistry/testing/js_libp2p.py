"""js-libp2p as a counterpart in tests: installed once with npm into a cache outside the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from p2pregistry.testing.foreign import CannotInstall, cache_directory

_PACKAGES = (
    "libp2p@3.3.11",
    "@libp2p/tcp@11.0.28",
    "@chainsafe/libp2p-noise@17.0.0",
    "@chainsafe/libp2p-yamux@8.0.1",
    "@libp2p/kad-dht@16.4.5",
    "@libp2p/identify@4.1.14",
    "@libp2p/ping@3.1.13",
    "multiformats@13.4.1",
)

# Node 20 lacks Promise.withResolvers, which libp2p 3 uses.
_POLYFILL = """
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((a, b) => { resolve = a; reject = b })
  return { promise, resolve, reject }
}
"""

_NODE = """
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import * as readline from 'node:readline'

const [protocol, ...bootstrap] = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()], connectionEncrypters: [noise()], streamMuxers: [yamux()],
  services: {
    identify: identify(), ping: ping(),
    dht: kadDHT({ protocol, clientMode: false, peerInfoMapper: passthroughMapper })
  }
})
await node.services.dht.setMode('server')
for (const address of bootstrap) await node.dial(multiaddr(address))
const say = (value) => console.log(JSON.stringify(value))
const cid = (hex) => CID.createV1(0x55, Digest.create(0x12, Uint8Array.from(Buffer.from(hex, 'hex'))))
say(node.getMultiaddrs().map(String))
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, argument] = JSON.parse(line)
  try {
    const signal = AbortSignal.timeout(10000)
    if (command === 'table') say(node.services.dht.routingTable.size)
    if (command === 'provide') { await node.contentRouting.provide(cid(argument), { signal }); say(true) }
    if (command === 'find') {
      const found = new Set()
      const providers = node.contentRouting.findProviders(cid(argument), { signal })
      for await (const peer of providers) found.add(peer.id.toString())
      say([...found])
    }
  } catch (error) { say({ error: String(error) }) }
}
await node.stop()
"""


def install() -> Path:
    """The directory with js-libp2p and our script for it. Raises CannotInstall."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise CannotInstall("needs node and npm")
    directory = cache_directory() / ("js-" + _PACKAGES[0].replace("@", "-"))
    done = directory / "installed.json"
    if not done.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"type": "module", "private": true}')
        try:
            command = [npm, "install", "--no-audit", "--no-fund", *_PACKAGES]
            subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=300)  # noqa: S603 - fixed
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotInstall(f"npm cannot install js-libp2p: {error}") from error
        done.write_text(json.dumps(_PACKAGES))
    (directory / "polyfill.mjs").write_text(_POLYFILL)
    (directory / "node.mjs").write_text(_NODE)
    return directory


class JsNode:
    """A js-libp2p node with a DHT. ``addrs`` are its multiaddrs."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""
        self.addrs: list[str] = []

    @property
    def peer_id(self) -> str:
        """In base58."""
        return self.addrs[0].rpartition("/")[2]

    async def line(self) -> Any:
        """The next line it says."""
        assert self._process.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._buffer:
                data = await self._process.stdout.receive_some()
                assert data, "the js node ended"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def tell(self, *command: str) -> Any:
        """``provide`` and ``find`` take a sha256 in hex; ``table`` tells how many peers it knows."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")
        return await self.line()


@asynccontextmanager
async def js_node(directory: Path, protocol: str, *bootstrap: str) -> AsyncIterator[JsNode]:
    """Run one, joined through ``bootstrap``; killed at the end."""
    command = ["node", "--import", "./polyfill.mjs", "node.mjs", protocol, *bootstrap]
    process = await trio.lowlevel.open_process(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    node = JsNode(process)
    try:
        node.addrs = await node.line()
        yield node
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()

// A js-ipfs daemon without a network: the RPC of Kubo on a free port of loopback.
// Usage: node js_ipfs.mjs FOLDER. It prints {"rpc": URL} and ends with its standard input.
import { createServer, request as ask } from 'node:http'
import { pipeline } from 'node:stream'
import { create } from 'ipfs-core'
import { HttpApi } from 'ipfs-http-server'

// it writes lines of its own
console.log = console.error
const ipfs = await create({
  repo: process.argv[2],
  offline: true,
  silent: true,
  init: { emptyRepo: true },
  config: {
    Addresses: { Swarm: [], API: '/ip4/127.0.0.1/tcp/0', Gateway: [] },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Routing: { Type: 'none' }
  }
})
const api = new HttpApi(ipfs)
await api.start()

// what Kubo has called cid-codec since 2022 is format here; and a pin of a new block waits for all that is below it
const behind = new URL(api._apiServers[0].info.uri)
const server = createServer((request, response) => {
  const url = new URL(request.url, behind)
  if (url.searchParams.has('cid-codec')) {
    url.searchParams.set('format', url.searchParams.get('cid-codec'))
    url.searchParams.set('version', '1')
    url.searchParams.delete('cid-codec')
    url.searchParams.delete('pin')
  }
  const headers = { ...request.headers, host: behind.host }
  const passed = ask(url, { method: request.method, headers }, answer => {
    response.writeHead(answer.statusCode, answer.headers)
    pipeline(answer, response, () => {})
  })
  passed.on('error', () => response.destroy())
  pipeline(request, passed, () => {})
})
server.listen(0, '127.0.0.1', () => {
  process.stdout.write(JSON.stringify({ rpc: `http://127.0.0.1:${server.address().port}` }) + '\n')
})
for await (const _ of process.stdin);
process.exit(0)

// A Helia node without libp2p: a trustless gateway over what it holds, and a client of other gateways.
// Usage: node helia.mjs FOLDER [ROUTER-URL [KIND-OF-ADDRESSES]]. The first line it prints is {"gateway": URL}; then one answer for each
// line of standard input, a JSON array of a command and its arguments. It ends with its standard input.
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { createServer } from 'node:http'
import * as readline from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CarReader } from '@ipld/car'
import { delegatedHTTPRouter } from '@helia/delegated-routing-client'
import { trustlessGatewayBlockBroker } from '@helia/trustless-gateway-client'
import { car } from '@helia/car'
import { unixfs } from '@helia/unixfs'
import { createVerifiedFetch } from '@helia/verified-fetch'
import { FsBlockstore } from 'blockstore-fs'
import { createHeliaLight } from 'helia'
import { importFile } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

const [folder, router, kind] = process.argv.slice(2)
const blockstore = new FsBlockstore(folder)
await blockstore.open()
const node = createHeliaLight({
  start: false,
  blockstore,
  routers: router ? [delegatedHTTPRouter({ url: router, ...(kind ? { filterAddrs: [kind] } : {}) })] : [],
  // without a router it knows of no gateway, but there has to be a way
  blockBrokers: [trustlessGatewayBlockBroker({ allowInsecure: true, allowLocal: true })]
})
const files = unixfs(node)
const verifiedFetch = await createVerifiedFetch(node)

async function serve (request, response) {
  const url = new URL(request.url, 'http://localhost')
  const cid = CID.parse(url.pathname.replace(/^\/ipfs\//, ''))
  // it would look for others that have it
  if (cid.multihash.code !== 0 && !(await blockstore.has(cid))) { response.writeHead(404).end(); return }
  const headers = {}
  for (const name of ['accept', 'range', 'cache-control']) {
    if (request.headers[name]) headers[name] = request.headers[name]
  }
  const answer = await verifiedFetch(`ipfs://${cid}${url.search}`, { headers, method: request.method })
  response.writeHead(answer.status, Object.fromEntries(answer.headers))
  if (answer.body) await pipeline(Readable.fromWeb(answer.body), response)
  else response.end()
}

// its client of routers cancels answers that are being read, where nobody can catch what comes of that
process.on('uncaughtException', error => {
  console.error(error)
  if (error.code !== 'ERR_INVALID_STATE') process.exit(1)
})

const commands = {
  // without options: the profile unixfs-v1-2025
  async add (path, { chunk, width, raw = true, version = 1 } = {}) {
    const layout = chunk
      ? {
          chunker: fixedSize({ chunkSize: chunk }),
          layout: balanced({ maxChildrenPerNode: width }),
          rawLeaves: raw,
          cidVersion: version,
          reduceSingleLeafToSelf: raw
        }
      : { profile: 'unixfs-v1-2025' }
    const { cid } = await importFile({ content: createReadStream(path) }, blockstore, layout)
    return String(cid)
  },
  async import (path) {
    const reader = await CarReader.fromIterable(createReadStream(path))
    await car(node).import(reader)
    return (await reader.getRoots()).map(String)
  },
  async has (cid) { return await blockstore.has(CID.parse(cid)) },
  async fetch (cid, path) {
    const out = await open(path, 'w')
    let size = 0
    try {
      for await (const part of files.cat(CID.parse(cid), { signal: AbortSignal.timeout(50000) })) {
        await out.write(part)
        size += part.length
      }
    } finally { await out.close() }
    return size
  }
}

const server = createServer((request, response) => {
  serve(request, response).catch(error => {
    if (response.headersSent) response.destroy()
    else response.writeHead(500).end(String(error))
  })
})
server.listen(0, '127.0.0.1', () => say({ gateway: `http://127.0.0.1:${server.address().port}` }))

function say (value) { console.log(JSON.stringify(value)) }

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, ...given] = JSON.parse(line)
  try { say({ answer: await commands[command](...given) }) } catch (error) { say({ error: String(error.stack) }) }
}
process.exit(0)

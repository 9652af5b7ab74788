"""Files in the layouts of others, as Kubo 0.22 and Helia 7 made them; ``tests/interop`` has them made anew."""

from __future__ import annotations

import hashlib

import pytest

from p2pregistry.content.dag import Walk, any_cid, matches
from p2pregistry.content.unixfs import varint
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from p2pregistry.testing.objects import pattern

CHUNK = 256 << 10
DATA = pattern(3 * CHUNK + 5)
#: ``ipfs add`` as it was before 2026 (unixfs-v0-2015): leaves are dag-pb, CIDs of version 0. Kubo and Helia agree.
OLD = (
    "QmXWgTidBJipsPFfeidDmLKhSqXPe9GnrrGcquqh5LQuHp",
    (
        "122a0a2212202c4cd9d76b991e4dce04fc01eac9bde8820a8cc7b82ecce1d2aed3d0798537bd1200188e8010"
        "122a0a221220730353d50a2aefbb144b06a3a32229d75ffb4c7a589d0a4679ca0e9f2a1f82ce1200188e8010"
        "122a0a22122030a1043fe6ccf22468888da8bc6ea5e39c86221037dad2720fb5b879a693777b1200188e8010"
        "12280a221220b33ac9110c179c7f947c4e6a8d47c87aeb39dc8ec69d2221b1e86dfa8e8d2eb41200180d"
        "0a140802188580302080801020808010208080102005"
    ),
)
#: ``ipfs add --cid-version=1``, as nerdctl asks for it: the same chunks in bare leaves.
BARE = (
    "bafybeia4uzafpx2h2ekiupfq4auwzx4a6j233htbjttuffvxoo75zgqwbi",
    (
        "122c0a2401551220882b21feae2993d5c3ae5bf05ab501d4a1f76f984e05dbd7f4a7b11ef17320b0120018808010"
        "122c0a2401551220c7955262d980c66115ec4d75c8beb0ff760551e1074b8cd0d585fb8babe25e22120018808010"
        "122c0a2401551220180fc9210f46859fcddb6d9bd474100cf1c8345db287935b6fefd1d8274758d8120018808010"
        "122a0a2401551220930bd35a2d0c770fdbba1ee9f850b8100dc30d7b980e9861fbf18bf9637cf3ca12001805"
        "0a140802188580302080801020808010208080102005"
    ),
)


def wrapped(data: bytes) -> bytes:
    """A leaf in dag-pb."""
    unixfs = b"\x08\x02\x12" + varint(len(data)) + data + b"\x18" + varint(len(data))
    return b"\x0a" + varint(len(unixfs)) + unixfs


@pytest.mark.parametrize(("root", "node"), [OLD, BARE], ids=["2015", "kubo-cid-1"])
@pytest.mark.parametrize(("start", "end"), [(0, len(DATA)), (CHUNK - 1, CHUNK + 1), (len(DATA) - 2, len(DATA))])
def test_files_of_others_are_read(root: str, node: str, start: int, end: int) -> None:
    cid = any_cid(root)
    assert cid is not None
    blocks = {cid: bytes.fromhex(node)}
    for at in range(0, len(DATA), CHUNK):
        leaf = DATA[at : at + CHUNK]
        for codec, block in ((CID_RAW_PREFIX, leaf), (CID_DAG_PB_PREFIX, wrapped(leaf))):
            blocks[codec + hashlib.sha256(block).digest()] = block
    walk, found = Walk(cid, len(DATA), start, end), bytearray()
    while not walk.done:
        for want in walk.wanted(2):
            assert matches(want.cid, blocks[want.cid])
            walk.take(want, blocks[want.cid])
        found += b"".join(walk.ready())
    assert bytes(found) == DATA[start:end]

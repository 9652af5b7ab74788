"""Root CIDs equal the published fixtures of the unixfs-v1-2025 profile (IPIP-499), whoever computes them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID

from p2pregistry.content.car import CarReader, read_table, write_table
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, build, empty_root, links, parse_table
from p2pregistry.digest import CID_RAW_PREFIX, Digest, cid_text, parse_cid
from p2pregistry.errors import BadContent, RequestError

GIB = 1 << 30


def keystream(seed: str, size: int) -> Iterator[bytes]:
    """The fixtures' data: a ChaCha20 key stream, key = sha256(seed), zero nonce; in pieces."""
    encryptor = Cipher(ChaCha20(hashlib.sha256(seed.encode()).digest(), bytes(16)), mode=None).encryptor()
    zeros = bytes(PIECE_SIZE)
    while size > 0:
        yield encryptor.update(zeros[: min(size, PIECE_SIZE)])
        size -= PIECE_SIZE


def root_of(pieces: Iterator[bytes], size: int) -> str:
    return cid_text(build(b"".join(hashlib.sha256(piece).digest() for piece in pieces), size).root)


@pytest.mark.parametrize(
    ("seed", "size", "cid"),
    [
        ("chunk-v1-seed", PIECE_SIZE, "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta"),
        ("chunk-v1-seed", PIECE_SIZE + 1, "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64"),
        ("v1-2025-seed", GIB, "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm"),
        ("v1-2025-seed", GIB + 1, "bafybeibdsi225ugbkmpbdohnxioyab6jsqrmkts3twhpvfnzp77xtzpyhe"),
    ],
)
def test_the_published_fixtures(seed: str, size: int, cid: str) -> None:
    assert root_of(keystream(seed, size), size) == cid


def test_hello_world_and_the_empty_blob() -> None:
    assert cid_text(Metainfo.of_bytes(b"hello world").root) == (
        "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    )
    assert cid_text(Metainfo.of_bytes(b"").root) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert Metainfo.of_bytes(b"").root == empty_root()


@given(st.integers(1, 300), st.integers(2, 5))
def test_every_leaf_of_a_deep_tree_is_equally_deep(count: int, width: int) -> None:
    hashes = b"".join(hashlib.sha256(bytes([i & 255, i >> 8])).digest() for i in range(count))
    dag = build(hashes, count * PIECE_SIZE, width=width)
    blocks = {b"\x01\x70\x12\x20" + hashlib.sha256(block).digest(): block for block in dag.blocks}
    level = [dag.root]
    while level[0] in blocks:
        assert all(cid in blocks for cid in level)
        level = [child for cid in level for child in links(blocks[cid])]
    assert b"".join(cid[4:] for cid in level) == hashes


@given(st.integers(0, 40 * PIECE_SIZE), st.randoms(use_true_random=False))
def test_a_table_survives_the_journey_in_a_car_however_it_is_split(size: int, random: object) -> None:
    count = max(1, -(-size // PIECE_SIZE))
    hashes = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(count))
    info = Metainfo.of(Digest("sha256", bytes(32)), size, hashes)
    data = write_table(info.root, info.dag().blocks)
    reader, blocks = CarReader(), {}
    at = 0
    while at < len(data):
        step = random.randrange(1, 400)  # type: ignore[attr-defined]
        blocks.update(reader.feed(data[at : at + step]))
        at += step
    reader.close()
    assert blocks == read_table(data)
    assert parse_table(info.root, size, blocks) == hashes
    assert Metainfo.of_table(info.ref, blocks) == info


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_any_bytes_are_a_car_or_bad_content(data: bytes, cuts: list[int]) -> None:
    def read(parts: list[bytes]) -> object:
        reader = CarReader()
        try:
            found = [pair for part in parts for pair in reader.feed(part)]
            reader.close()
        except BadContent:
            return BadContent
        return found

    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    assert read([data]) == read([data[a:b] for a, b in itertools.pairwise(edges)])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_node_or_bad_content(block: bytes) -> None:
    try:
        for cid in links(block):
            assert len(cid) == 36
    except BadContent:
        pass


@given(st.data())
def test_a_table_gives_the_signed_hashes_or_nothing(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 30))
    hashes = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(count))
    info = Metainfo.of(Digest("sha256", bytes(32)), count * PIECE_SIZE - 5, hashes)
    block = bytearray(info.dag().blocks[0])
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    # the caller has hashed the blocks; even if it had not, no wrong hash gets through
    with contextlib.suppress(BadContent):
        assert parse_table(info.root, info.size, {info.root: bytes(block)}) == hashes
    with pytest.raises(BadContent):
        parse_table(info.root, info.size + PIECE_SIZE, {info.root: info.dag().blocks[0]})
    with pytest.raises(BadContent):
        parse_table(info.root, info.size, {})


def test_small_blobs_need_no_table() -> None:
    info = Metainfo.of_bytes(b"x" * PIECE_SIZE)
    assert Metainfo.of_small(info.ref) == info
    assert info.hash(0) == info.digest.raw
    assert Metainfo.of_small(BlobRef(info.digest, PIECE_SIZE + 1, info.root)) is None


@given(st.text(max_size=80))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    for parse in (Digest.parse, parse_cid):
        try:
            parse(text)
        except RequestError as err:
            refused = err
            assert (refused.code, refused.status) == ("DIGEST_INVALID", 400)


@given(st.binary(min_size=32, max_size=32))
def test_digests_and_cids_have_one_spelling(raw: bytes) -> None:
    digest = Digest("sha256", raw)
    assert Digest.parse(str(digest)) == digest
    text = cid_text(digest.cid())
    assert parse_cid(text) == CID_RAW_PREFIX + raw
    # base32 of 36 bytes has spare bits at the end: a second spelling of the same bytes is refused
    for last in "abcdefghijklmnopqrstuvwxyz234567":
        other = text[:-1] + last
        if other != text and base64.b32decode(other[1:].upper() + "=" * 6) == digest.cid():
            with pytest.raises(RequestError):
                parse_cid(other)


@given(st.binary(max_size=64))
def test_cids_are_those_of_an_independent_library(data: bytes) -> None:
    cid = CID("base32", 1, "raw", ("sha2-256", hashlib.sha256(data).digest()))
    assert bytes(cid) == Digest.of(data).cid()
    assert str(cid) == cid_text(Digest.of(data).cid())

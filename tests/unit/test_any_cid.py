"""CIDs in every spelling that clients send."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID

from p2pregistry.content.any_cid import PROBE, PROBE_TEXT, is_ours, read_cid
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest, cid_text, parse_cid

RAW = Digest.of(b"block").cid()
NODE = CID_DAG_PB_PREFIX + RAW[4:]
OURS = st.builds(lambda prefix, raw: prefix + raw, st.sampled_from([CID_RAW_PREFIX, CID_DAG_PB_PREFIX]),
                 st.binary(min_size=32, max_size=32))  # fmt: skip


@given(OURS, st.sampled_from(["base32", "base58btc", "base36", "base16", "base32upper", "base16upper", "base64url"]))
def test_every_spelling_is_the_same_cid(cid: bytes, base: str) -> None:
    text = str(CID.decode(cid).set(base=base))
    assert read_cid(text) == cid
    assert is_ours(cid)
    assert parse_cid(cid_text(read_cid(text))) == cid


@given(st.binary(min_size=32, max_size=32))
def test_version_0_names_an_inner_node(sha256: bytes) -> None:
    text = str(CID("base58btc", 0, "dag-pb", ("sha2-256", sha256)))
    assert read_cid(text) == CID_DAG_PB_PREFIX + sha256


def test_the_cid_of_nothing() -> None:
    assert read_cid(PROBE_TEXT) == PROBE
    assert not is_ours(PROBE)


@pytest.mark.parametrize("codec", ["dag-cbor", "libp2p-key"])
def test_other_cids_are_cids_but_none_of_ours(codec: str) -> None:
    for text in (
        str(CID("base32", 1, codec, ("sha2-256", RAW[4:]))),
        str(CID("base32", 1, "raw", ("sha2-512", Digest.of(b"x", "sha512").raw))),
        str(CID("base32", 1, "raw", ("sha2-256", RAW[4:20]))),
    ):
        assert not is_ours(read_cid(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "x" + cid_text(RAW)[1:],
        cid_text(RAW).upper()[:1].lower() + cid_text(RAW)[1:].upper(),  # neither base32 nor its upper case
        cid_text(RAW)[:-1] + "z",  # bits beyond the last byte
        cid_text(RAW) + "a",
        cid_text(RAW)[:-2],
        "f" + RAW.hex() + "0",
        "f" + " ".join(f"{byte:02x}" for byte in RAW),
        "f" + (b"\x02" + RAW[1:]).hex(),
        "f" + (b"\x81\x00" + RAW[1:]).hex(),  # a number in a form that is too long
        "Qm" + "1" * 44,
        "z" + "0" * 40,
        "u" + base64.urlsafe_b64encode(RAW).decode() + "=",
        "b" + "a" * 10_000,
        "\u0663" * 40,
    ],
)
def test_what_is_no_cid(text: str) -> None:
    with pytest.raises(ValueError, match="not a CID"):
        read_cid(text)


@given(st.text(max_size=400))
def test_any_text_is_a_cid_or_is_refused(text: str) -> None:
    for spelled in (text, *(base + text for base in "bzkfuBKFU"), "Qm" + text):
        try:
            cid = read_cid(spelled)
        except ValueError:
            continue
        assert cid[0] == 1

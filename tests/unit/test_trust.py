"""Keys, key sets and claims: only what the pinned root vouches for is believed."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import msgspec
import pyseto
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, LocalError, SettingsError
from p2pregistry.trust.claims import (
    MAX_CLAIM,
    ManifestClaim,
    read_unverified,
    sign_manifest_claim,
    verify_manifest_claim,
)
from p2pregistry.trust.keys import (
    KEY_SET_PURPOSE,
    MANIFEST_PURPOSE,
    KeySet,
    TrackerKeys,
    check_root_public,
    kid_of,
)
from p2pregistry.trust.paserk import LOCAL, PUBLIC, TOKEN_ERRORS, Wrapping, new_local, new_secret

BLOBS = tuple(Metainfo.of_bytes(data).ref for data in (b"config", b"layer"))
CLAIM = ManifestClaim("acme/api", Digest.of(b"manifest"), BLOBS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> TrackerKeys:
    return TrackerKeys.load_or_create(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> TrackerKeys:
    return TrackerKeys.load_or_create(tmp_path_factory.mktemp("others"))


def key_set(keys: TrackerKeys) -> KeySet:
    return KeySet.verify(keys.key_set(), keys.root_public)


def raw_claim(keys: TrackerKeys, payload: object, purpose: bytes = MANIFEST_PURPOSE) -> str:
    return keys.signer.sign(payload if isinstance(payload, bytes) else msgspec.json.encode(payload), purpose)


# ---------------------------------------------------------------------------------------------------------- key files


def test_keys_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = TrackerKeys.load_or_create(folder)
    again = TrackerKeys.load_or_create(folder)
    assert (first.root_public, first.signing_public) == (again.root_public, again.signing_public)
    assert first.root_public != first.signing_public
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "root.key": 0o600,
        "signing.key": 0o600,
    }


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    TrackerKeys.load_or_create(tmp_path)
    (tmp_path / "root.key").chmod(mode)
    with pytest.raises(SettingsError, match=r"root\.key"):
        TrackerKeys.load_or_create(tmp_path)


@pytest.mark.parametrize("text", [b"", b"k4.secret.", b"k4.secret.AAAA", b"\xff\xfe", b"k4.public.AAAA", b"x" * 9999])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "signing.key").write_bytes(text)
    (tmp_path / "signing.key").chmod(0o600)
    with pytest.raises(SettingsError, match=r"signing\.key") as caught:
        TrackerKeys.load_or_create(tmp_path)
    assert "AAAA" not in caught.value.message


def test_a_public_key_in_place_of_the_secret_one_is_refused(tmp_path: Path, keys: TrackerKeys) -> None:
    (tmp_path / "root.key").write_text(keys.root_public)
    (tmp_path / "root.key").chmod(0o600)
    with pytest.raises(SettingsError, match=r"root\.key"):
        TrackerKeys.load_or_create(tmp_path)


def test_keys_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError):
        TrackerKeys.load_or_create(tmp_path / "file" / "keys")


def test_no_secret_shows_itself(keys: TrackerKeys) -> None:
    encoded = keys.root.to_paserk().removeprefix("k4.secret.")
    raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[:32]
    for text in (repr(keys), str(keys), repr(keys.signer), keys.root_public, keys.key_set()):
        assert encoded not in text
        assert base64.urlsafe_b64encode(raw).decode()[:40] not in text


@pytest.mark.parametrize(
    "text", ["", "k4.public.", "k4.public.AAAA", "k4.public.\x00", "k4.public.ü", "k3.public.AAAA"]
)
def test_root_keys_out_of_form(text: str) -> None:
    with pytest.raises(SettingsError):
        check_root_public(text)


def test_a_secret_key_is_no_root_key(keys: TrackerKeys) -> None:
    with pytest.raises(SettingsError) as caught:
        check_root_public(keys.root.to_paserk())
    assert keys.root.to_paserk() not in caught.value.message
    assert check_root_public(keys.root_public) == keys.root_public


# ----------------------------------------------------------------------------------------------------------- key sets


def test_a_key_set_of_the_root(keys: TrackerKeys) -> None:
    found = KeySet.verify(keys.key_set(3), keys.root_public, at_least=3)
    assert found.version == 3
    assert set(found.keys) == {keys.signer.kid}


def test_a_key_set_of_another_root(keys: TrackerKeys, others: TrackerKeys) -> None:
    with pytest.raises(BadContent):
        KeySet.verify(others.key_set(), keys.root_public)


def test_an_older_key_set(keys: TrackerKeys) -> None:
    with pytest.raises(BadContent, match="version 2, lower than 3"):
        KeySet.verify(keys.key_set(2), keys.root_public, at_least=3)


def test_a_claim_is_no_key_set(keys: TrackerKeys) -> None:
    payload = {"version": 9, "keys": [keys.signing_public]}
    signing = keys.signing_public
    for purpose in (MANIFEST_PURPOSE, KEY_SET_PURPOSE, b""):
        with pytest.raises(BadContent):  # the signing key may not make key sets
            KeySet.verify(raw_claim(keys, payload, purpose), keys.root_public)
    with pytest.raises(BadContent):  # nor may the right key for another purpose
        KeySet.verify(raw_claim(keys, payload, MANIFEST_PURPOSE), signing)


@pytest.mark.parametrize(
    "payload",
    [{}, [], {"version": 1}, {"version": "1", "keys": []}, {"version": 1, "keys": ["k4.public.AAAA"]},
     {"version": 1, "keys": ["nonsense"]}, {"version": 1, "keys": [None]}, b"", b"\xff",
     b'{"version":1,"keys":["\xff"]}', b'{"version":1,"keys":' + b"[" * 100_000, b"[" * 100_000,
     {"version": 1, "keys": ["k4.local." + "A" * 43]}],
    ids=range(13),
)  # fmt: skip
def test_key_sets_out_of_form(keys: TrackerKeys, payload: object) -> None:
    data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    token = pyseto.encode(keys.root, data, implicit_assertion=KEY_SET_PURPOSE).decode()
    with pytest.raises(BadContent):
        KeySet.verify(token, keys.root_public)


# ------------------------------------------------------------------------------------------------------------- claims


def test_a_claim(keys: TrackerKeys) -> None:
    found = verify_manifest_claim(key_set(keys), sign_manifest_claim(keys.signer, CLAIM))
    assert found == CLAIM
    assert found.blob(BLOBS[1].digest) == BLOBS[1]
    assert found.blob(Digest.of(b"other")) is None


def test_a_claim_of_another_tracker(keys: TrackerKeys, others: TrackerKeys) -> None:
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), sign_manifest_claim(others.signer, CLAIM))


def test_a_claim_that_names_our_key_but_is_signed_with_another(keys: TrackerKeys, others: TrackerKeys) -> None:
    footer = msgspec.json.encode({"kid": keys.signer.kid})
    body = msgspec.json.encode({"repository": "a", "manifest": str(CLAIM.manifest), "blobs": []})
    token = pyseto.encode(others.signer.secret, body, footer=footer, implicit_assertion=MANIFEST_PURPOSE).decode()
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), token)


@pytest.mark.parametrize("purpose", [b"", KEY_SET_PURPOSE, MANIFEST_PURPOSE + b" "])
def test_a_token_of_another_kind_is_no_claim(keys: TrackerKeys, purpose: bytes) -> None:
    payload = {"repository": "a", "manifest": str(CLAIM.manifest), "blobs": []}
    assert verify_manifest_claim(key_set(keys), raw_claim(keys, payload)).repository == "a"
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), raw_claim(keys, payload, purpose))


GOOD = {"repository": "a", "manifest": str(CLAIM.manifest), "blobs": []}


@pytest.mark.parametrize(
    "payload",
    [{}, [], GOOD | {"repository": "A"}, GOOD | {"manifest": "sha256:x"}, GOOD | {"blobs": [["x", 1, "y"]]},
     GOOD | {"blobs": [[str(CLAIM.manifest), 1, "bafy"]]}, GOOD | {"blobs": [[str(CLAIM.manifest), 1]]},
     GOOD | {"blobs": [[str(CLAIM.manifest), -1, "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"]]},
     GOOD | {"blobs": None}, b"", b'{"repository":"\xff"}', b"[" * 100_000,
     b'{"x":' + b"[" * 100_000],
    ids=range(13),
)  # fmt: skip
def test_claims_that_are_signed_but_out_of_form(keys: TrackerKeys, payload: object) -> None:
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), raw_claim(keys, payload))


def test_a_claim_that_is_too_long(keys: TrackerKeys) -> None:
    with pytest.raises(BadContent, match="too long"):
        verify_manifest_claim(key_set(keys), "x" * (MAX_CLAIM + 1))


@given(data=st.data())
def test_a_changed_token_is_refused(keys: TrackerKeys, data: st.DataObject) -> None:
    token = sign_manifest_claim(keys.signer, CLAIM)
    at = data.draw(st.integers(0, len(token) - 1))
    change = data.draw(st.sampled_from(["drop", "swap", "insert"]))
    char = data.draw(st.sampled_from("AZaz09-_.=\x00ü"))
    changed = token[:at] + ("" if change == "drop" else char) + token[at + (change != "insert") :]
    try:
        found = verify_manifest_claim(key_set(keys), changed)
    except BadContent:
        return
    assert found == CLAIM  # another spelling of the same signed bytes


@given(
    token=st.one_of(st.text(max_size=80), st.from_regex(r"v4\.(public|local)\.[A-Za-z0-9_=.-]{0,200}", fullmatch=True))
)
def test_any_text_is_refused(keys: TrackerKeys, token: str) -> None:
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), token)
    with pytest.raises(BadContent):
        KeySet.verify(token, keys.root_public)


@given(
    footer=st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"[]", b'{"kid":1}', b'{"kid":"\xff"}', b"[" * 99999, b'{"x":' * 99999]),
    )
)
def test_any_footer_is_refused(keys: TrackerKeys, footer: bytes) -> None:
    body = msgspec.json.encode(GOOD)
    token = pyseto.encode(keys.signer.secret, body, footer=footer, implicit_assertion=MANIFEST_PURPOSE).decode()
    with pytest.raises(BadContent):
        verify_manifest_claim(key_set(keys), token)


@given(root=st.text(max_size=60).map(lambda text: "k4.public." + text) | st.text(max_size=20))
def test_any_root_key_is_refused(keys: TrackerKeys, root: str) -> None:
    with pytest.raises(BadContent):  # as a tracker might send one before any is pinned
        KeySet.verify(keys.key_set(), root)


# ------------------------------------------------------------------------------------------------- versions, wrapping


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.fixed_dictionaries(
            {"version": st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.none(), st.text(max_size=3))},
            optional={
                "keys": st.one_of(
                    st.none(),
                    st.lists(st.one_of(st.text(max_size=60), st.sampled_from([PUBLIC, "k4.public." + "A" * 43]))),
                ),
                "more": st.integers(),
            },
        ).map(lambda found: json.dumps(found).encode()),
    )
)
def test_a_signed_key_set_is_read_or_refused(keys: TrackerKeys, data: bytes) -> None:
    token = pyseto.encode(keys.root, data, implicit_assertion=KEY_SET_PURPOSE).decode()
    try:
        found = KeySet.verify(token, keys.root_public)
    except BadContent:
        return
    assert 0 <= found.version <= 2**53
    assert all(kid.startswith("k4.pid.") for kid in found.keys)
    found.follows(None)
    found.follows(found)


@given(st.integers(0, 5), st.integers(0, 5), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc")))
def test_of_two_key_sets_one_follows_the_other_or_they_are_the_same(
    keys: TrackerKeys, one: int, two: int, first: set[str], second: set[str]
) -> None:
    key = keys.root  # any will do
    known, new = KeySet(one, dict.fromkeys(first, key)), KeySet(two, dict.fromkeys(second, key))
    try:
        new.follows(known)
    except BadContent:
        assert two < one or (two == one and first != second)
    else:
        assert two > one or (two == one and first == second)


@given(
    text=st.text(max_size=60) | st.binary(max_size=64).map(lambda raw: LOCAL + base64.urlsafe_b64encode(raw).decode())
)
def test_a_wrapping_key_is_read_or_refused(text: str) -> None:
    try:
        found = Wrapping.read(text)
    except TOKEN_ERRORS:
        return
    assert len(found.key) == 32
    assert repr(found) == "Wrapping()"


@given(data=st.data())
def test_what_is_wrapped_comes_back_with_the_same_key_and_unchanged_only(data: st.DataObject) -> None:
    wrapping, key = Wrapping(b"w" * 32), data.draw(st.sampled_from([WRAPPED_SECRET, WRAPPED_LOCAL]))
    text = wrapping.wrap(key)
    assert key.to_paserk().split(".")[2] not in text
    assert wrapping.unwrap(text).to_paserk() == key.to_paserk()
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("Aa-.=ü")) + text[at + 1 :]
    for other, given_text in ((Wrapping(b"x" * 32), text), (wrapping, changed)):
        try:
            found = other.unwrap(given_text)
        except SettingsError:
            pass
        else:
            assert found.to_paserk() == key.to_paserk()  # another spelling of the same bytes


WRAPPED_SECRET, WRAPPED_LOCAL = new_secret(), new_local()


def test_what_a_claim_says_can_be_read_without_its_key(keys: TrackerKeys) -> None:
    assert read_unverified(sign_manifest_claim(keys.signer, CLAIM)) == CLAIM
    for junk in ("", "claim-1", "v4.public.AAAA", sign_manifest_claim(keys.signer, CLAIM)[:40]):
        assert read_unverified(junk) is None
        assert kid_of(junk) is None

"""Who has a block: questions and answers of delegated routing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.content.providers import MAX_PROVIDERS, Provider, encode, is_public, multiaddr, read_question
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import RequestError

CID = Digest.of(b"block").cid()
PATH = f"/routing/v1/providers/{cid_text(CID)}"
SECURE = Provider("12D3KooWa", "/dns/registry.example.com/tcp/443/tls/http")
PLAIN = Provider("12D3KooWb", "/ip4/192.0.2.1/tcp/5004/http")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://registry.example.com", "/dns/registry.example.com/tcp/443/tls/http"),
        ("https://registry.example.com:5050/", "/dns/registry.example.com/tcp/5050/tls/http"),
        ("http://192.0.2.1", "/ip4/192.0.2.1/tcp/80/http"),
        ("http://[2001:db8::1]:5004", "/ip6/2001:db8::1/tcp/5004/http"),
        ("https://example.com/registry", None),
        ("ftp://example.com", None),
        ("https://", None),
        ("https://example.com:99999", None),
    ],
)
def test_the_address_of_a_gateway(url: str, address: str | None) -> None:
    assert multiaddr(url) == address


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://registry.example.com", True),
        ("http://8.8.8.8:5004", True),
        ("http://[2606:4700::1]:5004", True),
        ("http://10.1.2.3:5004", False),
        ("http://127.0.0.1:5004", False),
        ("http://169.254.1.1", False),
        ("http://[::1]:5004", False),
        ("http://[fd00::1]:5004", False),
        ("http://localhost:5004", False),
        ("http://node-1:5004", False),
        ("http://node-1.local:5004", False),
        ("http://node.svc.cluster.local.", False),
        ("http://127.1:5004", False),
    ],
)
def test_which_addresses_are_for_everybody(url: str, public: bool) -> None:
    assert is_public(url) == public


@pytest.mark.parametrize(
    ("addresses", "protocols", "found"),
    [
        ("", "", [SECURE, PLAIN]),
        ("http", "", [SECURE, PLAIN]),
        ("https", "", [SECURE]),
        ("HTTPS,webtransport", "", [SECURE]),
        ("tls", "transport-ipfs-gateway-http", [SECURE]),
        ("!tls", "", [PLAIN]),
        ("tcp,!dns", "", [PLAIN]),
        ("unknown", "", []),
        ("webtransport", "", []),
        ("example", "", []),
        ("", "transport-bitswap", []),
        ("", "transport-bitswap,Transport-IPFS-Gateway-HTTP", [SECURE, PLAIN]),
        ("", "!transport-ipfs-gateway-http", []),
        ("", "unknown", []),
    ],
)
def test_filters(addresses: str, protocols: str, found: list[Provider]) -> None:
    question = read_question(PATH, [("filter-addrs", addresses), ("filter-protocols", protocols)])
    assert question.cid == CID
    assert question.select([SECURE, PLAIN]) == found


def test_no_more_are_named_than_there_is_room_for() -> None:
    assert len(read_question(PATH, []).select([PLAIN] * 100)) == MAX_PROVIDERS


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/routing/v1/providers/", 422),
        ("/routing/v1/providers/nonsense", 422),
        ("/routing/v1/providers", 501),
        ("/routing/v1/providers/a/b", 501),
        ("/routing/v1/peers/12D3KooWa", 501),
        ("/routing/v1/ipns/k51", 501),
        ("/routing/v1/else", 400),
    ],
)
def test_other_questions(path: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        read_question(path, [])
    assert caught.value.status == status


def test_answers() -> None:
    record = {
        "Schema": "peer",
        "ID": "12D3KooWb",
        "Addrs": [PLAIN.address],
        "Protocols": ["transport-ipfs-gateway-http"],
    }
    assert json.loads(encode([PLAIN], lines=False)) == {"Providers": [record]}
    assert [json.loads(line) for line in encode([PLAIN, PLAIN], lines=True).splitlines()] == [record, record]
    assert (encode([], lines=False), encode([], lines=True)) == (b'{"Providers":[]}', b"")


@given(st.text(max_size=400), st.lists(st.tuples(st.sampled_from(["filter-addrs", "filter-protocols"]), st.text())))
def test_any_question_is_read_or_refused(text: str, query: list[tuple[str, str]]) -> None:
    refused: set[int] = set()
    for path in (text, f"/routing/v1/providers/{text}", PATH):
        try:
            read_question(path, query).select([SECURE, PLAIN])
        except RequestError as err:
            refused.add(err.status)
    assert refused <= {400, 422, 501}


@given(st.text(max_size=60))
def test_any_url_has_an_address_or_has_none(text: str) -> None:
    for url in (text, f"https://{text}"):
        address = multiaddr(url)
        assert address is None or address.endswith("/http")

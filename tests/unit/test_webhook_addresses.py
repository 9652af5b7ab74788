"""Webhooks go to the public internet and to networks that were allowed; whatever an address is written as."""

from __future__ import annotations

import ipaddress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pregistry.errors import Unreachable
from tracker.webhook_client import Refused, WebhookClient, networks, private

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.1.2.3", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::10.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
    "64:ff9b:1:a00:0:100:808:808", "64:ff9b:1::808:808", "2002:a00:1::",
    "2002:7f00:1::1", "2001::1", "2001:db8::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1",
    "ff02::1", "100::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_these_are_not_sent_to(text: str) -> None:
    assert private(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_these_are(text: str) -> None:
    assert not private(ipaddress.ip_address(text))


@given(st.integers(0, 2**32 - 1))
def test_an_address_inside_another_is_judged_as_itself(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number)
        assert private(outer) == private(inner)
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (number << 80))
    assert private(sixtofour) == private(inner)


@given(st.integers(0, 2**128 - 1), st.integers(0, 128))
def test_what_was_allowed_is_allowed(number: int, length: int) -> None:
    address = ipaddress.IPv6Address(number)
    network = ipaddress.IPv6Network((number, length), strict=False)
    assert not private(address, (network,))


def test_an_allowed_network_covers_mapped_addresses_too() -> None:
    allowed = networks(["10.1.0.0/16"])
    assert not private(ipaddress.ip_address("10.1.2.3"), allowed)
    assert not private(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)
    assert private(ipaddress.ip_address("10.2.0.1"), allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"])
async def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises((Refused, Unreachable)) as caught:
        await WebhookClient().post(f"http://{host}:9/", [], b"")
    assert isinstance(caught.value, Refused) or "address" in caught.value.message


@pytest.mark.parametrize("host", ["hooks..example.com", ".example.com", "a" * 64 + ".example.com", "hooks.invalid"])
async def test_a_name_that_is_none_is_no_more_than_a_failed_request(host: str) -> None:
    """A mistyped webhook must not end the program that would tell it something."""
    with pytest.raises(Unreachable, match="has no address"):
        await WebhookClient().post(f"http://{host}/", [], b"")


class Resolver(trio.abc.HostnameResolver):
    """A name server that changes its mind: public when first asked, then loopback."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]  # noqa: A002
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        kind = trio.socket.AF_INET6 if ":" in answer else trio.socket.AF_INET
        return [(kind, trio.socket.SOCK_STREAM, 6, "", (answer, port))]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.mark.parametrize("answer", ["127.0.0.1", "10.0.0.7", "::1", "::ffff:192.168.0.1"])
async def test_a_name_that_resolves_to_the_inside_is_refused(answer: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    with pytest.raises(Refused, match=r"hooks\.example\.com"):
        await WebhookClient().post("http://hooks.example.com/", [], b"")


async def test_the_connection_goes_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up, which would give loopback, never happens; nor does a proxy of the environment."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    resolver = Resolver("93.184.216.34", "127.0.0.1")
    trio.socket.set_custom_hostname_resolver(resolver)
    reached: list[str] = []

    async def open_tcp_stream(host: str, port: int, **_options: object) -> object:
        reached.append(f"{host}:{port}")
        raise OSError("no route")

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    with pytest.raises(Unreachable):
        await WebhookClient().post("http://hooks.example.com:8080/", [], b"")
    assert reached == ["93.184.216.34:8080"]
    assert resolver.answers == ["127.0.0.1"]

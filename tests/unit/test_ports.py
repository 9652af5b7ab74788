"""The ports of ``up``."""

import socket
from collections.abc import Callable

import pytest

from p2pregistry.ports import Ports, choose, is_free, plan


def counting(start: int) -> Callable[[], int]:
    numbers = iter(range(start, start + 1000))
    return lambda: next(numbers)


def test_the_usual_ports_are_the_documented_ones() -> None:
    ports, notes = plan(5000, 2, lambda _: True, counting(40000))
    assert ports.tracker == Ports(5050, 5051, 5052, 5053)
    assert ports.nodes == (Ports(5000, 5001, 5002, 5003), Ports(5010, 5011, 5012, 5013))
    assert notes == []


def test_a_taken_port_moves_its_program_only_and_is_told() -> None:
    ports, notes = plan(5000, 2, lambda port: port != 5011, counting(40000))
    assert ports.nodes == (Ports(5000, 5001, 5002, 5003), Ports(40000, 40001, 40002, 40003))
    assert notes == ["port 5011 is taken: node 2 uses 40000 in place of 5010"]


@pytest.mark.parametrize("base", [5000, 0, 65000])
def test_no_two_programs_share_a_port(base: int) -> None:
    ports, _ = plan(base, 50, lambda _: True, counting(10000))
    used = [
        port
        for block in (ports.tracker, *ports.nodes)
        for port in (block.main, block.peer, block.libp2p, block.metrics)
    ]
    assert len(set(used)) == len(used) == 51 * 4
    assert max(used) <= 65535


def test_a_port_that_is_listened_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    ports, notes = choose(0, 1)
    assert is_free(ports.tracker.main)
    assert notes == []

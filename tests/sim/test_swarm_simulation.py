"""The promises of the swarm, over modelled links on virtual time: seconds here are counted, not measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "simulation"))

from swarm import Model, Swarm  # pyright: ignore[reportMissingImports]


def ratio(swarm: Swarm) -> float:
    """The slowest node's time against the bound."""
    return max(node.finished - node.begun for node in swarm.nodes.values()) / swarm.model.bound


def everybody_who_lives_has_everything(swarm: Swarm) -> bool:
    return all(
        node.dead or all(flight.have == bytes([1]) * flight.count for flight in node.flights)
        for node in swarm.nodes.values()
    )


@pytest.mark.parametrize(("nodes", "mib", "most"), [(16, 96, 1.9), (40, 48, 2.0)])
def test_a_crowd_that_starts_together_is_near_the_bound(nodes: int, mib: int, most: float) -> None:
    swarm = Swarm(Model(nodes=nodes, mib=mib)).run()
    assert everybody_who_lives_has_everything(swarm)
    assert 1.0 <= ratio(swarm) <= most
    assert swarm.tracker.sent <= 1.3 * mib


@pytest.mark.parametrize("fault", ["die", "late", "churn", "hung", "corrupt"])
def test_a_third_of_the_nodes_may_fail(fault: str) -> None:
    swarm = Swarm(Model(nodes=24, mib=48, **{fault: 0.3})).run()  # type: ignore[arg-type]
    assert everybody_who_lives_has_everything(swarm)
    assert (sum(node.dead for node in swarm.nodes.values()) > 0) == (fault in ("die", "churn"))
    assert (swarm.wrong > 0) == (fault == "corrupt")
    assert swarm.tracker.sent <= 4 * 48


def test_who_knows_that_a_peer_corrupts_takes_each_bad_peer_once() -> None:
    swarm = Swarm(Model(nodes=24, mib=48, corrupt=0.25)).run()
    bad = sum(node.corrupt for node in swarm.nodes.values())
    assert bad == 6
    assert all(len(node.banned) <= bad for node in swarm.nodes.values())
    assert swarm.wrong >= sum(len(node.banned) for node in swarm.nodes.values()) > 0


def test_neighbours_are_preferred_to_other_zones() -> None:
    """Three zones: without a preference two thirds of what peers send would cross."""
    swarm = Swarm(Model(nodes=24, mib=48, zones=3)).run()
    assert everybody_who_lives_has_everything(swarm)
    assert 0 < swarm.crossed < 0.5 * sum(node.sent for node in swarm.nodes.values())


@pytest.mark.parametrize("nodes", [4, 12])
def test_shares_of_links_are_nearly_exact(nodes: int) -> None:
    nearly, exact = (ratio(Swarm(Model(nodes=nodes, mib=48, exact=exact)).run()) for exact in (False, True))
    assert abs(nearly - exact) <= 0.15 * exact


def test_no_byte_is_made_up() -> None:
    """What was received was sent by somebody, once for each piece of each node and again for the duplicates."""
    swarm = Swarm(Model(nodes=12, mib=32)).run()
    sent = swarm.tracker.sent + sum(node.sent for node in swarm.nodes.values())
    assert sent >= 12 * 32
    assert all(link.used <= 1.01 * link.rate for node in swarm.nodes.values() for link in (node.up, node.down))


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (Swarm(Model(nodes=8, mib=16, seed=3)).run() for _ in range(2))
    assert [n.finished for n in first.nodes.values()] == [n.finished for n in second.nodes.values()]

"""A swarm on virtual time: how long nodes take, against what the links allow at best. See docs/tuning.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from plot import lines
from swarm import Model, Swarm

from p2pregistry.pull.commands import Limits


def measure(model: Model) -> tuple[Swarm, dict[str, float]]:
    """One run as numbers: seconds, ratios to the bound, shares of the image."""
    began = time.process_time()
    swarm = Swarm(model).run()
    times = sorted(node.finished - node.begun for node in swarm.nodes.values() if node.finished >= 0)
    firsts = sorted(node.first - node.begun for node in swarm.nodes.values() if node.first >= 0)
    honest = sum(not node.dead for node in swarm.nodes.values())
    peers = sum(node.sent for node in swarm.nodes.values())
    found: dict[str, float] = {
        "nodes": model.nodes,
        "finished": len(times),
        "unfinished": honest - len(times),
        "bound": model.bound,
        "tracker_images": swarm.tracker.sent / model.mib,
        "tracker_share": swarm.tracker.sent / max(1, swarm.tracker.sent + peers),
        "duplicates": swarm.duplicate / max(1, model.mib * model.nodes),
        "crossed_images": swarm.crossed / model.mib,
        "wrong_pieces": swarm.wrong,
        "events": swarm.clock.events,
        "cpu": time.process_time() - began,
    }
    for name, values in (("time", times), ("first", firsts)):
        for label, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            if values:
                value = values[min(len(values) - 1, int(part * len(values)))]
                found[f"{name}_{label}"] = value
                if name == "time":
                    found[f"ratio_{label}"] = value / model.bound
    return swarm, found


def plot_curves(swarm: Swarm, file: Path) -> None:
    """How many nodes had everything, over time."""
    times = sorted(node.finished - node.begun for node in swarm.nodes.values() if node.finished >= 0)
    points = [(0.0, 0.0), *((at, 100.0 * (n + 1) / len(swarm.nodes)) for n, at in enumerate(times))]
    bound = [(swarm.model.bound, 0.0), (swarm.model.bound, 100.0)]
    name = f"{swarm.model.nodes} nodes"
    file.write_text(lines("Nodes that have the image", "seconds", "% of nodes", {name: points, "bound": bound}))


def plot_tracker(model: Model, sizes: list[int], file: Path) -> None:
    """What the tracker sends, over the number of nodes."""
    found = [measure(dataclasses.replace(model, nodes=nodes))[1] for nodes in sizes]
    points = [(run["nodes"], run["tracker_images"]) for run in found]
    file.write_text(lines("What the tracker sends", "nodes", "images", {"tracker": points}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    for option in dataclasses.fields(Model):
        if option.name != "limits":
            kind = type(option.default)
            parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="one of the plan's numbers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="completion curve, SVG")
    parser.add_argument("--plot-tracker", type=Path, metavar="FILE", help="bytes of the tracker against --sizes, SVG")
    parser.add_argument("--sizes", default="5,10,20,50,100", help="numbers of nodes for --plot-tracker")
    given = vars(parser.parse_args())
    limits, as_json = Limits(), given.pop("json")
    for text in given.pop("limit"):
        name, _, value = text.partition("=")
        kind = type(getattr(limits, name))
        limits = dataclasses.replace(limits, **{name: kind(value)})
    plot, against, sizes = given.pop("plot"), given.pop("plot_tracker"), given.pop("sizes")
    model = Model(**given, limits=limits)
    if against is not None:
        plot_tracker(model, [int(size) for size in sizes.split(",")], against)
        return
    swarm, found = measure(model)
    if plot is not None:
        plot_curves(swarm, plot)
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:16} {value:.4g}" if isinstance(value, float) else f"{name:16} {value}")


if __name__ == "__main__":
    main()

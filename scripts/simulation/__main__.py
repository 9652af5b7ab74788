"""A swarm on virtual time: how long nodes take, against what the links allow at best. See docs/tuning.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from plot import Points, lines
from swarm import Model, Swarm

from p2pregistry.pull.commands import Limits

#: Options that stand for numbers of the plan.
SHORT = {
    "window": ("window", "crowd_window"),
    "run": ("run",),
    "horizon": ("horizon",),
    "sources": ("sources",),
    "hedge": ("late_factor",),
    "least": ("least",),
}


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
    halves = sorted(node.half - node.begun for node in swarm.nodes.values() if node.half >= 0)
    for name, values in (("time", times), ("first", firsts), ("half", halves)):
        for label, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            if values:
                value = values[min(len(values) - 1, int(part * len(values)))]
                found[f"{name}_{label}"] = value
                if name == "time":
                    found[f"ratio_{label}"] = value / model.bound
    return swarm, found


def plot_curves(runs: Sequence[Swarm], file: Path) -> None:
    """How many nodes had everything, over time, one curve for each run."""
    curves: dict[str, Points] = {}
    for swarm in runs:
        bound, nodes = swarm.model.bound, swarm.model.nodes
        times = sorted(node.finished - node.begun for node in swarm.nodes.values() if node.finished >= 0)
        points = [(at / bound, 100.0 * (n + 1) / nodes) for n, at in enumerate(times)]
        curves[f"{nodes} nodes"] = [(0.0, 0.0), (points[0][0], 0.0), *points[:: max(1, len(points) // 200)], points[-1]]
    curves["bound"] = [(1.0, 0.0), (1.0, 100.0)]
    file.write_text(lines("Nodes that have the image", "time / bound", "% of nodes", curves))


def plot_tracker(runs: Sequence[Swarm], file: Path) -> None:
    """What the tracker sends, over the number of nodes."""
    points = [(float(swarm.model.nodes), swarm.tracker.sent / swarm.model.mib) for swarm in runs]
    file.write_text(lines("What the tracker sends", "nodes", "images", {"tracker": points}))


def arguments() -> argparse.ArgumentParser:
    """An option for each field of the model; those of the plan's numbers that are tried most have one of their own."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    for option in dataclasses.fields(Model):
        name = f"--{option.name.replace('_', '-')}"
        if isinstance(option.default, bool):
            parser.add_argument(name, action="store_true")
        elif option.name == "seeding":
            parser.add_argument(name, choices=("own", "random"), default=option.default)
        elif option.name != "limits":
            parser.add_argument(name, type=type(option.default), default=option.default)
    for short, limits in SHORT.items():
        parser.add_argument(f"--{short}", metavar="VALUE", help=f"the plan's {', '.join(limits)}")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="any of the plan's numbers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="completion curves for --sizes, SVG")
    parser.add_argument("--plot-tracker", type=Path, metavar="FILE", help="bytes of the tracker against --sizes, SVG")
    parser.add_argument("--sizes", default="", help="numbers of nodes for the plots")
    return parser


def main() -> None:
    given = vars(arguments().parse_args())
    limits, as_json = Limits(), given.pop("json")
    numbers = [text.partition("=")[::2] for text in given.pop("limit")]
    for short, names in SHORT.items():
        value = given.pop(short)
        numbers += [(name, value) for name in names if value is not None]
    for name, value in numbers:
        limits = dataclasses.replace(limits, **{name: type(getattr(limits, name))(value)})
    plot, against, sizes = given.pop("plot"), given.pop("plot_tracker"), given.pop("sizes")
    model = Model(**given, limits=limits)
    runs: list[Swarm] = []
    for nodes in [int(size) for size in (sizes or str(model.nodes)).split(",")]:
        swarm, found = measure(dataclasses.replace(model, nodes=nodes))
        runs.append(swarm)
        if as_json:
            print(json.dumps(found), flush=True)
        else:
            for name, number in found.items():
                print(f"{name:16} {number:.6g}")
    if plot is not None:
        plot_curves(runs, plot)
    if against is not None:
        plot_tracker(runs, against)


if __name__ == "__main__":
    main()

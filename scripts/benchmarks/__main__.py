"""scripts/bench: what a node does, beside others that do the same, in one run.

Machines differ and are never quite idle, so what counts are ratios of measurements that followed each other at once:
each round measures everybody, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys

import measure
from measure import say
from processes import BenchError
from report import Report

#: Each bench is a module with ``arguments(parser)`` and ``run(args, report)``, which raises BenchError.
BENCHES = {
    "warm": ("single", "a blob that the node holds, to curl"),
    "manifest": ("single", "a manifest by tag, again and again"),
    "cold": ("single", "a blob that one other node holds, through a new node"),
    "small": ("small", "small images through a new node, and directly"),
    "memory": ("memory", "what a node takes while many pull from it and it pulls"),
    "swarm": ("swarm", "many nodes with shaped links that pull the same image at once; needs root"),
    "pieces": ("pieces", "pieces from one process to another, plain and over TLS"),
    "push": ("push", "a layer pushed to the tracker"),
    "tags": ("tags", "lists of many tags and of many repositories"),
    "feed": ("feed", "tags that move, and nodes that hear of it"),
    "ipfs": ("ipfs", "a blob from IPFS gateways and daemons, and from a peer"),
    "lookup": ("lookup", "who holds a blob, through the DHT"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    asked = next((word for word in sys.argv[1:] if word in BENCHES), None)
    bench = None
    for name, (module, text) in BENCHES.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--runs", type=int, help="rounds")
        if name == asked:  # only what is needed: some load heavy libraries
            bench = importlib.import_module(module)
            bench.arguments(command)
    args = parser.parse_args()
    assert bench is not None  # argparse accepts nothing else
    report = Report(args.bench, measure.machine())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    try:
        bench.run(args, report)
    except BenchError as err:
        say(f"scripts/bench: {err}")
        return 1
    except KeyboardInterrupt:
        say("scripts/bench: interrupted; what it had started is stopped")
        return 130
    report.machine["load_after"] = round(os.getloadavg()[0], 2)
    print(report.as_json() if args.json else report.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A stand-in for the daemons that ``up`` starts: says that it is ready, then waits for SIGTERM or its parent's end.

Run as ``python -m p2pregistry.testing.standin tracker|node run --config F --ready-fd N --parent-fd N``. What it does is
scripted by files in the folder of its settings: ``<name>.fail`` makes it end with status 3 in place of getting ready,
``<name>.deaf`` makes it ignore SIGTERM. Its start and its end are lines in ``events`` there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tomllib
from pathlib import Path


def main() -> int:
    """Behave as a daemon does toward the process that starts it."""
    options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    config = Path(options["--config"])
    name, folder = config.stem, config.parent
    settings = tomllib.loads(config.read_text(encoding="utf-8"))

    def event(text: str) -> None:
        with (folder / "events").open("a", encoding="utf-8") as file:
            file.write(f"{text} {name}\n")

    if (folder / f"{name}.fail").exists():
        sys.stderr.write("the stand-in was told to fail\n")
        return 3
    wake, woken = os.pipe()
    if (folder / f"{name}.deaf").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os.write(woken, b"x") and None)
    port = settings["registry" if sys.argv[1] == "tracker" else "pull"]["port"]
    facts = {
        "url": f"http://127.0.0.1:{port}",
        "peer_url": f"http://127.0.0.1:{settings['peer']['port']}",
        "metrics_url": f"http://127.0.0.1:{settings['metrics']['port']}",
        "pid": os.getpid(),
        "data_dir": settings[sys.argv[1]]["data_dir"],
        "peer_id": name,
        "libp2p": [],
        "root_key": "k4.public.AAAA",
    }
    event("start")
    os.write(int(options["--ready-fd"]), json.dumps(facts).encode() + b"\n")
    os.close(int(options["--ready-fd"]))
    select.select([wake, int(options["--parent-fd"])], [], [])
    event("stop")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A stand-in for the daemons that ``up`` starts: says that it is ready, then waits for SIGTERM or its parent's end.

Run as ``python -m p2pregistry.testing.standin tracker|node run --config F --ready-fd N --parent-fd N``. What it does is
scripted by files in the folder of its settings: ``<name>.fail`` makes it end with status 3 in place of getting ready,
``<name>.deaf`` makes it ignore SIGTERM. Its start and its end are lines in ``events`` there.
"""

from __future__ import annotations

import http.server
import json
import os
import select
import signal
import socketserver
import sys
import threading
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
    if sys.argv[1] == "tracker":
        _give_tokens(Path(facts["data_dir"]))
    join_file = Path(settings["tracker"].get("join_file", "none"))
    if join_file.exists():
        event(f"join {oct(join_file.stat().st_mode & 0o777)} {join_file.read_text().strip()}")
    event("start")
    os.write(int(options["--ready-fd"]), json.dumps(facts).encode() + b"\n")
    os.close(int(options["--ready-fd"]))
    select.select([wake, int(options["--parent-fd"])], [], [])
    event("stop")
    return 0


def _give_tokens(data: Path) -> None:
    """Answer each request on the admin socket with a join token."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            uses = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["uses"]
            body = json.dumps({"token": f"token-for-{uses}"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library has it
            """Says nothing."""

    data.mkdir(parents=True, exist_ok=True)
    (data / "admin.sock").unlink(missing_ok=True)
    server = socketserver.UnixStreamServer(str(data / "admin.sock"), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

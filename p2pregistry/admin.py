"""Ask a running daemon something over its admin socket: HTTP on a Unix socket that only its owner can open."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from p2pregistry.errors import LocalError

TIMEOUT = 10.0  # seconds


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, target: str) -> Any:
    """The JSON document at ``target`` of the daemon listening on the socket ``path``. Raises LocalError."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise LocalError(f"the daemon at {path} answered {answer.status} to {target}")
        return json.loads(body)
    except (FileNotFoundError, ConnectionRefusedError) as err:
        raise LocalError(f"nothing runs with the data directory {path.parent} (no answer at {path.name})") from err
    except PermissionError as err:
        raise LocalError(f"{path} belongs to another user") from err
    except (OSError, http.client.HTTPException, ValueError) as err:
        raise LocalError(f"the daemon at {path} did not answer: {err}") from err
    finally:
        connection.close()

"""Ask a running daemon something over its admin socket: HTTP on a Unix socket that only its owner can open."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pregistry.errors import LocalError

TIMEOUT = 10.0  # seconds


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, target: str) -> Any:
    """The JSON document at ``target`` of the daemon listening on the socket ``path``. Raises LocalError."""
    return send(path, "GET", target)


def send(
    path: Path, method: str, target: str, document: object = None, *, timeout: float | None = TIMEOUT, actor: str = ""
) -> Any:
    """Ask the daemon to do something, with a JSON ``document`` if it is not None; what it answers,
    an empty one where it answers nothing.

    ``timeout``: seconds without an answer, None: wait for ever. ``actor``: who asks, for the audit log. Raises
    LocalError, with the daemon's own words where it refused.
    """
    connection = _UnixConnection(path, timeout)
    headers = {"X-Operator": quote(actor)} if actor else {}
    if document is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, target, None if document is None else json.dumps(document), headers)
        answer = connection.getresponse()
        body = answer.read()
        if not 200 <= answer.status < 300:
            raise LocalError(_refusal(path, target, answer.status, body))
        return json.loads(body) if body else {}
    except (FileNotFoundError, ConnectionRefusedError) as err:
        raise LocalError(f"nothing runs with the data directory {path.parent} (no answer at {path.name})") from err
    except PermissionError as err:
        raise LocalError(f"{path} belongs to another user") from err
    except (OSError, http.client.HTTPException, ValueError) as err:
        raise LocalError(f"the daemon at {path} did not answer: {err}") from err
    finally:
        connection.close()


def _refusal(path: Path, target: str, status: int, body: bytes) -> str:
    """What the daemon said, or else that it refused."""
    try:
        return str(json.loads(body)["errors"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the daemon at {path} answered {status} to {target}"

"""``/livez``, ``/readyz`` and ``/metrics`` of both programs; on the metrics port, loopback unless configured."""

from __future__ import annotations

from collections.abc import Callable

from p2pregistry import observe
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.serve.http import Handler, Request, Response

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


def health(ready: Callable[[], str | None]) -> Handler:
    """The handler. ``ready`` gives the reason why the program is not ready, None if it is."""

    async def handle(request: Request) -> Response:
        if request.path not in ("/livez", "/readyz", "/metrics"):
            raise NotFound("NAME_UNKNOWN", "here are /livez, /readyz and /metrics")
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "only GET and HEAD", headers={"Allow": "GET, HEAD"})
        if request.path == "/metrics":
            kind, body = observe.exposition()
            return Response(200, [("Content-Type", kind)], body)
        reason = ready() if request.path == "/readyz" else None
        if reason is not None:
            return Response(503, [_TEXT, ("Retry-After", "1")], f"not ready: {reason}\n".encode())
        return Response(200, [_TEXT], b"ok\n")

    return handle

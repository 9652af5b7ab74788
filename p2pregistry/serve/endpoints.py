"""``/livez``, ``/readyz`` and ``/metrics`` of both programs; on the metrics port, loopback unless configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pregistry import observe
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.serve.http import Handler, Request, Response

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


def health(ready: Callable[[], str | None], parts: Callable[[], Mapping[str, str]] = dict) -> Handler:
    """The handler. ``ready`` gives the reason why the program is not ready, None if it is; ``parts`` what is said of
    each of its parts."""

    async def handle(request: Request) -> Response:
        if request.path not in ("/livez", "/readyz", "/metrics"):
            raise NotFound("NAME_UNKNOWN", "here are /livez, /readyz and /metrics")
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "only GET and HEAD", headers={"Allow": "GET, HEAD"})
        if request.path == "/metrics":
            kind, body = observe.exposition()
            return Response(200, [("Content-Type", kind)], body)
        if request.path == "/livez":
            return Response(200, [_TEXT], b"ok\n")
        reason = ready()
        lines = "".join(f"{name}: {state}\n" for name, state in parts().items())
        if reason is not None:
            return Response(503, [_TEXT, ("Retry-After", "1")], f"not ready: {reason}\n{lines}".encode())
        return Response(200, [_TEXT], f"ok\n{lines}".encode())

    return handle

"""The registry listener's first turn: which handler a path belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from p2pregistry.serve.http import Handler, Request, Response


def by_path(handlers: Mapping[str, Handler], other: Handler) -> Handler:
    """A handler that leaves each request to the one of its path: ``/token`` is that path and no other, ``/api/`` is all
    that begins so. ``other`` has the rest."""
    whole = {path: handler for path, handler in handlers.items() if not path.endswith("/")}
    below = tuple((path, handler) for path, handler in handlers.items() if path.endswith("/"))

    async def handle(request: Request) -> Response:
        found = whole.get(request.path)
        if found is None:
            found = next((handler for path, handler in below if request.path.startswith(path)), other)
        return await found(request)

    return handle

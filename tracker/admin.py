"""The admin socket: what the tracker tells its operator, and does for him.

HTTP with JSON over a Unix socket in the data directory that only the tracker's user may open (mode 0600): whoever can
open it could read the keys beside it too, so nothing more is asked. Each area gives its routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import unquote

import msgspec

from p2pregistry.errors import NotFound, RequestError
from p2pregistry.serve.http import Request, Response
from tracker.catalog.trail import By

#: Gives what is answered, as anything that msgspec can write as JSON. Refuses with RegistryError.
AdminHandler = Callable[[Request], Awaitable[object]]
#: By (method, path).
Routes = Mapping[tuple[str, str], AdminHandler]
T = TypeVar("T")

#: Bytes of the largest document that is read.
_LIMIT: Final = 1 << 20


class AdminApi:
    """The handler over all routes. Two areas must not have the same one."""

    def __init__(self, *areas: Routes) -> None:
        self._routes: dict[tuple[str, str], AdminHandler] = {}
        for area in areas:
            twice = self._routes.keys() & area.keys()
            if twice:
                raise ValueError(f"there are two routes for {sorted(twice)}")
            self._routes.update(area)

    async def __call__(self, request: Request) -> Response:
        handle = self._routes.get((request.method, request.path))
        if handle is None:
            raise self._refusal(request)
        return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(await handle(request)))

    def _refusal(self, request: Request) -> RequestError:
        methods = sorted(method for method, path in self._routes if path == request.path)
        if methods:
            return RequestError("UNSUPPORTED", "this cannot be done here", headers={"Allow": ", ".join(methods)})
        paths = sorted({path for _, path in self._routes})
        return NotFound("NAME_UNKNOWN", f"here are {', '.join(paths) or 'no routes'}")


async def document(request: Request, kind: type[T]) -> T:
    """The body of a request as a ``kind``. Raises RequestError (400) that says what is wrong with it."""
    body = await request.body.read(_LIMIT)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise invalid(f"this is not the document that is wanted: {err}") from err


def wanted(request: Request, name: str) -> str:
    """A query parameter that must be there. Raises RequestError (400)."""
    value = request.param(name)
    if not value:
        raise invalid(f"the parameter {name} is missing")
    return value


def number(request: Request, name: str, default: int, most: int) -> int:
    """A query parameter between 0 and ``most``, or the default. Raises RequestError (400)."""
    text = request.param(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise invalid(f"the parameter {name} is a number from 0 to {most}")
    return int(text)


def invalid(message: str) -> RequestError:
    """The refusal of something that cannot be understood."""
    return RequestError("INVALID", message, status=400)


def operator(request: Request) -> By:
    """Who asks, for the audit log. The name is what the command line said: who may open the socket may say anything."""
    name = unquote(request.header("x-operator") or "", errors="replace")
    kept = "".join(character for character in name if character.isprintable())[:64]
    return By(f"operator:{kept}" if kept else "operator", "admin socket")

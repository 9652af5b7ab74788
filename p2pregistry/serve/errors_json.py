"""From an exception to what an HTTP client is told (OCI distribution specification, "Error Codes").

Every error answer is JSON with at least one entry in ``errors``: docker prints a parse error instead of the reason
otherwise. A client never sees a 500: what we did not foresee is 503 with an id to find it by in the log.
"""

from __future__ import annotations

import json
import math
import secrets
from http import HTTPStatus
from typing import Final

from p2pregistry.errors import RegistryError, RemoteBusy, RequestError
from p2pregistry.observe import logger
from p2pregistry.serve.http import Response

#: On every error, so that a browser which was led to one runs nothing of it and tells nobody how it got there.
SAFE: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
#: Seconds a client is asked to wait where nothing better is known.
RETRY_AFTER = 1

_log = logger(__name__)


def error_response(error: RegistryError) -> Response:
    """The answer for one of our errors. Nothing but its message, code, detail and headers goes out."""
    status = error.status if 400 <= error.status < 600 and error.status != HTTPStatus.INTERNAL_SERVER_ERROR else 503
    entry: dict[str, object] = {"code": error.code, "message": error.message}
    headers = [("Content-Type", "application/json"), *SAFE]
    if isinstance(error, RequestError):
        if error.detail is not None:
            entry["detail"] = error.detail
        headers += error.headers.items()
    if status in (429, 503) and not any(name.lower() == "retry-after" for name, _ in headers):
        after = error.retry_after if isinstance(error, RemoteBusy) else RETRY_AFTER
        # a header in whole seconds; a peer may have asked for nonsense
        headers.append(("Retry-After", str(math.ceil(min(max(after, 1), 3600)))))
    body = json.dumps({"errors": [entry]}, ensure_ascii=True, default=str).encode()
    return Response(status, headers, body)


def answer_for(error: Exception, what: str = "") -> Response:
    """The answer for any exception of a handler. ``what`` (method and path) goes to the log with the unforeseen."""
    known = _ours(error)
    if known is not None:
        return error_response(known)
    number = secrets.token_hex(6)
    _log.error("a request failed in a way nobody foresaw", id=number, request=what, exc_info=error)
    return Response(
        503,
        [("Content-Type", "application/json"), *SAFE, ("Retry-After", str(RETRY_AFTER))],
        json.dumps(
            {"errors": [{"code": "UNAVAILABLE", "message": f"this request failed; the log has it under {number}"}]}
        ).encode(),
    )


def _ours(error: Exception) -> RegistryError | None:
    """The RegistryError that an exception is or, where a nursery wrapped it, holds; None if anything else is in it.

    Of several, the caller's own mistake tells it more than the failures that came with it.
    """
    leaves = _leaves(error)
    ours = [leaf for leaf in leaves if isinstance(leaf, RegistryError)]
    if not ours or len(ours) != len(leaves):
        return None
    return next((leaf for leaf in ours if isinstance(leaf, RequestError)), ours[0])


def _leaves(error: Exception) -> list[Exception]:
    if not isinstance(error, ExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]

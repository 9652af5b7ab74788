"""What can go wrong, whose fault it is, and what a client is told.

    RegistryError
    |-- RequestError            the caller's: 4xx, an OCI error body
    |   `-- NotFound            what was asked for is not here: 404
    |-- RemoteError             another machine's: try elsewhere; a client is told 503
    |   |-- Unreachable         no answer: refused, reset, silent, cut short
    |   |   `-- NoConnection    there is nobody at the address
    |   |-- RemoteBusy          it answered 429: come back later
    |   |-- NotYet              it answered 416: it fetches the blob itself and has not got these pieces
    |   `-- BadContent          it answered with bytes or claims that do not verify
    |-- LocalError              this machine's: disk, port, database; a client is told 503
    |   `-- StorageFull         no room; a client is told 429
    `-- SettingsError           the operator's: a setting is wrong; the program does not start

A class is here because somebody catches it. Foreign errors (OSError, httpx, psycopg, lmdb, libp2p) become one of
these at the adapter that meets them, with ``from``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The error codes of the OCI distribution specification ("Error Codes") and the status each is sent with unless the
#: place that raises it says otherwise.
OCI_STATUS: Final[Mapping[str, int]] = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
}


class RegistryError(Exception):
    """The root. ``status`` and ``code`` are what an HTTP client is told; the message must hold no secret."""

    status: int = 500
    code: str = "UNAVAILABLE"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(RegistryError):
    """The caller asked for something it may not have, or in a way that cannot be understood.

    ``code`` is one of the specification's codes; ``detail`` is any JSON value that helps the caller;
    ``headers`` go out with the answer (``Allow``, ``Range``, ``WWW-Authenticate``, ``Retry-After``).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        detail: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = OCI_STATUS[code] if status is None else status
        self.detail = detail
        self.headers: Mapping[str, str] = headers or {}


class NotFound(RequestError):
    """What was asked for is not here. Stores and catalogs raise it; ``code`` says what kind of thing it was."""

    def __init__(self, code: str, message: str, *, detail: object = None) -> None:
        super().__init__(code, message, status=404, detail=detail)


class RemoteError(RegistryError):
    """Another machine failed us. Never shown to a client while any other source is left."""

    status = 503


class Unreachable(RemoteError):
    """It could not be reached, went away, or fell silent."""


class NoConnection(Unreachable):
    """There was nobody at the address: whatever else is asked there will not be answered either."""


class RemoteBusy(RemoteError):
    """It answered 429; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotYet(RemoteError):
    """It has part of the blob, but not the part that was asked for: its news say what it has."""


class BadContent(RemoteError):
    """Its bytes, table or claim do not verify: it is broken or lying."""


class LocalError(RegistryError):
    """This machine failed: disk, port, database, process."""

    status = 503


class StorageFull(LocalError):
    """There is no room for the bytes."""

    status = 429
    code = "TOOMANYREQUESTS"


class SettingsError(RegistryError):
    """A setting is missing, unknown or out of range; the message names it by its path."""

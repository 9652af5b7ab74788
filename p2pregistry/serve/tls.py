"""The certificate of the registry API, from files of the operator."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import trio

from p2pregistry.errors import LocalError
from p2pregistry.observe import logger

#: Seconds between two looks at the files of a certificate.
LOOK: Final = 2.0

_log = logger(__name__)


def server_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """From a chain and its key, PEM. Raises LocalError that names the file, never what is in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could keep us at it, and no reader expects to have to write
    context.set_alpn_protocols(["http/1.1"])
    try:
        # without a password function openssl would ask on the terminal
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except ssl.SSLError as err:
        raise LocalError(f"{cert_file} and {key_file} are no certificate with its key: {err.reason or err}") from err
    except OSError as err:
        raise LocalError(f"{err.filename or cert_file} cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise LocalError(f"{key_file} is encrypted; a key without a password is needed") from err
    return context


def _no_password() -> str:
    raise ValueError


class Certificates:
    """A certificate that is read again when its files change; connections that are open keep theirs."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Raises LocalError."""
        self._files = (cert_file, key_file)
        self._seen = self._stamp()
        self._context = server_context(*self._files)

    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._context

    async def watch(self) -> None:
        """Look at the files, for ever. A pair that does not fit together changes nothing: perhaps only one of them has
        been replaced yet."""
        while True:
            await trio.sleep(LOOK)
            stamp = await trio.to_thread.run_sync(self._stamp)
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                self._context = await trio.to_thread.run_sync(server_context, *self._files)
            except LocalError as err:
                _log.warning("a new certificate cannot be used; the old one stays", error=err.message)
            else:
                _log.info("a new certificate is in use", file=str(self._files[0]))

    def _stamp(self) -> tuple[object, ...]:
        """What changes when a file is replaced or written to."""
        found: list[object] = []
        for path in self._files:
            try:
                state = path.stat()
            except OSError:
                found.append(None)
            else:
                found += [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns]
        return tuple(found)

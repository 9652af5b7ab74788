"""Who may push: one account, shown by HTTP Basic (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hmac

from p2pregistry.errors import RequestError

#: Docker sends credentials only to a registry that challenged its ping.
CHALLENGE = 'Basic realm="p2pregistry"'


def unauthorized(message: str) -> RequestError:
    """A refusal with the challenge."""
    return RequestError("UNAUTHORIZED", message, headers={"WWW-Authenticate": CHALLENGE})


class Account:
    """The account that may push. The password may hold any character, ':' included."""

    def __init__(self, username: str, password: str) -> None:
        if not password or ":" in username:
            raise ValueError("an account needs a password, and ':' cannot stand in a username")
        self.name = username
        # Compared as one string: a wrong name takes as long as a wrong password.
        self._pair = f"{username}:{password}".encode()

    def matches(self, pair: bytes) -> bool:
        """Whether these are its name and password, joined by ':'."""
        return hmac.compare_digest(pair, self._pair)


def authenticate(account: Account | None, header: str | None) -> bool:
    """Whether an Authorization header is the account's; False if there is none.

    Raises RequestError (UNAUTHORIZED) for any other header: wrong credentials never count as none.
    """
    if header is None:
        return False
    scheme, _, encoded = header.partition(" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        pair = b""
    basic = scheme.lower() == "basic"
    if basic and pair == b":":
        return False  # what skopeo, podman and buildah send when they were challenged and have no credentials
    if not basic or account is None or not account.matches(pair):
        raise unauthorized("the credentials are not valid")
    return True

"""Who sends a request: HTTP Basic with a password or a token (RFC 7617), an access token (RFC 6750), or nobody.

Whoever guesses is turned away (``throttle``); who was right a while ago never is, and of one address only a few
passwords are looked at at once. Whether something is right is asked of the accounts each time, so that what was changed
or revoked there is wrong from then on. An access token alone is believed until it expires.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from p2pregistry.errors import BadContent, RequestError
from p2pregistry.serve.http import Request
from p2pregistry.serve.turnstile import network_of
from p2pregistry.trust.access import AccessToken, verify_access
from p2pregistry.trust.keys import KeySet
from p2pregistry.trust.secret import kind_of
from tracker.identity.base import Accounts, Identity, Rights
from tracker.permission import Shown
from tracker.throttle import Logins, Recent, Remembered

#: Passwords of one address that are looked at at once; others wait.
_AT_ONCE: Final = 4
#: Access tokens that were verified and are not verified again.
_TOKENS: Final = 2000
#: Seconds by which clocks of trackers may differ.
_SKEW: Final = 5.0
_HOST: Final = re.compile(r"[A-Za-z0-9._\-\[\]:%]{1,255}")


class WrongCredentials(RequestError):
    """What was shown is not right. ``error``: the parameter of a challenge that says so of a token (RFC 6750, 3.1)."""

    def __init__(self, message: str, error: str = "") -> None:
        super().__init__("UNAUTHORIZED", message)
        self.error = error


def parse_basic(value: str) -> tuple[str, str] | None:
    """Name and password of what stands behind ``Basic``; None where both are empty, which is what skopeo, podman and
    buildah send when they were challenged and have no credentials. Raises WrongCredentials."""
    try:
        pair = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as err:
        raise WrongCredentials("the credentials are not valid") from err
    name, colon, password = pair.partition(":")
    if not colon:
        raise WrongCredentials("the credentials are not valid")
    return (name, password) if name or password else None


class Authentication:
    """What of a request is believed. ``keys`` gives the keys that hold now, ``clock`` unix seconds."""

    def __init__(
        self,
        accounts: Accounts,
        logins: Logins,
        keys: Callable[[], KeySet],
        *,
        service: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.service = service
        self._accounts, self._logins, self._keys = accounts, logins, keys
        self._clock = clock
        self._recent = Recent()
        self._tokens: Remembered[str, AccessToken] = Remembered(_TOKENS)
        self._tokens_of: KeySet | None = None
        self._turns: dict[str, tuple[trio.Semaphore, int]] = {}

    async def authenticate(self, request: Request) -> Identity | None:
        """Who sends it, by Basic; None if it shows nothing. For everything but the registry API: an access token is
        good only there. Raises WrongCredentials, or RequestError (TOOMANYREQUESTS)."""
        header = request.header("authorization")
        if header is None:
            return None
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            raise WrongCredentials("the credentials are not valid")
        pair = parse_basic(value)
        if pair is None:
            return None
        identity = await self.login(*pair, request.client)
        request.account = identity.actor
        return identity

    async def shown(self, request: Request) -> Shown:
        """The same for the registry API, where an access token counts too."""
        scheme, _, value = (request.header("authorization") or "").partition(" ")
        if scheme.lower() == "bearer":
            token = self._access(value.strip())
            request.account = token.subject
            return Shown(await self._accounts.rights(None), None, token)
        identity = await self.authenticate(request)
        return Shown(await self._accounts.rights(identity), identity)

    async def login(self, name: str, secret: str, address: str) -> Identity:
        """Whose name and password, or token, these are. Raises WrongCredentials, RequestError (TOOMANYREQUESTS) or
        LocalError."""
        # nobody guesses 256 random bits: a token is not counted, and does not wait for those who guess passwords; but
        # what is looked at as a password, of whatever form, is
        if kind_of(secret) in ("pat", "robot"):
            identity = await self._accounts.verify(name, secret)
        else:
            identity = await self._password(name, secret, address)
        if identity is None:
            raise WrongCredentials("the credentials are not valid")
        return identity

    async def _password(self, name: str, secret: str, address: str) -> Identity | None:
        if self._recent.knows(name, secret):
            identity = await self._accounts.verify(name, secret)
            if identity is not None:
                return identity
            self._recent.forget(name, secret)
        self._logins.check(address, name)
        async with self._turn(network_of(address)):
            if not self._recent.knows(name, secret):  # meanwhile another request may have found out
                self._logins.check(address, name)
            identity = await self._accounts.verify(name, secret)
        if identity is None:
            await self._logins.failed(address, name)
            return None
        self._recent.add(name, secret)
        self._logins.passed(address, name)
        return identity

    async def rights(self, shown: Shown) -> Rights:
        """For lists: the rights of who has an access token, as they are now, within the scopes of the personal or robot
        token that it was asked for with."""
        token = shown.token
        if token is None or token.account is None:
            return shown.rights
        return await self._accounts.rights(Identity(token.account, token.subject, False, None, token.within))

    @asynccontextmanager
    async def _turn(self, network: str) -> AsyncIterator[None]:
        turns, waiting = self._turns.get(network, (trio.Semaphore(_AT_ONCE), 0))
        self._turns[network] = (turns, waiting + 1)
        try:
            async with turns:
                yield
        finally:
            _, waiting = self._turns.pop(network)
            if waiting > 1:
                self._turns[network] = (turns, waiting - 1)

    def _access(self, text: str) -> AccessToken:
        keys, now = self._keys(), self._clock()
        if keys is not self._tokens_of:
            self._tokens.clear()
            self._tokens_of = keys
        token = self._tokens.get(text)
        if token is None:
            try:
                token = verify_access(keys, text, audience=self.service, now=now, skew=_SKEW)
            except BadContent as err:
                raise WrongCredentials(err.message, "invalid_token") from err
            self._tokens.put(text, token, token.expires - now + _SKEW)
        if now - _SKEW >= token.expires:
            raise WrongCredentials("an access token has expired", "invalid_token")
        return token


def realm(request: Request, public_url: str | None) -> str:
    """The address of the token endpoint as this client can reach it: absolute, or clients cannot use it."""
    if public_url is not None:
        return f"{public_url.rstrip('/')}/token"
    host = request.header("host") or ""
    # it goes into a header between quotation marks
    return f"{request.scheme}://{host if _HOST.fullmatch(host) else 'localhost'}/token"


def challenge(where: str, service: str, scope: str = "", error: str = "") -> str:
    """What stands in WWW-Authenticate. containerd takes the scope from it, and forgets a token that it has only where
    there is an ``error``."""
    parts = [f'realm="{where}"', f'service="{service}"']
    parts += [f'scope="{scope}"'] if scope else []
    parts += [f'error="{error}"'] if error else []
    return "Bearer " + ",".join(parts)

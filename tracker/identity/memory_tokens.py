"""The tokens of ``MemoryAccounts``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from p2pregistry.globs import moved
from p2pregistry.trust.access import Scope
from p2pregistry.trust.secret import hash_secret, new_secret
from tracker.catalog.trail import By
from tracker.identity.base import HINT, MOST_REFRESH, PREFIXES, Account, NewToken, Token, TokenKind


@dataclass(slots=True)
class Given:
    """A token; ``account_id`` names whose it is, ``parent`` the token that a refresh token was asked for with."""

    token: Token
    account_id: int
    hash: bytes
    parent: int | None = None


class MemoryTokens:
    """All that were given out. ``now``: the time, as a database tells it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._given: dict[int, Given] = {}

    def give(
        self,
        kind: TokenKind,
        account: Account,
        name: str,
        by: By,
        scopes: tuple[Scope, ...] | None,
        lifetime: float | None,
        parent: int | None = None,
    ) -> NewToken:
        """A new one."""
        secret, now, number = new_secret(PREFIXES[kind]), self._now(), len(self._given) + 1
        expires = None if lifetime is None else now + timedelta(seconds=lifetime)
        token = Token(number, kind, account.name, name, secret[-HINT:], scopes, now, by.actor, expires, None, None)
        self._given[number] = Given(token, account.id, hash_secret(secret), parent)
        if kind == "refresh":
            for one in [one for one in self._good_of(account.id) if one.token.kind == kind][:-MOST_REFRESH]:
                one.token = replace(one.token, revoked=now)
        return NewToken(token, secret)

    def good(self, number: int) -> Given | None:
        """The token of this number, if it was neither revoked nor has expired, nor what it was asked for with."""
        given = self._given.get(number)
        if given is None or given.token.revoked is not None:
            return None
        if given.token.expires is not None and given.token.expires <= self._now():
            return None
        return given if given.parent is None or self.good(given.parent) is not None else None

    def use(self, secret: str) -> Given | None:
        """The good token with this secret; that it was used is noted."""
        hashed = hash_secret(secret)
        number = next((number for number, given in self._given.items() if given.hash == hashed), 0)
        given = self.good(number)
        if given is not None:
            given.token = replace(given.token, last_used=self._now())
        return given

    def _good_of(self, account_id: int) -> list[Given]:
        mine = (number for number, given in self._given.items() if given.account_id == account_id)
        return [given for given in map(self.good, mine) if given is not None]

    def count(self, account_id: int) -> int:
        """The good ones of an account that are not refresh tokens."""
        return sum(given.token.kind != "refresh" for given in self._good_of(account_id))

    def of(self, account_id: int, kind: TokenKind | None) -> list[Token]:
        """Newest first."""
        mine = [given.token for given in reversed(self._given.values()) if given.account_id == account_id]
        return [token for token in mine if kind is None or token.kind == kind]

    def revoke(self, account_id: int, number: int) -> bool:
        """False if it is not the account's, or was revoked before."""
        given = self._given.get(number)
        if given is None or given.account_id != account_id or given.token.revoked is not None:
            return False
        given.token = replace(given.token, revoked=self._now())
        return True

    def end_sessions(self, account_id: int) -> None:
        """Revoke its refresh tokens."""
        for token in self.of(account_id, "refresh"):
            self.revoke(account_id, token.id)

    def drop(self, account_id: int) -> None:
        """The account is gone: nobody has its tokens."""
        for given in self._given.values():
            if given.account_id == account_id:
                given.account_id, given.token = 0, replace(given.token, revoked=self._now())

    def rename(self, name: str, to: str) -> None:
        """The account, and the namespace that scopes name, is called ``to`` now."""
        for given in self._given.values():
            scopes = given.token.scopes
            if scopes is not None:
                scopes = tuple(replace(scope, name=moved(scope.name, name, to)) for scope in scopes)
            account = to if given.token.account == name else given.token.account
            given.token = replace(given.token, scopes=scopes, account=account)

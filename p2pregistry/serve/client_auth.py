"""Access tokens of a node's local clients, where the node asks for them (``pull.require_client_auth``).

A client gets a token from the tracker, for this node and for pulling only (audience ``node:<peer id>``); it is verified
here without asking anybody. What it allows comes on top of what the node itself may pull.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2pregistry.errors import BadContent, RequestError, Unreachable
from p2pregistry.serve.http import Request
from p2pregistry.trust.access import AccessToken, verify_access
from p2pregistry.trust.keys import KeySet

#: Tokens that are remembered, so that each is verified once.
_REMEMBERED: Final = 4096


class ClientAuth:
    """``keys``: the tracker's, None while none are known; ``now``: unix seconds by the tracker's clock; ``realm``: the
    tracker's token URL, "" while it is not known."""

    def __init__(
        self, peer_id: str, keys: Callable[[], KeySet | None], now: Callable[[], float], realm: Callable[[], str]
    ) -> None:
        self._service = f"node:{peer_id}"
        self._keys, self._now, self._realm = keys, now, realm
        self._of: KeySet | None = None
        self._verified: dict[str, AccessToken] = {}

    def allows(self, request: Request, repository: str) -> bool:
        """Whether the request shows a good token that allows to pull the repository."""
        try:
            token = self._token(request)
        except BadContent:
            return False
        return token is not None and token.allows("repository", repository, "pull")

    def check(self, request: Request, repository: str | None) -> None:
        """Raises RequestError (UNAUTHORIZED) with a challenge unless a good token is shown that allows to pull the
        repository; ``None``: any good token will do. It says nothing about whether there is such a repository."""
        try:
            token = self._token(request)
        except BadContent as err:
            raise self._challenge(repository, "invalid_token") from err
        if token is None:
            raise self._challenge(repository)
        if repository is not None and not token.allows("repository", repository, "pull"):
            raise self._challenge(repository, "insufficient_scope")

    def _token(self, request: Request) -> AccessToken | None:
        """None where none is shown. Raises BadContent."""
        kind, _, text = (request.header("authorization") or "").partition(" ")
        if kind.lower() != "bearer":
            return None
        keys = self._keys()
        if keys is None:
            raise BadContent("no key set to verify a token with")
        if keys is not self._of or len(self._verified) >= _REMEMBERED:
            self._verified.clear()  # a key may have been revoked
            self._of = keys
        token = self._verified.get(text)
        now = self._now()
        if token is None or not token.issued <= now < token.expires:
            token = self._verified[text] = verify_access(keys, text.strip(), audience=self._service, now=now)
        return token

    def _challenge(self, repository: str | None, error: str = "") -> RequestError | Unreachable:
        realm = self._realm()
        if not realm:
            return Unreachable("clients need a token here, and where to get one is not known: the tracker is away")
        said = [f'realm="{realm}"', f'service="{self._service}"']
        if repository is not None:
            said.append(f'scope="repository:{repository}:pull"')
        if error:
            said.append(f'error="{error}"')
        return RequestError(
            "UNAUTHORIZED",
            "clients of this node show a token",
            headers={
                "WWW-Authenticate": "Bearer " + ",".join(said),
                "Docker-Distribution-Api-Version": "registry/2.0",
            },
        )

"""Who a node is by an identity token (OpenID Connect): a Kubernetes service account's, for one.

The token is a JWT of an issuer that the operator named, for an audience that is ours alone, of a subject that he
allows. Its signature is RS256 or ES256 and nothing else, by a key of the issuer's published set. That set is fetched
when there is none yet, when a token names a key that is not in it, and once an hour; strangers can make us ask, so that
happens at most every few seconds.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import joserfc.errors
import msgspec
import trio
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from p2pregistry.errors import LocalError, RegistryError, RemoteError, RequestError, Unreachable
from p2pregistry.globs import matches_any
from p2pregistry.observe import logger

#: The longest identity token and the largest key set that are looked at, bytes.
MAX_ID_TOKEN: Final = 16 << 10
MAX_KEYS: Final = 1 << 20
#: Seconds by which the clocks of issuer and tracker may differ.
LEEWAY: Final = 60.0
#: Seconds between two questions for keys, at least; after which a set is fetched anew; and that a fetch may take.
PAUSE: Final = 10.0
FRESH: Final = 3600.0
TIMEOUT: Final = 10.0

_ALGORITHMS: Final = ["RS256", "ES256"]
#: Characters of the modulus of an RSA key of 2048 bits: shorter ones are not for signing.
_LEAST_MODULUS: Final = 342
_log = logger(__name__)

Key = RSAKey | ECKey
Keys = Mapping[str, Key]


@dataclass(frozen=True, slots=True)
class Rules:
    """Whose tokens count: those of this issuer for this audience, of subjects that one of the globs covers."""

    issuer: str
    audience: str
    subjects: tuple[str, ...]


def parse_keys(data: bytes) -> dict[str, Key]:
    """The keys of a JWK set that can sign for us, by their ids; others are left out. Raises RemoteError."""
    try:
        found = msgspec.json.decode(data)
        listed = found["keys"]
        if not isinstance(listed, list):
            raise TypeError("no list")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as err:
        raise RemoteError("the identity provider's keys are no JWK set") from err
    keys: dict[str, Key] = {}
    for raw in listed:
        key = _usable(raw)
        if key is not None and key.kid is not None:
            keys[key.kid] = key
    return keys


def _usable(raw: Any) -> Key | None:
    if not isinstance(raw, dict) or not isinstance(raw.get("kid"), str) or raw.get("use", "sig") != "sig":
        return None
    try:
        if raw.get("kty") == "RSA" and len(raw["n"]) >= _LEAST_MODULUS:
            return RSAKey.import_key(raw)
        if raw.get("kty") == "EC" and raw["crv"] == "P-256":
            return ECKey.import_key(raw)
    except (joserfc.errors.JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None  # one key that is broken says nothing of the others
    return None


def subject_of(claims: Mapping[str, Any], rules: Rules, now: float) -> str:
    """The subject of a token whose signature is good, at ``now`` (unix seconds). Raises RequestError (DENIED)."""
    audience, subject = claims.get("aud"), claims.get("sub")
    if claims.get("iss") != rules.issuer:
        raise _refused("the identity token is of another issuer than the tracker trusts")
    if rules.audience != audience and not (isinstance(audience, list) and rules.audience in audience):
        raise _refused(f"the identity token is not for the audience {rules.audience}")
    expires, begins = _seconds(claims, "exp"), _seconds(claims, "nbf")
    if expires is None or expires + LEEWAY <= now:
        raise _refused("the identity token has expired, or the tracker's clock is wrong")
    if begins is not None and begins - LEEWAY > now:
        raise _refused("the identity token is not valid yet, or the tracker's clock is wrong")
    if not isinstance(subject, str) or not subject or len(subject) > 500:
        raise _refused("the identity token does not say whose it is")
    if not matches_any(rules.subjects, subject):
        shown = "".join(c for c in subject if c.isprintable())
        raise _refused(f"the tracker lets no node in as {shown}; see oidc.subjects")
    return subject


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """A time in a token; None where there is none. Raises RequestError for what is no time."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused("the identity token has a time that is no number")
    return float(value)


class IdTokens:
    """Verifies identity tokens. ``fetch`` gives the issuer's JWK set and raises RegistryError; ``clock`` gives unix
    seconds."""

    def __init__(self, rules: Rules, fetch: Callable[[], Awaitable[bytes]], clock: Callable[[], float]) -> None:
        self._rules, self._fetch, self._clock = rules, fetch, clock
        self._keys: Keys = {}
        self._asked: float | None = None
        self._failure: RegistryError | None = None
        self._lock = trio.Lock()

    async def subject(self, token: str) -> str:
        """Whose token it is. Raises RequestError (DENIED), or RemoteError where the keys cannot be had."""
        if len(token) > MAX_ID_TOKEN:
            raise _refused("the identity token is too long")
        key = await self._key(_key_id(token))
        try:
            claims = jwt.decode(token, key, algorithms=_ALGORITHMS).claims
        except (joserfc.errors.JoseError, ValueError, TypeError, RecursionError):
            # not "from": what goes wrong inside may quote the token
            raise _refused("the identity token is not signed by its issuer") from None
        return subject_of(claims, self._rules, self._clock())

    async def _key(self, name: str) -> Key:
        async with self._lock:  # one fetch at a time, whoever waits then finds its key
            since = None if self._asked is None else trio.current_time() - self._asked
            wanted = name not in self._keys or since is None or since > FRESH
            if wanted and (since is None or since >= PAUSE):
                await self._refresh()
            if name in self._keys:
                return self._keys[name]
            if self._failure is not None:
                raise RemoteError("the identity provider's keys cannot be had now") from self._failure
        raise _refused("the identity token is signed with a key that its issuer does not publish")

    async def _refresh(self) -> None:
        self._asked = trio.current_time()
        try:
            self._keys = parse_keys(await self._fetch())
            self._failure = None
        except RegistryError as err:
            self._failure = err  # what was known stays good
            _log.warning("the identity provider's keys cannot be fetched", why=err.message)


class _Head(msgspec.Struct):
    alg: str
    kid: str


def _key_id(token: str) -> str:
    """The id of the key in the head of a token. Raises RequestError (DENIED)."""
    try:
        head = msgspec.json.decode(_base64(token.partition(".")[0]), type=_Head)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise _refused("this is no identity token") from None
    if head.alg not in _ALGORITHMS:
        raise _refused("the identity token is signed in a way that is not accepted (RS256 and ES256 are)")
    return head.kid


def _base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _refused(message: str) -> RequestError:
    return RequestError("DENIED", message)


# ------------------------------------------------------------------------------------------------------ where keys are


def from_file(path: Path) -> Callable[[], Awaitable[bytes]]:
    """A fetch that reads a file, each time anew."""

    async def fetch() -> bytes:
        try:
            async with await trio.open_file(path, "rb") as file:
                return await file.read(MAX_KEYS)
        except OSError as err:
            raise LocalError(f"{path} cannot be read: {err.strerror}") from err

    return fetch


def from_url(url: str, context: ssl.SSLContext, token_file: Path | None) -> Callable[[], Awaitable[bytes]]:
    """A fetch over https, with the bearer token in ``token_file`` where the issuer wants one. No redirects, and no
    proxies of the environment."""
    import httpx

    async def fetch() -> bytes:
        headers = {"Accept": "application/jwk-set+json, application/json"}
        if token_file is not None:
            headers["Authorization"] = f"Bearer {(await from_file(token_file)()).decode('ascii', 'replace').strip()}"
        try:
            async with httpx.AsyncClient(verify=context, timeout=TIMEOUT, trust_env=False) as client:
                with trio.fail_after(TIMEOUT):
                    async with client.stream("GET", url, headers=headers) as answer:
                        if answer.status_code != 200:
                            raise RemoteError(f"{url} answered {answer.status_code}")
                        return await _read(answer.aiter_bytes())
        except (httpx.HTTPError, ssl.SSLError, trio.TooSlowError, UnicodeError) as err:
            raise Unreachable(f"{url} cannot be fetched ({type(err).__name__})") from err

    return fetch


async def _read(chunks: Any) -> bytes:
    data = b""
    async for chunk in chunks:
        data += chunk
        if len(data) > MAX_KEYS:
            raise RemoteError("the identity provider's key set is too large")
    return data

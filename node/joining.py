"""How a node joins a swarm, once, and stays in it.

With a join token: connect by TLS, and go on only if the other end has the key whose fingerprint is in the token; ask
what it says of itself, and go on only if its keys are signed by the root key in the token; then show the secret, with a
proof of this node's own key, and keep the credential that comes back. With an identity token (Kubernetes) the
tracker's key and root key are in the settings. Who has joined needs neither any more: its key is enough to renew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.membership import (
    HOW_TO_JOIN,
    MEMBERSHIP,
    Membership,
    admitted,
    check_same,
    decode,
    encode,
    next_wait,
    renewal,
    settled,
)
from node.settings import NodeSettings
from p2pregistry.errors import BadContent, LocalError, RegistryError, RemoteError, SettingsError, Unreachable
from p2pregistry.observe import logger
from p2pregistry.routing.identity import base58, peer_id_of
from p2pregistry.sessions import NONCE_PATH, read_nonce
from p2pregistry.sources.link import WrongKey
from p2pregistry.sources.tracker import Swarm
from p2pregistry.sources.wire import Client, refusal
from p2pregistry.trust.certificate import is_of
from p2pregistry.trust.join_token import MAX_JOIN_TOKEN, JoinToken, parse_join_token
from p2pregistry.trust.keys import KeySet
from p2pregistry.trust.proof import public_key_of, sign_proof
from p2pregistry.trust.records import SKEW

ENROL_PATH: Final = "/p2p/v1/enrol"
CREDENTIAL_PATH: Final = "/p2p/v1/credential"
#: Bytes of the longest answer.
_MAX_ANSWER: Final = 8 << 20
#: Seconds for which a tracker that cannot be reached is tried again when a node joins.
PATIENCE: Final = 30.0
#: The longest identity token that is sent, bytes.
_MAX_ID_TOKEN: Final = 16 << 10

_log = logger(__name__)
_T = TypeVar("_T", bound=msgspec.Struct)


class Refused(RemoteError):
    """The tracker does not let this node in; the message is its own."""


class Memory(Protocol):
    """The part of the index that is used here."""

    def get_meta(self, key: str) -> bytes | None: ...
    async def put_meta(self, key: str, value: bytes, *, rebuildable: bool = False) -> None: ...


class _Facts(msgspec.Struct):
    peer_id: str


class _Credential(msgspec.Struct):
    credential: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a tracker says of itself, of which its keys have been checked."""

    peer_id: str
    swarm: Swarm


class Door:
    """The tracker, for one who is not in yet. ``expected``: its peer id, or the fingerprint of its key. Close it."""

    def __init__(self, url: str, expected: str, key: Ed25519PrivateKey, *, timeout: float) -> None:
        self._key = key
        self._expected = expected
        self._client = Client(url, connect_timeout=timeout, head_timeout=timeout, fingerprint=expected, plain=False)
        self.url = url
        self.own = base58(peer_id_of(key))

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    async def welcome(self, root_key: str) -> Welcome:
        """What it says of itself; no secret has been sent. Raises BadContent unless its keys are signed by the root."""
        data = await self._client.get(ENROL_PATH, limit=_MAX_ANSWER)
        facts, swarm = _read(data, _Facts), _read(data, Swarm)
        if not is_of(public_key_of(facts.peer_id), self._expected):
            raise BadContent("the tracker says that it has another key than the one it has shown")
        KeySet.verify(swarm.key_set, root_key)
        return Welcome(facts.peer_id, swarm)

    async def ask(self, tracker: str, path: str, **shown: str) -> bytes:
        """Ask for a credential, with a proof for the tracker with this peer id. Raises Refused or RemoteError."""
        nonce = read_nonce(await self._post(NONCE_PATH, b""))
        proof = sign_proof(self._key, nonce, tracker)
        asked = {"peer_id": self.own, "nonce": nonce, "proof": proof, **shown}
        return await self._post(path, msgspec.json.encode(asked))

    async def _post(self, path: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with self._client.request("POST", path, headers, body=body) as answer:
            data = await answer.read(_MAX_ANSWER)
        if answer.status == 403:
            raise Refused(_words(data))
        if answer.status != 200:
            raise refusal(answer)
        return data


class Joining:
    """A node's membership, from its start on.

    ``word``: a join token as the operator typed it, None without one; ``clock``: unix seconds of this machine.
    """

    def __init__(
        self,
        settings: NodeSettings,
        memory: Memory,
        key: Ed25519PrivateKey,
        word: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._memory, self._key = settings, memory, key
        self._word, self._clock, self._chance = word, clock, chance
        self._invite: JoinToken | None = None
        self._membership: Membership | None = None
        self._hurry = trio.Event()
        #: called when this node may pull something else than before
        self.granted: Callable[[], None] = lambda: None

    @property
    def membership(self) -> Membership:
        """Once ``join`` is done."""
        assert self._membership is not None
        return self._membership

    def token(self) -> str:
        """The credential that is shown to others now."""
        return self.membership.token

    async def join(self) -> Membership:
        """Be a member: by what was kept, or else by joining. Raises SettingsError where there is nothing to join with,
        or it is of another tracker than the one that was joined; LocalError where the tracker does not let it in."""
        stored = self._memory.get_meta(MEMBERSHIP)
        self._invite = await self._read_invite(needed=stored is None)
        if stored is not None:
            known = decode(stored)
            if known.credential.peer_id != base58(peer_id_of(self._key)):
                raise SettingsError(
                    "this node has another identity key than the one it joined with; restore identity.key, or use"
                    " another data directory"
                )
            await self._keep(known if self._invite is None else check_same(known, self._invite))
        elif self._invite is None and self._settings.tracker.id_token_file is None:
            raise SettingsError(HOW_TO_JOIN)
        else:
            await self._keep(await self._enrol_patiently())
        return self.membership

    async def _read_invite(self, *, needed: bool) -> JoinToken | None:
        if self._word is not None:
            return parse_join_token(self._word)
        path = self._settings.tracker.join_file
        # what is not needed any more may be gone
        if path is None or not (needed or await trio.Path(path).exists()):
            return None
        return parse_join_token(await trio.to_thread.run_sync(read_word, Path(path)))

    async def _enrol_patiently(self) -> Membership:
        """Enrol; a tracker that does not answer may just be starting. Raises LocalError."""
        give_up = trio.current_time() + PATIENCE
        wait = 0.2
        while True:
            try:
                return await self._enrol()
            except Unreachable as err:
                if isinstance(err, WrongKey) or trio.current_time() + wait > give_up:
                    raise LocalError(_explained(err)) from err
                _log.info("the tracker cannot be reached yet", why=err.message)
            except RemoteError as err:
                raise LocalError(_explained(err)) from err
            await trio.sleep(wait)
            wait = min(wait * 2, 5.0)

    async def _enrol(self) -> Membership:
        """Raises RemoteError, or SettingsError."""
        tracker = self._settings.tracker
        if self._invite is not None:
            one = self._invite
            return await self._by(one.url, one.fingerprint, one.root_key, secret=one.secret)
        assert tracker.id_token_file is not None
        if tracker.url is None or tracker.peer_id is None or tracker.root_key is None:
            raise SettingsError(
                "$.tracker.id_token_file: needs tracker.url, tracker.peer_id and tracker.root_key, as"
                " `p2pregistry tracker node settings` prints them"
            )
        # read each time: Kubernetes writes a new one before the old one ends
        token = await trio.to_thread.run_sync(read_word, Path(tracker.id_token_file))
        return await self._by(tracker.url, tracker.peer_id, tracker.root_key, id_token=token)

    async def _by(self, url: str, expected: str, root_key: str, **shown: str) -> Membership:
        with closing(Door(url, expected, self._key, timeout=self._settings.tracker.timeout)) as door:
            welcome = await door.welcome(root_key)
            self._compare_clocks(welcome.swarm)
            data = await door.ask(welcome.peer_id, ENROL_PATH, **shown)
            token, swarm = _read(data, _Credential).credential, _read(data, Swarm)
        credential = admitted(swarm, token, root_key, door.own, self._now_there(swarm))
        _log.info("joined", tracker=url, swarm=credential.swarm, root_key=root_key)
        return Membership(url, welcome.peer_id, root_key, token, credential)

    def _now_there(self, swarm: Swarm) -> float:
        return self._clock() if swarm.time is None else swarm.time

    def _compare_clocks(self, swarm: Swarm) -> None:
        apart = self._clock() - self._now_there(swarm)
        if abs(apart) > SKEW:
            way = "ahead of" if apart > 0 else "behind"
            _log.warning(f"this machine's clock is {abs(apart):.0f} s {way} the tracker's; set one of them right")

    async def _keep(self, membership: Membership) -> None:
        await self._memory.put_meta(MEMBERSHIP, encode(membership))
        self._membership = membership

    # -------------------------------------------------------------------------------------------------------- renewing

    def hurry(self) -> None:
        """The tracker has something new for this node: renew now."""
        self._hurry.set()

    async def run(self, now: Callable[[], float]) -> None:
        """Renew for ever. ``now``: unix seconds by the tracker's clock."""
        wait = 0.0
        while True:
            due = renewal(self.membership.credential, self._chance()) - now()
            with trio.move_on_after(wait or max(0.0, due)):
                await self._hurry.wait()
            self._hurry = trio.Event()
            try:
                await self._renew(now)
                wait = 0.0
            except RegistryError as err:
                wait = next_wait(wait)
                left = self.membership.credential.expires - now()
                _log.warning("the credential cannot be renewed", why=err.message, valid_for=round(left))

    async def _renew(self, now: Callable[[], float]) -> None:
        """Raises RegistryError."""
        one, tracker = self.membership, self._settings.tracker
        try:
            url = tracker.url or one.url
            with closing(Door(url, one.peer_id, self._key, timeout=tracker.timeout)) as door:
                welcome = await door.welcome(one.root_key)
                data = await door.ask(one.peer_id, CREDENTIAL_PATH)
            token = _read(data, _Credential).credential
            time_there = now() if welcome.swarm.time is None else welcome.swarm.time
            credential = admitted(welcome.swarm, token, one.root_key, door.own, time_there)
            made = replace(one, url=url, token=token, credential=credential)
        except Refused:
            # revoked, then this is of no use either; or forgotten after a long time, then it is
            if self._invite is None and tracker.id_token_file is None:
                raise
            made = await self._enrol()
        await self._keep(made)
        if made.credential.pulls != one.credential.pulls:
            self.granted()
        _log.info("the credential has been renewed", until=made.credential.expires)


async def enter(
    settings: NodeSettings, memory: Memory, key: Ed25519PrivateKey, word: str | None
) -> tuple[NodeSettings, Joining | None]:
    """Be a member of the swarm; the settings with what was learnt by it. None where anybody is let in (peer.plain).
    Raises SettingsError, LocalError."""
    if settings.peer.plain:
        if word is not None:
            raise SettingsError("$.peer.plain: is set, so there is nothing to join with a token")
        return settings, None
    joining = Joining(settings, memory, key, word, clock=settings.clock)
    return settled(settings, await joining.join()), joining


def read_word(path: Path) -> str:
    """The token in a file. Raises SettingsError that names the file, never what is in it."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(max(MAX_JOIN_TOKEN, _MAX_ID_TOKEN) + 1).strip()
    except (OSError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path} cannot be read as a token") from err
    if not text:
        raise SettingsError(f"{path} is empty")
    return text


def _explained(err: RemoteError) -> str:
    """What a person is told of a failure to join."""
    if isinstance(err, WrongKey):
        return (
            f"joining was stopped before anything secret was sent: {err.message}. Somebody may be in the middle, or the"
            " tracker has a new key: make a new join token where the tracker is"
        )
    if isinstance(err, Refused):
        return f"the tracker does not let this node in: {err.message}"
    return f"joining failed: {err.message}"


def _read(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise BadContent("the tracker's answer to a node that joins cannot be read") from err


class _Error(msgspec.Struct):
    message: str


class _Errors(msgspec.Struct):
    errors: list[_Error]


def _words(data: bytes) -> str:
    """What the tracker says in a refusal, as far as it can be shown."""
    try:
        message = msgspec.json.decode(data, type=_Errors).errors[0].message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
        return "it does not say why"
    return "".join(c for c in message if c.isprintable())[:400]

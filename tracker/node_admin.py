"""Join tokens and nodes on the admin socket."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import msgspec

from p2pregistry.errors import BadContent, NotFound
from p2pregistry.globs import check_glob
from p2pregistry.messages import ZONE
from p2pregistry.serve.http import Request
from p2pregistry.trust.join_token import JoinToken, format_join_token
from p2pregistry.trust.proof import fingerprint, public_key_of
from tracker.admin import Routes, document, invalid, number, operator, wanted
from tracker.catalog.nodes import Grant, JoinTokenRow, NodeRow, Nodes
from tracker.catalog.trail import By
from tracker.settings import LABEL

#: Labels of one node, globs of one node, and nodes in one answer, at most.
_MOST_LABELS: Final = 16
_MOST_PULLS: Final = 50
_MOST: Final = 10_000
_SWARM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Seconds that a join token may last: 90 days.
_LONGEST: Final = 90 * 86400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node must know to find this tracker and to know it for what it is. ``url``: of the peer API as nodes reach
    it; ``plain``: it speaks HTTP there, and knows no credentials."""

    url: str
    peer_id: str
    root_key: str
    swarm: str
    plain: bool = False


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``uses`` None: any number of nodes; ``lasts``: seconds; ``swarm`` None: the tracker's."""

    uses: int | None
    lasts: float
    swarm: str | None = None
    pulls: list[str] = []
    labels: dict[str, str] = {}


class Changed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node gets with its next credential; None: what it had."""

    peer_id: str
    pulls: list[str] | None = None
    labels: dict[str, str] | None = None


def routes(nodes: Nodes, facts: Callable[[], Facts]) -> Routes:
    """``/node-tokens`` and ``/nodes``. ``facts`` is asked each time."""

    async def add_token(request: Request) -> object:
        made, text = await make_token(nodes, facts(), await document(request, NewToken), operator(request))
        return {**_token(made), "token": text}

    async def tokens(_request: Request) -> object:
        return {"tokens": [_token(one) for one in await nodes.tokens()]}

    async def revoke_token(request: Request) -> object:
        wanted(request, "id")
        if not await nodes.revoke_token(number(request, "id", 0, 2**63 - 1), operator(request)):
            raise NotFound("NAME_UNKNOWN", "there is no such join token, or it was revoked before")
        return {}

    async def listed(request: Request) -> object:
        found = await nodes.nodes(after=request.param("after") or "", limit=number(request, "n", 1000, _MOST))
        return {"nodes": [_node(one) for one in found]}

    async def show(request: Request) -> object:
        found = await nodes.node(wanted(request, "peer_id"))
        if found is None:
            raise _unknown()
        return _node(found)

    async def revoke(request: Request) -> object:
        on = wanted(request, "on") == "true"
        if not await nodes.revoke(wanted(request, "peer_id"), on, operator(request)):
            raise NotFound("NAME_UNKNOWN", f"there is no such node, or it is {'' if on else 'not '}revoked already")
        return {}

    async def change(request: Request) -> object:
        asked = await document(request, Changed)
        pulls = None if asked.pulls is None else check_pulls(asked.pulls)
        labels = None if asked.labels is None else check_labels(asked.labels)
        if not await nodes.regrant(asked.peer_id, pulls, labels, operator(request)):
            raise _unknown()
        return {}

    async def settings(_request: Request) -> object:
        return asdict(facts())

    return {
        ("POST", "/node-tokens"): add_token,
        ("GET", "/node-tokens"): tokens,
        ("DELETE", "/node-tokens"): revoke_token,
        ("GET", "/nodes"): listed,
        ("GET", "/nodes/node"): show,
        ("POST", "/nodes/revoke"): revoke,
        ("POST", "/nodes/node"): change,
        ("GET", "/nodes/settings"): settings,
    }


async def make_token(nodes: Nodes, known: Facts, new: NewToken, by: By) -> tuple[JoinTokenRow, str]:
    """A join token, and its text, which is not kept. Raises RequestError (400)."""
    if known.plain:
        raise invalid("this tracker lets every node in (peer.plain), so there is nothing to join with a token")
    if (new.uses is not None and not 1 <= new.uses <= 1_000_000) or not 0 < new.lasts <= _LONGEST:
        raise invalid("a join token is for 1 to 1000000 nodes, or any number, and lasts 90 days at most")
    grant = Grant(check_swarm(new.swarm or known.swarm), check_pulls(new.pulls), check_labels(new.labels))
    secret = secrets.token_urlsafe(32)
    hashed = hashlib.sha256(secret.encode("ascii")).digest()
    made = await nodes.add_token(hashed, grant, new.uses, new.lasts, by)
    return made, format_join_token(JoinToken(known.url, _fingerprint(known.peer_id), known.root_key, secret))


def check_pulls(patterns: Sequence[str]) -> tuple[str, ...]:
    """Globs over repositories. Raises RequestError (400)."""
    if len(patterns) > _MOST_PULLS:
        raise invalid(f"a node has {_MOST_PULLS} globs at most")
    for pattern in patterns:
        try:
            check_glob(pattern)
        except ValueError as err:
            raise invalid(f"{pattern}: {err}") from err
    return tuple(dict.fromkeys(patterns))


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Names and values of labels. Raises RequestError (400)."""
    if len(labels) > _MOST_LABELS:
        raise invalid(f"a node has {_MOST_LABELS} labels at most")
    for name, value in labels.items():
        if not LABEL.fullmatch(name) or not ZONE.fullmatch(value):
            raise invalid(f"{name}={value}: a label is name=value, of letters, digits and . _ : / -")
    return dict(labels)


def check_swarm(name: str) -> str:
    """A swarm's name. Raises RequestError (400)."""
    if not _SWARM.fullmatch(name):
        raise invalid("a swarm's name is made of letters, digits and . _ -")
    return name


def _fingerprint(peer_id: str) -> str:
    try:
        return fingerprint(public_key_of(peer_id))
    except BadContent as err:  # our own: cannot be
        raise RuntimeError("the tracker's peer id is none") from err


def _token(row: JoinTokenRow) -> dict[str, object]:
    return {
        "id": row.id,
        **_grant(row.grant),
        "uses_left": row.uses_left,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def _node(row: NodeRow) -> dict[str, object]:
    return {
        "peer_id": row.peer_id,
        **_grant(row.grant),
        "joined_by": row.joined_by,
        "enrolled_at": row.enrolled_at,
        "renewed_at": row.renewed_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def _grant(grant: Grant) -> dict[str, object]:
    return {"swarm": grant.swarm, "pulls": list(grant.pulls), "labels": dict(grant.labels)}


def _unknown() -> NotFound:
    return NotFound("NAME_UNKNOWN", "there is no such node")

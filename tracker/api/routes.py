"""The table of all routes of the JSON API: the handler follows it, and so does the document that describes it.

A name in a path is one segment: a repository's is written with %2F for each slash, as in ``/repositories/acme%2Fapi``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tracker.api import documents as d
from tracker.api import ipfs, machines, openapi, organizations, repositories, tokens, users
from tracker.api import ipfs_documents as i
from tracker.api.asked import Asked, Handle
from tracker.api.rules import (
    ACCOUNT,
    ADMIN,
    ADMINISTRATOR,
    ANYBODY,
    DELETE,
    KEEPER,
    MANAGER,
    MEMBER,
    NO_ACCOUNT,
    OWNER,
    PULL,
    SELF,
    Refusal,
    Rule,
)

PREFIX: Final = "/api/v1"

_INVALID: Final = Refusal(400, "INVALID", "A field or parameter is missing, unknown or not in form; detail names it.")
_LONG: Final = Refusal(413, "SIZE_INVALID", "The body is longer than 64 KiB.")
_NO_JSON: Final = Refusal(415, "UNSUPPORTED", "The body is not announced as application/json.")
#: What any request may be told.
ALWAYS: Final = (
    Refusal(429, "TOOMANYREQUESTS", "Too many requests, or wrong passwords, came from there; see Retry-After."),
    Refusal(503, "UNAVAILABLE", "Something that is needed does not answer now; see Retry-After."),
)
_TAKEN: Final = Refusal(409, "CONFLICT", "The name is or was in use.")
_LAST: Final = Refusal(409, "CONFLICT", "It is the last administrator.")
_LAST_OWNER: Final = Refusal(409, "CONFLICT", "It is the last owner of the organization.")
_HAS_REPOSITORIES: Final = Refusal(409, "CONFLICT", "It has repositories, or is the last owner or administrator.")
_NO_TEAM: Final = Refusal(404, "TEAM_UNKNOWN", "The organization has no such team.")
_NO_MEMBER: Final = Refusal(404, "MEMBER_UNKNOWN", "There is no such member.")
_NO_GRANT: Final = Refusal(404, "GRANT_UNKNOWN", "The team has no such grant.")
_NO_TOKEN: Final = Refusal(404, "TOKEN_UNKNOWN", "There is no such token, or it was revoked before.")
_NO_NODE: Final = Refusal(404, "NODE_UNKNOWN", "There is no such node.")
_NO_PATTERN: Final = Refusal(404, "PATTERN_UNKNOWN", "There is no such pattern.")
_NO_IMAGE: Final = Refusal(404, "MANIFEST_UNKNOWN", "The repository has no such tag or manifest.")
_IMMUTABLE: Final = Refusal(403, "DENIED", "A tag of it is immutable.")


@dataclass(frozen=True, slots=True)
class Route:
    """``path`` without the prefix, with parameters in braces. ``answer`` None: status 204."""

    method: str
    path: str
    handle: Handle
    rule: Rule
    summary: str
    body: type[d.Document] = d.Nothing
    query: type[d.Document] = d.Nothing
    answer: Any = None
    made: bool = False
    more: tuple[Refusal, ...] = ()

    @property
    def status(self) -> int:
        """Of an answer that is no refusal."""
        if self.answer is None:
            return 204
        return 201 if self.made else 200

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """All that there are, by status."""
        of_body = () if self.body is d.Nothing else (_LONG, _NO_JSON)
        every = (_INVALID, *of_body, *self.rule.refusals, *self.more, *ALWAYS)
        return tuple(sorted(dict.fromkeys(every), key=lambda one: one.status))

    @property
    def name(self) -> str:
        """Such as ``users.add``."""
        return f"{self.handle.__module__.rpartition('.')[2]}.{self.handle.__name__.lstrip('_')}"

    @property
    def segments(self) -> tuple[str, ...]:
        """Of the path."""
        return tuple(self.path.split("/")[1:])

    def match(self, segments: tuple[str, ...]) -> Mapping[str, str] | None:
        """The parameters of a path without the prefix, percent-decoded segment by segment; None if it is another."""
        if len(segments) != len(self.segments):
            return None
        found = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{"):
                found[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return found


@functools.cache
def described() -> dict[str, Any]:
    """The OpenAPI document."""
    return openapi.document(ROUTES, PREFIX)


async def _document(_asked: Asked[d.Nothing, d.Nothing]) -> dict[str, Any]:
    return described()


_USER: Final = "/users/{user}"
_ORG: Final = "/organizations/{organization}"
_TEAM: Final = _ORG + "/teams/{team}"
_REPO: Final = "/repositories/{repository}"

ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/openapi.json", _document, ANYBODY, "This document.", answer=dict[str, Any]),
    Route(
        "POST", "/setup", users.set_up, ANYBODY, "Make the first administrator with the one-time secret.",
        body=d.Setup, answer=d.User, made=True,
        more=(Refusal(403, "DENIED", "The secret is not good, or there is an administrator."), _TAKEN),
    ),
    Route("GET", "/me", users.me, ACCOUNT, "Who asks.", answer=d.Me),
    # users
    Route("GET", "/users", users.listed, ADMINISTRATOR, "All users.", query=d.Page, answer=d.Users),
    Route(
        "POST", "/users", users.add, ADMINISTRATOR, "Make a user.",
        body=d.NewUser, answer=d.User, made=True, more=(_TAKEN,),
    ),
    Route("GET", _USER, users.show, SELF, "A user.", answer=d.User),
    Route(
        "PUT", _USER + "/password", users.set_password, SELF, "Set a password.", body=d.NewPassword,
        more=(Refusal(403, "DENIED", "The current password is wrong."),),
    ),
    Route(
        "PUT", _USER + "/disabled", users.set_disabled, ADMINISTRATOR, "Disable or enable a user.",
        body=d.Disabled, more=(NO_ACCOUNT, _LAST),
    ),
    Route(
        "PUT", _USER + "/administrator", users.set_administrator, ADMINISTRATOR,
        "Make a user administrator, or no longer.", body=d.Administrator, more=(NO_ACCOUNT, _LAST),
    ),
    Route(
        "PUT", _USER + "/name", users.rename, ADMINISTRATOR, "Rename a user, with his repositories.",
        body=d.NewName, answer=d.User, more=(NO_ACCOUNT, _TAKEN),
    ),
    Route(
        "DELETE", _USER, users.delete, ADMINISTRATOR, "Delete a user. The name stays taken.",
        query=d.Deletion, more=(NO_ACCOUNT, _HAS_REPOSITORIES, _IMMUTABLE),
    ),
    # organizations
    Route(
        "GET", "/organizations", organizations.listed, ACCOUNT,
        "The organizations one is in; for administrators all.", query=d.Page, answer=d.Organizations,
    ),
    Route(
        "POST", "/organizations", organizations.add, ADMINISTRATOR, "Make an organization.",
        body=d.NewOrganization, answer=d.Organization, made=True, more=(NO_ACCOUNT, _TAKEN),
    ),
    Route("GET", _ORG, organizations.show, MEMBER, "An organization.", answer=d.Organization),
    Route(
        "PUT", _ORG + "/name", organizations.rename, OWNER, "Rename an organization, with its repositories.",
        body=d.NewName, answer=d.Organization, more=(_TAKEN,),
    ),
    Route(
        "DELETE", _ORG, organizations.delete, OWNER, "Delete an organization. The name stays taken.",
        query=d.Deletion, more=(Refusal(409, "CONFLICT", "It has repositories."), _IMMUTABLE),
    ),
    Route("GET", _ORG + "/members", organizations.members, MEMBER, "Its members.", answer=d.Members),
    Route(
        "PUT", _ORG + "/members/{user}", organizations.set_member, MANAGER,
        "Let a user in, or change his role; of owners, owners only.", body=d.NewRole, more=(_LAST_OWNER,),
    ),
    Route(
        "DELETE", _ORG + "/members/{user}", organizations.remove_member, MEMBER,
        "Remove a member: oneself, or as owner or admin others.", more=(_NO_MEMBER, _LAST_OWNER),
    ),
    Route("GET", _ORG + "/teams", organizations.teams, MEMBER, "Its teams.", answer=d.Teams),
    Route(
        "POST", _ORG + "/teams", organizations.add_team, MANAGER, "Make a team.",
        body=d.NewTeam, answer=d.Team, made=True, more=(Refusal(409, "CONFLICT", "There is a team of this name."),),
    ),
    Route("GET", _TEAM, organizations.show_team, MEMBER, "A team.", answer=d.Team, more=(_NO_TEAM,)),
    Route(
        "PUT", _TEAM + "/name", organizations.rename_team, MANAGER, "Rename a team.", body=d.TeamName, answer=d.Team,
        more=(_NO_TEAM, Refusal(409, "CONFLICT", "There is a team of this name.")),
    ),
    Route("DELETE", _TEAM, organizations.delete_team, MANAGER, "Delete a team.", more=(_NO_TEAM,)),
    Route(
        "PUT", _TEAM + "/members/{user}", organizations.add_team_member, MANAGER, "Let a member into a team.",
        more=(_NO_TEAM, Refusal(409, "CONFLICT", "The user is not in the organization.")),
    ),
    Route(
        "DELETE", _TEAM + "/members/{user}", organizations.remove_team_member, MANAGER, "Remove a user from a team.",
        more=(_NO_TEAM, _NO_MEMBER),
    ),
    Route(
        "PUT", _TEAM + "/grants", organizations.set_grant, MANAGER,
        "Say what a team may do with repositories; the actions replace those that the pattern had.",
        body=d.Grant, more=(_NO_TEAM,),
    ),
    Route(
        "DELETE", _TEAM + "/grants", organizations.remove_grant, MANAGER, "Take a grant back.",
        query=d.Pattern, more=(_NO_TEAM, _NO_GRANT),
    ),
    # repositories
    Route(
        "GET", "/repositories", repositories.search, ANYBODY, "The repositories that one may pull.",
        query=d.Search, answer=d.Repositories,
    ),
    Route("GET", _REPO, repositories.show, PULL, "A repository.", answer=d.Repository),
    Route("GET", _REPO + "/tags", repositories.tags, PULL, "Its tags.", query=d.Page, answer=d.Tags),
    Route(
        "PUT", _REPO + "/visibility", repositories.set_visibility, ADMIN, "Make it private or public.",
        body=d.Visibility,
    ),
    Route("DELETE", _REPO, repositories.delete, DELETE, "Delete it with all that is in it.", more=(_IMMUTABLE,)),
    Route(
        "GET", _REPO + "/ipfs", ipfs.repository, PULL, "How far it is published to IPFS.", answer=i.IpfsRepository,
    ),
    Route(
        "GET", _REPO + "/ipfs/{reference}", ipfs.image, PULL,
        "The root CIDs of an image, by tag or digest, and how far each is published.",
        answer=i.IpfsImage, more=(_NO_IMAGE,),
    ),
    # IPFS
    Route(
        "GET", "/ipfs", ipfs.show, ADMINISTRATOR, "What is published to IPFS.", query=i.IpfsFailures, answer=i.Ipfs,
    ),
    Route(
        "PUT", "/ipfs/patterns", ipfs.publish, ADMINISTRATOR,
        "Publish the repositories that a pattern names, now and in future.", body=i.IpfsPattern,
    ),
    Route(
        "DELETE", "/ipfs/patterns", ipfs.unpublish, ADMINISTRATOR,
        "Publish them no longer, and unpin what no other pattern names.", query=i.IpfsPattern, more=(_NO_PATTERN,),
    ),
    Route(
        "POST", "/ipfs/retry", ipfs.retry, ADMINISTRATOR, "Try again now what failed or waits.", answer=i.IpfsRetried,
    ),
    # tokens
    Route(
        "GET", "/accounts/{account}/tokens", tokens.listed, KEEPER, "Tokens of a user or an organization.",
        query=d.OfKind, answer=d.Tokens,
    ),
    Route(
        "POST", "/accounts/{account}/tokens", tokens.add, KEEPER,
        "Make a token: a personal one for oneself, or a robot's.", body=d.NewToken, answer=d.MadeToken, made=True,
        more=(Refusal(409, "CONFLICT", "The account has as many tokens as it may have."),),
    ),
    Route("DELETE", "/accounts/{account}/tokens/{id}", tokens.revoke, KEEPER, "Revoke a token.", more=(_NO_TOKEN,)),
    # nodes and keys
    Route("GET", "/join-tokens", machines.join_tokens, ADMINISTRATOR, "Join tokens.", answer=d.JoinTokens),
    Route(
        "POST", "/join-tokens", machines.add_join_token, ADMINISTRATOR, "Make a join token for new nodes.",
        body=d.NewJoinToken, answer=d.MadeJoinToken, made=True,
    ),
    Route(
        "DELETE", "/join-tokens/{id}", machines.revoke_join_token, ADMINISTRATOR,
        "Let nobody join with it any more; nodes that have joined stay.", more=(_NO_TOKEN,),
    ),
    Route("GET", "/nodes", machines.nodes, ADMINISTRATOR, "Nodes that have joined.", query=d.Page, answer=d.Nodes),
    Route("GET", "/nodes/{peer_id}", machines.show_node, ADMINISTRATOR, "A node.", answer=d.Node, more=(_NO_NODE,)),
    Route(
        "PUT", "/nodes/{peer_id}/revoked", machines.set_revoked, ADMINISTRATOR,
        "Turn a node away, or take that back.", body=d.Revoked, more=(_NO_NODE,),
    ),
    Route("GET", "/keys", machines.keys, ANYBODY, "The keys that nodes verify with.", answer=d.Keys),
)  # fmt: skip

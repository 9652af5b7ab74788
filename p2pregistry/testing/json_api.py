"""The JSON API over accounts and repositories in memory. Each answer is held against the OpenAPI document."""

from __future__ import annotations

import base64
import copy
import functools
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jsonschema

from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError
from p2pregistry.serve.http import Request
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.tracker_api import SERVICE, keyring
from tracker.api.asked import IpfsSetup, Services, Who
from tracker.api.routes import PREFIX, ROUTES, Route, described
from tracker.api.server import Api, by_credentials, by_operator
from tracker.authentication import Authentication
from tracker.catalog.check import BY, Signer, add, blob, manifest
from tracker.catalog.listing import MemoryListing
from tracker.catalog.memory import MemoryCatalog
from tracker.catalog.nodes_memory import MemoryNodes
from tracker.catalog.publishing_memory import MemoryPublishing
from tracker.identity.memory import MemoryAccounts
from tracker.node_admin import Facts
from tracker.throttle import Logins, MemoryCounters

#: Method and path with its parameters, status, code ("" where it is no refusal).
Seen = tuple[str, str, int, str]
PASSWORD = "correct horse"  # noqa: S105 - of tests


@functools.cache
def validator(name: str) -> Any:
    """For a component of the document, of which nothing may be said that is not described."""
    components = copy.deepcopy(described()["components"])
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    kind = jsonschema.Draft202012Validator
    checker = kind.FORMAT_CHECKER
    return kind({"$ref": f"#/components/schemas/{name}", "components": components}, format_checker=checker)


def basic(name: str, secret: str = PASSWORD) -> tuple[str, str]:
    """A header."""
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


def bearer(secret: str) -> tuple[str, str]:
    """A header."""
    return "Authorization", f"Bearer {secret}"


@dataclass
class World:
    """``seen``: what has been answered. ``failing``: what happens to each request, if anything."""

    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    nodes: MemoryNodes = field(default_factory=MemoryNodes)
    seen: set[Seen] = field(default_factory=set)
    failing: RegistryError | None = None

    def __post_init__(self) -> None:
        self.accounts = MemoryAccounts(self.catalog, lambda _repository, _digest, _blobs: "claim")
        ring = keyring()
        authentication = Authentication(self.accounts, Logins(MemoryCounters()), lambda: ring.keys, service=SERVICE)
        facts = Facts("https://tracker:5051", ring.peer_id, ring.root_public, "default")
        listing = MemoryListing(self.catalog)
        self.publishing = MemoryPublishing(self.catalog)
        services = Services(
            self.accounts,
            self.catalog,
            listing,
            self.nodes,
            lambda: facts,
            ring,
            authentication,
            self.publishing,
            IpfsSetup(("kubo",)),
        )
        identify = by_credentials(authentication, self.accounts)

        async def identify_or_fail(request: Request) -> Who:
            if self.failing is not None:
                raise self.failing
            return await identify(request)

        self.api = Api(services, identify_or_fail)
        self.socket = Api(services, by_operator)

    async def repository(self, name: str, tag: str = "v1") -> Digest:
        """One with an image; the digest of its manifest."""
        config, layer = blob(f"config {name}"), blob(f"layer {name}")
        for one in (config, layer):
            await add(self.catalog, name, one)
        pushed = manifest(name.encode(), [config, layer])
        await self.catalog.put_manifest(name, pushed, [tag], Signer(), BY)
        return pushed.digest

    async def __call__(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        who: tuple[str, str] | None = None,
        socket: bool = False,
        raw: bytes | None = None,
        client: str = "192.0.2.1",
        content_type: str = "application/json",
    ) -> Answer:
        """A request, with a document or ``raw`` bytes for a body; its answer must be as it is described."""
        headers = [] if who is None else [who]
        body = b"" if document is None else json.dumps(document).encode()
        body = body if raw is None else raw
        if body:
            headers.append(("Content-Type", content_type))
        handler = self.socket if socket else self.api
        answer = await call(handler, method, PREFIX + path, body, headers=headers, client=client)
        route = route_of(method, path)
        if route is not None:
            check(route, answer, document)
            self.seen.add((route.method, route.path, answer.status, answer.code if answer.status >= 400 else ""))
        return answer


def route_of(method: str, path: str) -> Route | None:
    """The one that a request goes to."""
    segments = tuple(urlsplit(path).path.split("/")[1:])
    found = [route for route in ROUTES if route.method == method and route.match(segments) is not None]
    assert len(found) <= 1
    return found[0] if found else None


def check(route: Route, answer: Answer, sent: object) -> None:
    """Whether the answer is as the document describes it, and what was sent, if it was taken."""
    operation = described()["paths"][PREFIX + route.path][route.method.lower()]
    said = operation["responses"].get(str(answer.status))
    assert said is not None, (route.name, answer)
    if answer.status == 204:
        assert answer.body == b""
        assert "content" not in said
    else:
        assert answer.headers["content-type"] == "application/json"
        schema = said["content"]["application/json"]["schema"]
        if "$ref" in schema:
            validator(schema["$ref"].rpartition("/")[2]).validate(answer.json())
    if answer.status >= 400:
        assert f"{answer.code}: " in said["description"], (route.name, answer)
    else:
        assert answer.headers["cache-control"] == "no-store"
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            if sent is not None:
                validator(name.rpartition("/")[2]).validate(sent)

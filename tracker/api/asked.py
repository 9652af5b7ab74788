"""What a handler of the JSON API is given: one request, understood, and what it works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from p2pregistry.errors import RequestError
from tracker.authentication import Authentication
from tracker.catalog.base import Catalog
from tracker.catalog.listing import Listing
from tracker.catalog.nodes import Nodes
from tracker.catalog.publishing import Publishing
from tracker.catalog.trail import By
from tracker.identity.base import Accounts, Identity, Rights
from tracker.keyring import Keyring
from tracker.node_admin import Facts

B = TypeVar("B")
Q = TypeVar("Q")
T = TypeVar("T")

#: Of the command line: all rights. A name that no account can have.
EVERYTHING = Rights("the operator", everything=True)


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks. ``identity`` None: nobody in particular, or the ``operator`` at the admin socket."""

    rights: Rights
    by: By
    identity: Identity | None = None
    operator: bool = False

    @property
    def known(self) -> bool:
        """Whether it has shown who it is."""
        return self.operator or self.identity is not None

    @property
    def name(self) -> str:
        """The user's name, "" for the operator and for nobody."""
        return "" if self.identity is None else self.identity.name


@dataclass(frozen=True, slots=True)
class IpfsSetup:
    """What the settings say of publishing: where to, and whether encrypted images of private repositories too."""

    services: tuple[str, ...] = ()
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work with. ``facts``: what nodes must know of this tracker."""

    accounts: Accounts
    catalog: Catalog
    listing: Listing
    nodes: Nodes
    facts: Callable[[], Facts]
    keyring: Keyring
    authentication: Authentication
    publishing: Publishing
    ipfs: IpfsSetup


@dataclass(frozen=True, slots=True)
class Asked(Generic[B, Q]):
    """A request: ``path`` has the parameters of the path, ``body`` and ``query`` are in form, and the rule of the route
    has let it pass."""

    services: Services
    who: Who
    path: Mapping[str, str]
    body: B
    query: Q
    #: what the rule has found out on its way: whether the repository is private
    found: dict[str, bool] = field(default_factory=dict)

    @property
    def by(self) -> By:
        """For the audit log."""
        return self.who.by


#: Gives the document of the answer, None for an answer without one.
Handle = Callable[..., Awaitable[object]]


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What is found wrong inside is this field of the request."""
    try:
        yield
    except RequestError as err:
        if err.status == 400 and err.detail is None:
            err.detail = {"field": name}
        raise


def wrong(name: str, message: str) -> RequestError:
    """That a field is not as it must be."""
    return RequestError("INVALID", message, status=400, detail={"field": name})


def page(found: Sequence[T], n: int, name: Callable[[T], str]) -> tuple[list[T], str | None]:
    """Of one more than were asked for: those that were, and where the next page begins."""
    shown = list(found[:n])
    return shown, name(shown[-1]) if len(found) > n else None

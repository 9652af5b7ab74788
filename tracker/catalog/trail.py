"""What a write leaves behind in its own transaction: a line of the audit log and, for some, an event for webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psycopg.types.json import Jsonb

from tracker.db import Connection

#: Actions that webhooks are told of, and the type of the event (docs/protocol.md).
EVENTS: Final = {
    "manifest.push": "p2pregistry.push",
    "tag.delete": "p2pregistry.delete",
    "manifest.delete": "p2pregistry.delete",
    "quota.exceeded": "p2pregistry.quota",
}


@dataclass(frozen=True, slots=True)
class By:
    """Who writes: the account (empty: nobody in particular), the client's address, and the request's id.

    ``account_id``: the actor's, by which it is known after it was renamed or deleted."""

    actor: str = ""
    address: str = ""
    request_id: str = ""
    account_id: int | None = None


#: The tracker itself, or its operator at the command line.
SYSTEM: Final = By("system")


def record(
    connection: Connection,
    by: By,
    action: str,
    repository: str | None = None,
    *,
    reference: str | None = None,
    digest: str | None = None,
    detail: dict[str, object] | None = None,
) -> None:
    """Write it down; to be called inside the transaction of the change. ``action`` is ``<what>.<done>``."""
    connection.execute(
        "insert into audit (actor, address, request_id, account_id, action, repository, reference, digest, detail)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            by.actor,
            by.address,
            by.request_id,
            by.account_id,
            action,
            repository,
            reference,
            digest,
            Jsonb(detail or {}),
        ),
    )
    kind = EVENTS.get(action)
    if kind is not None and repository is not None:
        data = {"action": action, "actor": by.actor, "reference": reference, "digest": digest, **(detail or {})}
        connection.execute(
            "insert into events (type, repository, data) values (%s, %s, %s)", (kind, repository, Jsonb(data))
        )

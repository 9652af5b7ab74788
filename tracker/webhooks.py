"""What a webhook is sent and when: CloudEvents, signatures, times of another try. No I/O, no clock, no chance.

A request is a POST of a CloudEvents 1.0 document in the structured JSON form. ``P2pregistry-Signature`` is
``t=<seconds since 1970>,v1=<hex>``, where the hex digits are the HMAC-SHA256, with the webhook's secret as key, of
``<seconds>.<body>``. The time is part of what is signed, so that a request cannot be sent again later by somebody else.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

CONTENT_TYPE: Final = "application/cloudevents+json"
SIGNATURE: Final = "P2pregistry-Signature"
#: Seconds before the second try; each later one waits three times as long, an hour at most.
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 3600.0
#: Seconds by which the time of a signature may differ from the receiver's clock.
TOLERANCE: Final = 300
_HEADER: Final = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")

Outcome = Literal["delivered", "again", "never"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. ``id`` counts up within a database."""

    id: int
    at: datetime
    type: str
    repository: str
    data: Mapping[str, object]


def cloud_event(event: Event, source: str) -> bytes:
    """The document. Together ``source`` and ``id`` are an event's name: a receiver that has seen it leaves it alone.

    The time is part of the id because a database that is restored from a backup counts on from there.
    """
    about = event.repository
    if event.data.get("reference"):
        about += f":{event.data['reference']}"
    elif event.data.get("digest"):
        about += f"@{event.data['digest']}"
    at = event.at.astimezone(UTC)
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": f"{event.id}-{int(at.timestamp() * 1000)}",
            "source": source,
            "type": event.type,
            "subject": about,
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "datacontenttype": "application/json",
            "data": {"repository": event.repository, **event.data},
        }
    )


def sign(secret: bytes, at: int, body: bytes) -> str:
    """The signature header; ``at`` in seconds since 1970."""
    return f"t={at},v1={_mac(secret, at, body)}"


def verify(secret: bytes, header: str, body: bytes, now: float) -> bool:
    """Whether a request is signed with the secret, and lately: for receivers and for tests."""
    found = _HEADER.fullmatch(header)
    if found is None or abs(now - int(found[1])) > TOLERANCE:
        return False
    return hmac.compare_digest(found[2], _mac(secret, int(found[1]), body))


def _mac(secret: bytes, at: int, body: bytes) -> str:
    return hmac.new(secret, b"%d.%b" % (at, body), hashlib.sha256).hexdigest()


def outcome(status: int) -> Outcome:
    """What an answer means: any 2xx is delivered; 410 says that nobody wants these any more. A redirect is not
    followed: where it points was never checked."""
    if 200 <= status < 300:
        return "delivered"
    return "never" if status == 410 else "again"


def pause(attempts: int, draw: float, most: int) -> float | None:
    """Seconds until the next try after so many ``attempts``, None after ``most`` of them. ``draw`` from 0 to 1 spreads
    tries that would come together."""
    if attempts >= most:
        return None
    wait = FIRST_PAUSE * 3.0 ** min(max(0, attempts - 1), 30)
    return float(min(LONGEST_PAUSE, wait) * (0.75 + 0.5 * draw))

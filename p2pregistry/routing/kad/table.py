"""The routing table: which server peers this node knows, by the XOR distance of their hashed ids.

A peer enters only after it has answered a request (so clients and made-up peers never do) and leaves when it falls
silent. The silent are remembered, and tried again beside other work after a while that grows each time, so that no
later look-up waits for them.
Source: P. Maymounkov, D. Mazieres, "Kademlia" (2002), section 2.2; libp2p specification "kad-dht" for the hash.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from p2pregistry.routing.kad.wire import Contact

BITS = 256
#: Seconds a peer that fell silent is left alone: the first time, and at most.
SILENT_FIRST = 2.0
SILENT_MOST = 300.0
_SILENT_KEPT = 4096


@functools.lru_cache(maxsize=16384)
def position(key: bytes) -> int:
    """Where a peer id or key lies in the key space: its sha256 as a number."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def common_prefix(a: int, b: int) -> int:
    """How many leading bits two positions share."""
    return BITS - (a ^ b).bit_length()


def nearest(contacts: Iterable[tuple[int, Contact]], target: int, count: int) -> list[Contact]:
    """The ``count`` contacts nearest to ``target``, nearest first, out of (position, contact) pairs."""
    return [c for _, c in heapq.nsmallest(count, contacts, key=lambda entry: entry[0] ^ target)]


@dataclass(slots=True)
class _Silence:
    until: float
    patience: float
    contact: Contact | None


class RoutingTable:
    """``own`` is this node's peer id, ``bucket_size`` the most peers kept for one length of common prefix."""

    def __init__(self, own: bytes, bucket_size: int = 20) -> None:
        self._own = own
        self._own_position = position(own)
        self._bucket_size = bucket_size
        self._buckets: dict[int, OrderedDict[bytes, tuple[int, Contact]]] = {}
        self._entries: dict[bytes, tuple[int, Contact]] = {}
        self._silent: OrderedDict[bytes, _Silence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, peer_id: bytes) -> bool:
        return peer_id in self._entries

    def get(self, peer_id: bytes) -> Contact | None:
        """What is known of a peer in the table."""
        entry = self._entries.get(peer_id)
        return entry[1] if entry else None

    def contacts(self) -> list[Contact]:
        """Every peer in the table."""
        return [contact for _, contact in self._entries.values()]

    def answered(self, contact: Contact) -> bool:
        """The peer answered as a server. True if it is new in the table.

        A full bucket keeps the peers it has: the old and alive are likeliest to stay (Kademlia 2.1), and the dead are
        taken out by ``fell_silent``.
        """
        self._silent.pop(contact.peer_id, None)
        if contact.peer_id == self._own or not contact.addrs:
            return False
        where = position(contact.peer_id)
        bucket = self._buckets.setdefault(common_prefix(where, self._own_position), OrderedDict())
        known = contact.peer_id in bucket
        if not known and len(bucket) >= self._bucket_size:
            return False
        bucket[contact.peer_id] = self._entries[contact.peer_id] = (where, contact)
        bucket.move_to_end(contact.peer_id)
        return not known

    def fell_silent(self, peer_id: bytes, now: float) -> None:
        """The peer did not answer in time or could not be reached: forget it, and leave it alone for a while."""
        entry = self._entries.pop(peer_id, None)
        if entry is not None:
            del self._buckets[common_prefix(entry[0], self._own_position)][peer_id]
        last = self._silent.pop(peer_id, None)
        contact = entry[1] if entry is not None else last.contact if last is not None else None
        if last is not None and now < last.until:
            self._silent[peer_id] = last  # several requests were under way: one silence, not several
            return
        patience = SILENT_FIRST if last is None else min(2 * last.patience, SILENT_MOST)
        self._silent[peer_id] = _Silence(now + patience, patience, contact)
        while len(self._silent) > _SILENT_KEPT:
            self._silent.popitem(last=False)

    def is_silent(self, peer_id: bytes) -> bool:
        """Whether the peer fell silent and has given no sign of life since: nobody should wait for it."""
        return peer_id in self._silent

    def may_retry(self, peer_id: bytes, now: float) -> bool:
        """Whether a silent peer has been left alone long enough to be tried once more, beside other work."""
        silence = self._silent.get(peer_id)
        return silence is not None and now >= silence.until

    def to_retry(self, now: float, count: int) -> list[Contact]:
        """Up to ``count`` peers that were in the table before they fell silent and have been left alone long enough."""
        due = (s.contact for s in self._silent.values() if s.contact is not None and now >= s.until)
        return list(itertools.islice(due, count))

    def heard_from(self, peer_id: bytes) -> None:
        """The peer sent something of its own accord: it is not silent."""
        self._silent.pop(peer_id, None)

    def nearest(self, target: int, count: int) -> list[Contact]:
        """The ``count`` peers nearest to a position, nearest first."""
        return nearest(self._entries.values(), target, count)

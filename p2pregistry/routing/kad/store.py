"""The provider records this node keeps for others.

A record comes from the provider itself and lives a fixed time from then on; what a look-up learned from a third party
is never stored, so a dead provider's record cannot be kept alive by being passed around. Everything is bounded.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pregistry.routing.kad.wire import Contact


class ProviderStore:
    """Times are in seconds of any clock that only goes forward.

    ``lifetime``: how long a record lives. ``max_records`` in all, ``per_key`` and ``per_provider``: at these limits
    new records are refused, except that a popular key forgets its oldest provider for a new one.
    """

    def __init__(
        self, *, lifetime: float = 3600.0, max_records: int = 500_000, per_key: int = 64, per_provider: int = 50_000
    ) -> None:
        self._lifetime = lifetime
        self._max_records = max_records
        self._per_key = per_key
        self._per_provider = per_provider
        self._keys: dict[bytes, OrderedDict[bytes, tuple[float, Contact]]] = {}
        # All records by age: every record lives equally long, so the first to expire are in front.
        self._ages: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        self._counts: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ages)

    def add(self, key: bytes, provider: Contact, now: float) -> bool:
        """The provider said it has ``key``. False if there is no room for the record."""
        self._expire(now)
        held = self._keys.get(key)
        if held is None or provider.peer_id not in held:
            if held is not None and len(held) >= self._per_key:
                self._remove(key, next(iter(held)))
            if len(self._ages) >= self._max_records or self._counts.get(provider.peer_id, 0) >= self._per_provider:
                return False
            self._counts[provider.peer_id] = self._counts.get(provider.peer_id, 0) + 1
        records = self._keys.setdefault(key, OrderedDict())
        records[provider.peer_id] = (now + self._lifetime, provider)
        records.move_to_end(provider.peer_id)
        self._ages[key, provider.peer_id] = now + self._lifetime
        self._ages.move_to_end((key, provider.peer_id))
        return True

    def withdraw(self, key: bytes, peer_id: bytes) -> None:
        """The provider said it no longer has ``key``."""
        if peer_id in self._keys.get(key, ()):
            self._remove(key, peer_id)

    def find(self, key: bytes, now: float) -> list[Contact]:
        """The live providers of ``key``, the freshest first."""
        self._expire(now)
        return [contact for _, contact in reversed(self._keys.get(key, {}).values())]

    def _remove(self, key: bytes, peer_id: bytes) -> None:
        records = self._keys[key]
        del records[peer_id], self._ages[key, peer_id]
        if not records:
            del self._keys[key]
        self._counts[peer_id] -= 1
        if not self._counts[peer_id]:
            del self._counts[peer_id]

    def _expire(self, now: float) -> None:
        while self._ages:
            key, peer_id = next(iter(self._ages))
            if self._ages[key, peer_id] > now:
                return
            self._remove(key, peer_id)

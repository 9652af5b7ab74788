"""How many requests a second somebody may send: a token bucket for each, of as many as there is room for."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from typing import Final

import trio

from p2pregistry.errors import RequestError
from p2pregistry.rate import Bucket

#: Of whom buckets are kept; who has not come for longest is forgotten, which gives him a full one.
MAX_KEYS: Final = 20_000
#: Seconds' worth of requests that may come at once after a pause.
BURST_TIME: Final = 10.0


class Turnstile:
    """``rate`` requests a second for each key, ``burst`` of them at once after a pause."""

    def __init__(self, rate: float, burst: float | None = None, *, keys: int = MAX_KEYS) -> None:
        self._rate, self._keys = rate, keys
        self._burst = max(1.0, rate * BURST_TIME) if burst is None else burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """Seconds after which another request may come; 0.0: this one may, and is counted."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, burst=self._burst, now=now)
            if len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(1, now)

    def admit(self, key: str) -> None:
        """Count a request. Raises RequestError (TOOMANYREQUESTS) where it is one too many."""
        wait = self.wait(key, trio.current_time())
        if wait:
            after = str(max(1, math.ceil(min(wait, 3600.0))))
            raise RequestError("TOOMANYREQUESTS", "too many requests in a short time", headers={"Retry-After": after})


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address; of IPv6 the network of 64 bits, which one client may have all of.
    Empty where there is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)

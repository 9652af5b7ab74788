"""Addresses and networks in settings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from p2pregistry.errors import SettingsError


def check_networks(path: str, texts: Iterable[str]) -> None:
    """Raises SettingsError, which names the setting ``path``, for what is no network."""
    for index, text in enumerate(texts):
        try:
            ipaddress.ip_network(text)
        except ValueError as err:
            raise SettingsError(f"$.{path}[{index}]: {text} is no network") from err


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything

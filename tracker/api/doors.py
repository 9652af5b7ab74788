"""Where the JSON API is found: on the registry's listener and on the admin socket."""

from __future__ import annotations

from collections.abc import Mapping

from p2pregistry.serve.http import Handler
from tracker.api.asked import Services
from tracker.api.server import Api, by_credentials, by_operator
from tracker.api.setup_page import PATH, SetupPage

_BELOW = "/api/"


def public(services: Services) -> Mapping[str, Handler]:
    """Handlers by path, for ``front.by_path``: who asks shows credentials."""
    accounts = services.accounts
    return {_BELOW: Api(services, by_credentials(services.authentication, accounts)), PATH: SetupPage(accounts)}


def private(services: Services) -> Mapping[str, Handler]:
    """The same for the admin socket: who can open it may do everything."""
    return {_BELOW: Api(services, by_operator)}

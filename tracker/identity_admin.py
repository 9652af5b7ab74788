"""Accounts on the admin socket: the JSON API as the operator's, and how the first administrator is made."""

from __future__ import annotations

from p2pregistry.serve.http import Request
from tracker.admin import Routes, operator
from tracker.api.setup_page import PATH
from tracker.identity.base import SETUP_LIFETIME, Accounts


def routes(accounts: Accounts, url: str) -> Routes:
    """``/setup``; ``url``: of the registry."""

    async def setup(request: Request) -> object:
        secret = await accounts.new_setup(operator(request))
        # behind a #: a browser keeps that to itself
        return {"url": f"{url.rstrip('/')}{PATH}#{secret}", "secret": secret, "lifetime": SETUP_LIFETIME}

    return {("POST", "/setup"): setup}

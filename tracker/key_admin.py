"""Keys on the admin socket. The root key never comes here: who keeps it elsewhere gets a draft and sends it signed."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from p2pregistry.serve.http import Request
from tracker.admin import Routes, document, operator
from tracker.catalog.signing import Change
from tracker.key_keeper import KeyKeeper


class NewKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to become of the keys; see Change. ``key_set``: the draft of it, signed."""

    drop: str | None = None
    retire: bool = False
    key_set: str | None = None

    @property
    def change(self) -> Change:
        return Change(self.drop, self.retire)


def routes(keeper: KeyKeeper) -> Routes:
    """``/keys`` and ``/keys/draft``."""

    async def listed(_request: Request) -> object:
        return await keeper.status()

    async def draft(request: Request) -> object:
        return asdict(await keeper.draft((await document(request, NewKeys)).change))

    async def change(request: Request) -> object:
        new = await document(request, NewKeys)
        if new.key_set is None:
            made = await keeper.change(new.change, operator(request))
            return await keeper.status() | {"kept": made.kept}
        await keeper.publish(new.key_set, new.change, operator(request))
        return await keeper.status()

    return {("GET", "/keys"): listed, ("POST", "/keys/draft"): draft, ("POST", "/keys"): change}

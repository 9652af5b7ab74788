"""Repositories: which there are for whom, what is in them, and who may pull them."""

from __future__ import annotations

from tracker.api import documents as d
from tracker.api.asked import Asked, page
from tracker.api.organizations import ORDER
from tracker.catalog.base import no_repository


async def search(asked: Asked[d.Nothing, d.Search]) -> d.Repositories:
    query, visible = asked.query, asked.who.rights.visible()
    found = await asked.services.listing.search(query.q, after=query.after, limit=query.n + 1, visible=visible)
    some, following = page(found, query.n, lambda one: one.name)
    return d.Repositories([d.RepositoryName(one.name, one.private) for one in some], following)


async def show(asked: Asked[d.Nothing, d.Nothing]) -> d.Repository:
    name = asked.path["repository"]
    facts = await asked.services.listing.facts(name)
    if facts is None:
        raise no_repository(name)
    may = asked.who.rights.actions(name, private=facts.private)
    return d.Repository(name, facts.private, facts.size, facts.tags, [one for one in ORDER if one in may])


async def tags(asked: Asked[d.Nothing, d.Page]) -> d.Tags:
    query = asked.query
    found = await asked.services.catalog.tags(asked.path["repository"], after=query.after, limit=query.n + 1)
    some, following = page(found, query.n, str)
    return d.Tags(some, following)


async def set_visibility(asked: Asked[d.Visibility, d.Nothing]) -> None:
    await asked.services.catalog.set_visibility(asked.path["repository"], asked.body.private, asked.by)


async def delete(asked: Asked[d.Nothing, d.Nothing]) -> None:
    name = asked.path["repository"]
    if not await asked.services.catalog.delete_repository(name, asked.by):
        raise no_repository(name)

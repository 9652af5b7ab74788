"""What is published to IPFS: which repositories are, and how far each image has come.

Which repositories are published is for administrators to say: what was published cannot be taken back, and takes room
at services that the operator pays for.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import RequestError
from p2pregistry.globs import check_glob
from tracker.api import documents as d
from tracker.api import ipfs_documents as i
from tracker.api.asked import Asked, wrong
from tracker.api.rules import unknown
from tracker.catalog.publishing import Figure, Progress
from tracker.publishing import Image, Item


async def show(asked: Asked[d.Nothing, i.IpfsFailures]) -> i.Ipfs:
    publishing, setup = asked.services.publishing, asked.services.ipfs
    failures = await publishing.failures(asked.query.n)
    return i.Ipfs(
        list(setup.services),
        setup.encrypted,
        [i.IpfsNamed(one.pattern, one.created_at, one.actor) for one in await publishing.patterns()],
        _figures(await publishing.figures()),
        [_item(item, [progress], told=True) for item, progress in failures],
    )


async def publish(asked: Asked[i.IpfsPattern, d.Nothing]) -> None:
    """Repeating is no error."""
    pattern = asked.body.pattern
    try:
        check_glob(pattern)
    except ValueError as err:
        raise wrong("pattern", str(err)) from err
    await asked.services.publishing.publish(pattern, asked.by)


async def unpublish(asked: Asked[d.Nothing, i.IpfsPattern]) -> None:
    if not await asked.services.publishing.unpublish(asked.query.pattern, asked.by):
        raise unknown("PATTERN", "there is no such pattern")


async def retry(asked: Asked[d.Nothing, d.Nothing]) -> i.IpfsRetried:
    return i.IpfsRetried(await asked.services.publishing.retry(asked.by))


async def repository(asked: Asked[d.Nothing, d.Nothing]) -> i.IpfsRepository:
    name, publishing = asked.path["repository"], asked.services.publishing
    return i.IpfsRepository(await publishing.chosen(name), _figures(await publishing.repository(name)))


async def image(asked: Asked[d.Nothing, d.Nothing]) -> i.IpfsImage:
    name, publishing = asked.path["repository"], asked.services.publishing
    found = await _image(asked)
    states: dict[bytes, list[Progress]] = {}
    for one in await publishing.states([item.cid for item in found.items]):
        states.setdefault(one.cid, []).append(one)
    told = "admin" in asked.who.rights.actions(name, private=asked.found["private"])
    items = [_item(item, states.get(item.cid, ()), told=told) for item in found.items]
    children = [str(child) for child in found.children]
    return i.IpfsImage(str(found.digest), await publishing.chosen(name), children, items)


async def _image(asked: Asked[d.Nothing, d.Nothing]) -> Image:
    name, reference = asked.path["repository"], asked.path["reference"]
    digest: Digest | None = None
    if ":" in reference:
        try:
            digest = Digest.parse(reference)
        except RequestError:
            digest = None
    else:
        record = await asked.services.catalog.manifest(name, reference.replace("\0", ""))
        digest = None if record is None else record.digest
    found = None if digest is None else await asked.services.publishing.image(name, digest)
    if found is None:
        raise unknown("MANIFEST", "there is no such image in the repository")
    return found


def _figures(figures: Sequence[Figure]) -> list[i.IpfsFigure]:
    return [i.IpfsFigure(one.service, one.state, one.jobs, one.size) for one in figures]


def _item(item: Item, states: Sequence[Progress], *, told: bool) -> i.IpfsItem:
    """``told``: errors too, which may name the operator's services."""
    services = [
        i.IpfsProgress(
            one.service, one.state, one.sent, one.attempts, one.next_at, one.error if told else None, one.updated_at
        )
        for one in states
    ]
    return i.IpfsItem(item.kind, str(item.digest), item.size, cid_text(item.cid), services)

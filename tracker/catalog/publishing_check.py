"""What every ``Publishing`` must do, with its catalog. A test runs each of ``CASES`` on fresh, empty ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import CID_RAW_PREFIX, Digest
from p2pregistry.oci.media import OCI_INDEX, OCI_MANIFEST
from tracker.catalog.base import Catalog, NewManifest
from tracker.catalog.check import BY, Signer, add, blob
from tracker.catalog.garbage import Garbage
from tracker.catalog.publishing import Job, Publishing

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
KUBO, PINNING = "kubo", "pinning"


@dataclass(frozen=True, slots=True)
class World:
    """A catalog, its garbage, what is published of it, and a way to make blobs older by so many seconds."""

    catalog: Catalog
    garbage: Garbage
    publishing: Publishing
    age: Callable[[float], Awaitable[None]]
    sign: Signer = field(default_factory=Signer)

    async def image(self, repository: str, name: str, *, layer: str = LAYER, public: bool = True) -> Digest:
        """Push one with a config and a layer of its own; its digest."""
        config, content = blob(f"config of {name}"), blob(f"layer of {name}")
        for one in (config, content):
            await add(self.catalog, repository, one)
        await self.catalog.set_visibility(repository, not public, BY)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(CONFIG, config),
            "layers": [_descriptor(layer, content)],
        }
        body = json.dumps(document).encode()
        new = NewManifest(Digest.of(body), OCI_MANIFEST, body, (config.digest, content.digest), ())
        return (await self.catalog.put_manifest(repository, new, [name], self.sign, BY)).digest

    async def index(self, repository: str, name: str, children: list[Digest]) -> Digest:
        """Push one of manifests."""
        listed = [{"mediaType": OCI_MANIFEST, "digest": str(child), "size": 1} for child in children]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
        new = NewManifest(Digest.of(body), OCI_INDEX, body, (), tuple(children))
        return (await self.catalog.put_manifest(repository, new, [name], self.sign, BY)).digest

    async def look(self, *services: str, encrypted: bool = False) -> None:
        """Look at all that has changed."""
        while await self.publishing.reconcile(10, services or (KUBO,), encrypted=encrypted):
            pass

    async def states(self, repository: str) -> dict[tuple[str, str], int]:
        """How many jobs of a repository are in a state, by service."""
        return {(one.service, one.state): one.jobs for one in await self.publishing.repository(repository)}

    async def all(self) -> Counter[str]:
        """How many jobs there are, by state."""
        found: Counter[str] = Counter()
        for one in await self.publishing.figures():
            found[one.state] += one.jobs
        return found

    async def work(self, *services: str) -> list[Job]:
        """Do all that is due."""
        done = []
        while jobs := await self.publishing.claim(services or (KUBO,), 100, 60.0):
            for job in jobs:
                await (self.publishing.published(job) if job.state == "publishing" else self.publishing.removed(job))
            done += jobs
        return done


def _descriptor(media_type: str, content: Metainfo) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(content.digest), "size": content.size}


Case = Callable[[World], Awaitable[None]]
#: Every case, by its name.
CASES: dict[str, Case] = {}


def _case(fn: Case) -> Case:
    CASES[getattr(fn, "__name__", repr(fn))] = fn
    return fn


@_case
async def nothing_is_published_unless_a_pattern_says_so(world: World) -> None:
    await world.image("acme/api", "v1")
    await world.look()
    assert await world.publishing.claim([KUBO], 10, 60.0) == []
    assert not await world.publishing.chosen("acme/api")


@_case
async def an_image_is_blobs_manifest_and_claim(world: World) -> None:
    assert await world.publishing.publish("acme/*", BY)
    assert not await world.publishing.publish("acme/*", BY)
    assert [one.pattern for one in await world.publishing.patterns()] == ["acme/*"]
    digest = await world.image("acme/api", "v1")
    await world.image("other/api", "v1")
    await world.look()
    assert await world.states("acme/api") == {(KUBO, "queued"): 4}
    assert await world.states("other/api") == {}
    jobs = await world.publishing.claim([KUBO], 10, 60.0)
    assert sorted(job.item.kind for job in jobs) == ["blob", "blob", "claim", "manifest"]
    assert {(job.state, job.attempts, job.remote) for job in jobs} == {("publishing", 1, None)}
    image = await world.publishing.image("acme/api", digest)
    assert image is not None
    assert {item.cid for item in image.items} == {job.item.cid for job in jobs}
    manifest = await world.catalog.manifest("acme/api", digest)
    assert manifest is not None
    assert await world.publishing.block(image.manifest) == manifest.body
    assert await world.publishing.block(image.claim) == manifest.claim.encode()
    assert image.manifest.cid == digest.cid()
    assert (image.manifest.size, image.claim.size) == (len(manifest.body), len(manifest.claim))
    assert await world.publishing.claim([KUBO], 10, 60.0) == [], "nobody else gets them meanwhile"
    assert await world.publishing.image("acme/api", Digest.of(b"other")) is None
    assert await world.publishing.image("acme/none", digest) is None


@_case
async def what_is_there_already_is_published_when_a_repository_is_chosen(world: World) -> None:
    one = await world.image("acme/api", "v1")
    two = await world.image("acme/api", "v2")
    await world.index("acme/api", "all", [one, two])
    await world.publishing.publish("acme/api", BY)
    await world.look(KUBO, PINNING)
    assert await world.states("acme/api") == {(KUBO, "queued"): 10, (PINNING, "queued"): 10}
    await world.work(KUBO, PINNING)
    assert await world.states("acme/api") == {(KUBO, "published"): 10, (PINNING, "published"): 10}
    await world.publishing.mark_all()
    await world.look(KUBO, PINNING, "car-upload")
    assert (await world.states("acme/api"))["car-upload", "queued"] == 10, "a new service gets what there is"


@_case
async def what_is_private_is_not_published(world: World) -> None:
    await world.publishing.publish("**", BY)
    await world.image("acme/api", "v1", public=False)
    await world.look(encrypted=True)
    assert await world.all() == {}
    await world.catalog.set_visibility("acme/api", False, BY)
    await world.look()
    assert await world.all() == {"queued": 4}
    await world.work()
    await world.catalog.set_visibility("acme/api", True, BY)
    await world.look()
    assert await world.all() == {"unpinning": 4}
    assert await world.states("acme/api") == {}


@_case
async def of_what_has_just_become_private_nothing_more_is_published(world: World) -> None:
    await world.publishing.publish("**", BY)
    await world.image("acme/api", "v1")
    await world.look()
    (begun,) = await world.publishing.claim([KUBO], 1, 60.0)
    await world.catalog.set_visibility("acme/api", True, BY)
    await world.publishing.failed(begun, "away", 0.0)
    assert await world.publishing.claim([KUBO], 10, 60.0) == [], "though nobody has looked at the change"
    await world.look()
    assert await world.all() == {"unpinning": 4}
    assert len(await world.work()) == 4
    await world.image("acme/api", "v2", layer=LAYER + "+encrypted", public=False)
    await world.look(encrypted=True)
    assert len(await world.work()) == 4, "what is to be published of a private repository is"


@_case
async def encrypted_images_of_private_repositories_are_if_the_operator_says_so(world: World) -> None:
    await world.publishing.publish("**", BY)
    hidden = await world.image("acme/api", "v1", layer=LAYER + "+encrypted", public=False)
    plain = await world.image("acme/api", "v2", public=False)
    await world.index("acme/api", "hidden", [hidden])
    await world.index("acme/api", "both", [hidden, plain])
    await world.look()
    assert await world.all() == {}
    await world.publishing.mark_all()
    await world.look(encrypted=True)
    assert await world.states("acme/api") == {(KUBO, "queued"): 6}, "four of the image, two of its index"
    await world.publishing.mark_all()
    await world.look()
    assert (await world.all())["unpinning"] == 6


@_case
async def a_blob_stays_until_it_is_collected(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    digest = await world.image("acme/api", "v1")
    await world.look()
    await world.work()
    await world.catalog.delete_manifest("acme/api", digest, BY)
    await world.look()
    assert await world.all() == {"published": 2, "unpinning": 2}
    await world.age(2000.0)
    assert await world.garbage.unlink(1000.0, 10) == 2
    await world.garbage.condemn(10)
    await world.look()
    assert await world.all() == {"unpinning": 4}
    assert {job.state for job in await world.work()} == {"unpinning"}
    assert await world.all() == {"removed": 4}
    assert await world.publishing.prune(3600.0) == 0
    assert await world.publishing.prune(-60.0) == 4


@_case
async def what_another_repository_wants_stays(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.image("acme/web", "v1")
    await world.look()
    assert await world.all() == {"queued": 5}, "the same blobs and manifest, and a claim of each"
    await world.work()
    assert await world.catalog.delete_repository("acme/api", BY)
    await world.look()
    assert await world.all() == {"published": 4, "unpinning": 1}


@_case
async def taking_a_pattern_off_unpins_and_putting_it_back_publishes_again(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look()
    await world.work()
    assert await world.publishing.unpublish("acme/*", BY)
    assert not await world.publishing.unpublish("acme/*", BY)
    await world.look()
    assert await world.all() == {"unpinning": 4}
    first = (await world.publishing.claim([KUBO], 1, 60.0))[0]
    await world.publishing.publish("acme/*", BY)
    await world.look()
    assert await world.all() == {"queued": 4}
    assert not await world.publishing.progress(first, 0, 60.0), "it is not to be unpinned any more"
    await world.publishing.removed(first)
    await world.work()
    assert await world.all() == {"published": 4}


@_case
async def a_job_that_is_held_is_let_go_when_it_is_not_wanted(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look()
    jobs = await world.publishing.claim([KUBO], 10, 60.0)
    assert await world.publishing.progress(jobs[0], 1000, 60.0)
    await world.publishing.unpublish("acme/*", BY)
    await world.look()
    assert not await world.publishing.progress(jobs[0], 2000, 60.0)
    assert await world.publishing.claim([KUBO], 10, 60.0) == [], "nobody unpins while somebody still publishes"
    for job in jobs[:2]:
        await world.publishing.release(job)
    await world.publishing.published(jobs[2])
    await world.publishing.failed(jobs[3], "no answer", 5.0)
    assert {job.state for job in await world.publishing.claim([KUBO], 10, 60.0)} == {"unpinning"}
    assert await world.all() == {"unpinning": 4}


@_case
async def a_lease_that_runs_out_is_another_trackers(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look()
    slow = (await world.publishing.claim([KUBO], 10, -1.0))[0]
    quick = (await world.publishing.claim([KUBO], 10, 60.0))[0]
    assert (quick.id, quick.attempts) == (slow.id, 2)
    assert not await world.publishing.progress(slow, 5, 60.0)
    await world.publishing.published(slow)
    assert await world.all() == {"publishing": 4}
    await world.publishing.published(quick, "there already")
    (state,) = await world.publishing.states([quick.item.cid])
    assert (state.state, state.error, state.attempts) == ("published", "there already", 0)


@_case
async def what_failed_is_tried_again_or_never(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look()
    first, second, third, _ = await world.publishing.claim([KUBO], 10, 60.0)
    await world.publishing.failed(first, "no answer", 0.0)
    await world.publishing.failed(second, "no\0answer", 3600.0)
    await world.publishing.failed(third, "the wrong root", None)
    (again,) = await world.publishing.claim([KUBO], 10, 60.0)
    assert (again.id, again.attempts) == (first.id, 2)
    assert await world.all() == {"publishing": 2, "queued": 1, "failed": 1}
    assert {state.error for _, state in await world.publishing.failures(10)} >= {"the wrong root"}
    assert await world.publishing.retry(BY) == 2
    assert {job.id for job in await world.publishing.claim([KUBO], 10, 60.0)} == {second.id, third.id}
    assert await world.publishing.retry(BY) == 0


@_case
async def what_is_nobodys_fault_is_no_try(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look(KUBO, "car-upload")
    assert {job.service for job in await world.publishing.claim([KUBO, "car-upload"], 3, 60.0, only="car-upload")} == {
        "car-upload"
    }
    (job,) = await world.publishing.claim([KUBO], 1, 60.0, only=KUBO)
    for _ in range(3):
        await world.publishing.failed(job, "nobody answers", 0.0, counts=False)
        (again,) = [one for one in await world.publishing.claim([KUBO], 10, 0.0, only=KUBO) if one.id == job.id]
        assert again.attempts == 1
        job = again
    await world.publishing.failed(job, "nobody answers", 0.0, counts=False)
    (state,) = [one for one in await world.publishing.states([job.item.cid]) if one.service == KUBO]
    assert (state.state, state.attempts, state.error) == ("queued", 0, "nobody answers")


@_case
async def what_is_published_is_checked_and_published_again_if_it_is_lost(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look()
    await world.work()
    assert await world.publishing.claim([KUBO], 10, 60.0) == [], "nothing is checked unless it is said so"
    await world.publishing.check_all(0.0)
    there, lost, later, gone = await world.publishing.claim([KUBO], 10, 60.0)
    assert {job.state for job in (there, lost, later, gone)} == {"published"}
    assert await world.publishing.progress(there, 0, 60.0)
    await world.publishing.published(there, None, 3600.0)
    await world.publishing.lost(lost, "it was not there any more")
    await world.publishing.failed(later, "no answer", 3600.0, counts=False)
    assert await world.all() == {"published": 3, "queued": 1}
    (again,) = await world.publishing.claim([KUBO], 10, 60.0)
    assert (again.id, again.state, again.attempts) == (lost.id, "publishing", 1)
    await world.publishing.check_all(0.0)
    assert await world.publishing.claim([KUBO], 10, 60.0) == [], "each has its time already, or is held"
    await world.publishing.unpublish("acme/*", BY)
    await world.look()
    await world.publishing.published(gone, None, 0.0)
    await world.publishing.lost(there, "that was long ago")
    assert await world.all() == {"unpinning": 4}


@_case
async def a_service_that_pins_is_asked_again(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look(PINNING)
    job = (await world.publishing.claim([PINNING], 1, 60.0))[0]
    await world.publishing.later(job, "request-1", 0.0)
    again = next(one for one in await world.publishing.claim([PINNING], 10, 60.0) if one.id == job.id)
    assert (again.remote, again.state, again.attempts) == ("request-1", "publishing", 1)
    await world.publishing.failed(again, "503", 0.0)
    again = (await world.publishing.claim([PINNING], 1, 60.0))[0]
    assert again.remote == "request-1"
    await world.publishing.failed(again, "404", 0.0, forget=True)
    forgotten = (await world.publishing.claim([PINNING], 1, 60.0))[0]
    assert (forgotten.id, forgotten.remote, forgotten.attempts) == (again.id, None, 3)
    await world.publishing.unpublish("acme/*", BY)
    await world.look(PINNING)
    assert (await world.all())["unpinning"] == 4


@_case
async def pinning_comes_after_the_import_that_it_pins_from(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    await world.image("acme/api", "v1")
    await world.look(KUBO, PINNING)
    jobs = await world.publishing.claim([KUBO, PINNING], 10, 60.0)
    assert {job.service for job in jobs} == {KUBO}
    await world.publishing.published(jobs[0])
    (pin,) = await world.publishing.claim([KUBO, PINNING], 10, 60.0)
    assert (pin.service, pin.item) == (PINNING, jobs[0].item)
    await world.publishing.failed(jobs[1], "never", None)
    assert len(await world.publishing.claim([KUBO, PINNING], 10, 60.0)) == 1
    assert len(await world.publishing.claim([PINNING], 10, 60.0)) == 2, "without an import there is nothing to wait for"


@_case
async def an_image_pushed_again_has_a_new_claim(world: World) -> None:
    await world.publishing.publish("acme/*", BY)
    digest = await world.image("acme/api", "v1")
    await world.look()
    await world.work()
    before = await world.publishing.image("acme/api", digest)
    manifest = await world.catalog.manifest("acme/api", digest)
    assert before is not None
    assert manifest is not None
    new = NewManifest(digest, OCI_MANIFEST, manifest.body, tuple(item.digest for item in before.blobs), ())
    await world.catalog.put_manifest("acme/api", new, ["v1"], world.sign, BY)
    after = await world.publishing.image("acme/api", digest)
    assert after is not None
    assert after.claim.cid != before.claim.cid
    assert after.claim.cid[:4] == CID_RAW_PREFIX
    await world.look()
    assert await world.all() == {"published": 3, "unpinning": 1, "queued": 1}
    assert await world.publishing.block(before.claim) is None

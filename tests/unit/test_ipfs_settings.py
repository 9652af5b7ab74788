"""What a tracker can be told of IPFS: rules between settings, and what follows from them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from p2pregistry.errors import SettingsError
from p2pregistry.objects.kubo import KuboObjects
from p2pregistry.settings import load
from tracker.ipfs_services import KuboService, PinService, UploadService, open_services
from tracker.ipfs_settings import Ipfs
from tracker.settings import TrackerSettings
from tracker.storage import kubo_of, open_objects

KUBO = {"kubo.url": "http://127.0.0.1:5001"}
EVERYTHING = {
    **KUBO,
    "ipfs.services": ["kubo", "car-upload", "pinning"],
    "ipfs.upload_url": "https://ipfs.example.com/{cid}",
    "ipfs.upload_token": "of-uploads",
    "ipfs.pinning_url": "https://pins.example.com/psa",
    "ipfs.pinning_token": "of-pins",
    "ipfs.origins": ["/dns4/ipfs.example.com/tcp/4001/p2p/12D3KooW"],
}


def settings(**values: object) -> TrackerSettings:
    made = load(TrackerSettings, overrides={key.replace("__", "."): value for key, value in values.items()})
    made.check()
    return made


REFUSED = [
    ({"storage.kind": "ipfs"}, "kubo.url"),
    ({"ipfs.services": ["kubo"]}, "kubo.url"),
    ({"ipfs.services": ["car-upload"]}, "ipfs.upload_url"),
    ({"ipfs.services": ["pinning"]}, "ipfs.pinning_url"),
    ({"ipfs.services": ["filecoin"]}, "ipfs.services"),
    ({"ipfs.upload_url": "ftp://host"}, "ipfs.upload_url"),
    ({"ipfs.pinning_url": "https://user:word@host"}, "ipfs.pinning_url"),
    ({"ipfs.pinning_url": "https://host:port"}, "ipfs.pinning_url"),
    ({"ipfs.upload_remove_url": "https://host/pins"}, "ipfs.upload_remove_url"),
    ({"ipfs.upload_token": "a", "ipfs.upload_token_file": "b"}, "ipfs.upload_token_file"),
    ({"ipfs.pinning_token": "a", "ipfs.pinning_token_file": "b"}, "ipfs.pinning_token_file"),
    ({"kubo.secret": "a", "kubo.secret_file": "b"}, "kubo.secret_file"),
    ({"ipfs.upload_field": 'a"b'}, "ipfs.upload_field"),
    ({"ipfs.origins": ["host:4001"]}, "ipfs.origins[0]"),
    ({"ipfs.origins": ["/ip4/192.0.2.1"] * 21}, "ipfs.origins"),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_what_does_not_go_together(index: int) -> None:
    values, named = REFUSED[index]
    with pytest.raises(SettingsError) as refusal:
        settings(**values)
    assert refusal.value.message.startswith(f"$.{named}")


def test_a_daemon_that_cannot_be_is_named_and_its_secret_is_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^\$\.kubo\.url"):
        kubo_of(settings(**{"kubo.url": "localhost:5001"}))
    (tmp_path / "secret").write_text("of\tbad news\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"^\$\.kubo\.secret") as refusal:
        kubo_of(settings(**KUBO, **{"kubo.secret_file": str(tmp_path / "secret")}))
    assert "bad" not in refusal.value.message
    with pytest.raises(SettingsError, match=r"^\$\.kubo\.secret_file: .* cannot be read"):
        kubo_of(settings(**KUBO, **{"kubo.secret_file": str(tmp_path / "none")}))
    with pytest.raises(SettingsError, match=r"^\$\.kubo\.directory"):
        open_objects(settings(**KUBO, **{"storage.kind": "ipfs", "kubo.directory": "here"}), tmp_path)


async def test_blobs_in_a_daemon(tmp_path: Path) -> None:
    made = settings(**KUBO, **{"storage.kind": "ipfs", "kubo.secret": "bearer:of-good-news"})
    assert kubo_of(made).authorization == "Bearer of-good-news"
    async with open_objects(made, tmp_path) as store:
        assert isinstance(store, KuboObjects)
        assert store.place.top == "/p2pregistry"


async def test_services_of_the_settings_are_opened(tmp_path: Path) -> None:
    made = settings(**EVERYTHING)
    async with AsyncExitStack() as stack:
        services = await open_services(made, stack)
        kinds = {name: type(service) for name, service in services.items()}
        assert kinds == {"kubo": KuboService, "car-upload": UploadService, "pinning": PinService}
    async with AsyncExitStack() as stack:
        assert await open_services(settings(), stack) == {}
        missing = settings(**{**EVERYTHING, "ipfs.pinning_token": None, "ipfs.pinning_token_file": str(tmp_path / "x")})
        with pytest.raises(SettingsError, match=r"^\$\.ipfs\.pinning_token_file"):
            await open_services(missing, stack)


@pytest.mark.parametrize("token", ["t\u00f6ken", "two words", "a\x7f"])
async def test_a_token_that_no_header_holds_is_refused_at_the_start(token: str) -> None:
    settings = TrackerSettings(
        ipfs=Ipfs(services=("pinning",), pinning_url="https://pins.example.com", pinning_token=token)
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError) as caught:
            await open_services(settings, stack)
    assert "$.ipfs.pinning_token:" in caught.value.message
    assert token not in caught.value.message

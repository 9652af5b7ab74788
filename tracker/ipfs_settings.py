"""What a tracker can be told of publishing to IPFS."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from p2pregistry.errors import SettingsError
from p2pregistry.settings import Positive, Seconds, Section, Setting
from tracker.storage_settings import Kubo

Texts = tuple[str, ...]
_FIELD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
Service = Literal["kubo", "car-upload", "pinning"]


class Ipfs(Section, frozen=True):
    services: Annotated[
        tuple[Service, ...],
        Setting(
            "Where repositories are published that `tracker ipfs publish` names: kubo (the daemon of the section kubo),"
            " car-upload, pinning."
        ),
    ] = ()
    encrypted: Annotated[
        bool,
        Setting(
            "Publish images of private repositories too if all their layers are encrypted; their configurations are"
            " not, and anybody can read them then."
        ),
    ] = False
    concurrency: Annotated[Positive, Setting("Blobs that each tracker publishes at once at each service.")] = 4
    rate: Annotated[
        Positive | None,
        Setting(
            "Bytes a second that this tracker sends to all services; unset: no limit.", unit="bytes", example="10485760"
        ),
    ] = None
    attempts: Annotated[Positive, Setting("Tries of one blob at one service, at pauses that grow to an hour.")] = 20
    verify: Annotated[
        Seconds | None,
        Setting(
            "How often it is checked that what was published is still pinned, to publish it again if it is not; unset:"
            " never.",
            unit="seconds",
        ),
    ] = 7 * 86400.0
    upload_url: Annotated[
        str | None,
        Setting(
            "Where car-upload sends each CAR; {cid} stands for its root.", example="https://ipfs.example.com/upload"
        ),
    ] = None
    upload_method: Annotated[Literal["POST", "PUT"], Setting("The method of those requests.")] = "POST"
    upload_field: Annotated[
        str | None,
        Setting("Send the CAR as this field of a form (multipart/form-data); unset: as the body.", example="file"),
    ] = None
    upload_remove_url: Annotated[
        str | None,
        Setting(
            "What is sent DELETE to unpin, with {cid}; unset: what was uploaded stays at the service.",
            example="https://ipfs.example.com/pins/{cid}",
        ),
    ] = None
    upload_token_file: Annotated[
        str | None, Setting("A file whose first line is the bearer token of car-upload.", example="/run/secrets/upload")
    ] = None
    upload_token: Annotated[
        str | None, Setting("That token itself, for the environment.", example="TOKEN", secret=True)
    ] = None
    pinning_url: Annotated[
        str | None,
        Setting("The URL of a service with the IPFS Pinning Service API.", example="https://pins.example.com/psa"),
    ] = None
    pinning_token_file: Annotated[
        str | None, Setting("A file whose first line is its access token.", example="/run/secrets/pinning")
    ] = None
    pinning_token: Annotated[
        str | None, Setting("That token itself, for the environment.", example="TOKEN", secret=True)
    ] = None
    origins: Annotated[
        Texts,
        Setting("Multiaddrs at which the pinning service finds the content, such as those of the daemon."),
    ] = ()
    poll: Annotated[Seconds, Setting("How often the pinning service is asked how far it is.", unit="seconds")] = 30.0


def check_ipfs(ipfs: Ipfs, kubo: Kubo) -> None:
    """Rules between values. Raises SettingsError."""
    needs = {"kubo": ("kubo.url", kubo.url), "car-upload": ("ipfs.upload_url", ipfs.upload_url)}
    needs["pinning"] = ("ipfs.pinning_url", ipfs.pinning_url)
    for service in ipfs.services:
        name, value = needs[service]
        if value is None:
            raise SettingsError(f"$.{name}: must be set where ipfs.services has {service}")
    for name in ("upload_url", "upload_remove_url", "pinning_url"):
        url = getattr(ipfs, name)
        if url is not None and not _is_url(url):
            raise SettingsError(f"$.ipfs.{name}: a URL that begins with http:// or https:// and shows no password")
    if ipfs.upload_field is not None and not _FIELD.fullmatch(ipfs.upload_field):
        raise SettingsError("$.ipfs.upload_field: up to 64 letters, digits and . _ -")
    for name in ("upload_token", "pinning_token"):
        if getattr(ipfs, name) is not None and getattr(ipfs, f"{name}_file") is not None:
            raise SettingsError(f"$.ipfs.{name}_file: ipfs.{name} is set too; give one of them")
    if ipfs.upload_remove_url is not None and "{cid}" not in ipfs.upload_remove_url:
        raise SettingsError("$.ipfs.upload_remove_url: must have {cid} in it")
    for index, origin in enumerate(ipfs.origins):
        if not origin.startswith("/") or not origin.isprintable() or len(origin) > 500:
            raise SettingsError(
                f"$.ipfs.origins[{index}]: a multiaddr such as /dns4/ipfs.example.com/tcp/4001/p2p/12D3..."
            )
    if len(ipfs.origins) > 20:
        raise SettingsError("$.ipfs.origins: the Pinning Service API takes 20 at most")


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and parts.username is None

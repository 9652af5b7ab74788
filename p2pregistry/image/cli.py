"""``p2pregistry image cid | export``: root CIDs of an image's parts, and a CAR file of them, from any registry."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

import click

if TYPE_CHECKING:
    from p2pregistry.image.credentials import Credentials
    from p2pregistry.image.inventory import Inventory, Item
    from p2pregistry.image.names import ImageName
    from p2pregistry.image.registry import Registry
    from p2pregistry.oci.platforms import Platform

F = TypeVar("F", bound=Callable[..., object])
#: Seconds between two lines of progress where the output is no terminal, and where it is one.
_LINE: Final = 5.0
_LOOK: Final = 0.2

_OPTIONS: Final = (
    click.argument("name", metavar="REF"),
    click.option(
        "--platform",
        "platforms",
        multiple=True,
        metavar="OS/ARCH",
        help="Of an index only the images for this one, as linux/arm64; may be repeated. Without it: all that the"
        " registry has.",
    ),
    click.option("--username", metavar="NAME", help="Who you are there; else what docker login or podman login kept."),
    click.option("--password-stdin", is_flag=True, help="Read the password, or a token, from standard input."),
    click.option(
        "--plain-http/--tls",
        default=None,
        help="How to speak to the registry. Without it: plain HTTP on this machine (TLS with a --ca-file), else TLS.",
    ),
    click.option(
        "--ca-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Certificates to trust instead of the system's.",
    ),
)


def _common(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def image() -> None:
    """Images in any registry: what they are called in IPFS, and how to take them there.

    REF is [host[:port]/]repository[:tag|@digest]. Without a host it is the node on this machine (localhost:5000);
    without a tag it is latest.

    Credentials are those of --username and --password-stdin, else those that docker or podman keep in their
    configuration file. Credential helpers (credsStore) are not asked.
    """


@image.command()
@_common
@click.option("--read", is_flag=True, help="Download blobs whose root CID the registry does not state, to reckon it.")
@click.option("--gateway", metavar="URL", help="The gateway in the commands that are printed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def cid(
    name: str,
    platforms: tuple[str, ...],
    username: str | None,
    password_stdin: bool,
    plain_http: bool | None,
    ca_file: Path | None,
    read: bool,
    gateway: str | None,
    as_json: bool,
) -> None:
    """Print the root CIDs of all parts of the image REF, and the commands that fetch each from elsewhere.

    Of a manifest, and of any blob up to 1 MiB, it follows from the bytes or the digest. Of a larger one a node and the
    tracker say what the signed claim names; for other registries use --read, which costs a download.
    """
    from p2pregistry.image import listing
    from p2pregistry.image.inventory import Inventory, with_roots

    parsed, wanted = _parse(name, platforms)
    with _registry(parsed, username, password_stdin, plain_http, ca_file) as registry:
        found = _take(registry, parsed, wanted)
        unknown = sum(item.size for item in found.items if item.root is None)
        with _Progress(unknown) as progress:
            items = with_roots(registry, found.items, read=read, progress=progress.add)
    found = Inventory(tuple(items), found.missing)
    where = (gateway or listing.GATEWAY).rstrip("/")
    if as_json:
        click.echo(json.dumps(listing.document(parsed, found, where)))
        return
    for line in listing.lines(parsed, found, where):
        click.echo(line)


@image.command()
@_common
@click.option(
    "--car", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write, or to replace."
)
@click.option(
    "--blob",
    "digests",
    multiple=True,
    metavar="DIGEST",
    help="Only this part of the image, for files of one root each; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def export(
    name: str,
    platforms: tuple[str, ...],
    username: str | None,
    password_stdin: bool,
    plain_http: bool | None,
    ca_file: Path | None,
    car: Path,
    digests: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the image REF to a CARv1 file that IPFS software takes: ipfs dag import FILE.

    It holds the blocks of manifests, configs and layers; their root CIDs are in the header, the image's own first, and
    on standard output. Every blob is compared with its digest before FILE gets its name.
    """
    from p2pregistry.digest import cid_text
    from p2pregistry.image.export import write_car
    from p2pregistry.image.inventory import with_roots

    parsed, wanted = _parse(name, platforms)
    with _registry(parsed, username, password_stdin, plain_http, ca_file) as registry:
        found = _take(registry, parsed, wanted)
        items = with_roots(registry, _only(found, digests), read=False)
        with _Progress(sum(item.size for item in items)) as progress:
            roots = write_car(registry, items, car, lambda _item, count: progress.add(count))
    parts = [
        {"kind": item.kind, "digest": str(item.digest), "size": item.size, "cid": cid_text(root)}
        for item, root in zip(items, roots, strict=True)
    ]
    if as_json:
        left_out = [str(missing.digest) for missing in found.missing]
        answer = {
            "image": str(parsed),
            "car": str(car),
            "size": car.stat().st_size,
            "parts": parts,
            "missing": left_out,
        }
        click.echo(json.dumps(answer))
        return
    for part in parts:
        click.echo(f"{part['kind']:<8}  {part['digest']}  {part['cid']}")


def _parse(name: str, platforms: tuple[str, ...]) -> tuple[ImageName, tuple[Platform, ...] | None]:
    from p2pregistry.image.names import parse_image
    from p2pregistry.oci.platforms import read_platforms

    try:
        return parse_image(name), read_platforms(platforms) if platforms else None
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--platform") from err


def _registry(
    name: ImageName, username: str | None, password_stdin: bool, plain: bool | None, ca: Path | None
) -> Registry:
    from p2pregistry.image.credentials import Credentials
    from p2pregistry.image.registry import Registry

    if (username is None) == password_stdin:
        raise click.UsageError("--username and --password-stdin go together")
    credentials: Credentials | None
    if username is not None:
        credentials = Credentials(username, sys.stdin.readline().rstrip("\r\n"))
    else:
        credentials = _kept(name.host)
    if plain is None:  # who names a certificate means TLS
        plain = name.loopback and ca is None
    return Registry(name, credentials, plain=plain, ca=ca)


def _kept(host: str) -> Credentials | None:
    """What docker or podman keeps for a registry, in the first of their files that has something."""
    from p2pregistry.image.credentials import from_config

    home, runtime = Path.home(), os.environ.get("XDG_RUNTIME_DIR")
    named = os.environ.get("REGISTRY_AUTH_FILE")
    places = [Path(named)] if named else []
    places.append(Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    places += [Path(runtime) / "containers/auth.json"] if runtime else []
    for place in (*places, home / ".config/containers/auth.json"):
        try:
            data = place.read_bytes()
        except OSError:
            continue
        if (found := from_config(data, host)) is not None:
            return found
    return None


def _take(registry: Registry, name: ImageName, platforms: tuple[Platform, ...] | None) -> Inventory:
    from p2pregistry.image.inventory import take
    from p2pregistry.image.listing import printable

    found = take(registry, name.reference, platforms)
    for missing in found.missing:
        click.echo(f"left out, not in this registry: {missing.digest} ({printable(missing.media_type)})", err=True)
    return found


def _only(found: Inventory, digests: tuple[str, ...]) -> list[Item]:
    from p2pregistry.digest import Digest
    from p2pregistry.errors import RequestError

    if not digests:
        return list(found.items)
    wanted = [Digest.parse(text) for text in digests]
    by_digest = {item.digest: item for item in found.items}
    for digest in wanted:
        if digest not in by_digest:
            raise RequestError("BLOB_UNKNOWN", f"--blob: {digest} is no part of this image")
    return [by_digest[digest] for digest in dict.fromkeys(wanted)]


class _Progress:
    """How far a download is, on standard error: one line that changes on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0 if self._terminal else _LINE)
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._said:
            click.echo("\r\033[K", err=True, nl=False)

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() < self._next:
            return
        from p2pregistry.image.listing import human

        self._next = time.monotonic() + (_LOOK if self._terminal else _LINE)
        self._said = True
        line = f"{human(self._done)} of {human(self._total)}"
        click.echo(f"\r\033[K{line}" if self._terminal else line, err=True, nl=not self._terminal)

"""What ``image cid`` prints: the parts of an image, their root CIDs, and how to fetch each from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import cid_text
from p2pregistry.image.inventory import Inventory, Item
from p2pregistry.image.names import ImageName

#: The place of a gateway's host in the commands, where none is given.
GATEWAY: Final = "https://GATEWAY"
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def document(name: ImageName, inventory: Inventory, gateway: str) -> dict[str, Any]:
    """For programs. Sizes in bytes; ``known`` says how the root CID is: reckoned from the digest or the ``bytes`` of a
    manifest, the ``claim`` of the registry, or ``read`` from the blob; null where it is not."""
    return {
        "image": str(name),
        "parts": [
            {
                "kind": item.kind,
                "digest": str(item.digest),
                "size": item.size,
                "media_type": item.media_type,
                "platform": item.platform or None,
                "cid": None if item.root is None else cid_text(item.root),
                "known": item.known,
                "commands": commands(item, gateway),
            }
            for item in inventory.items
        ],
        "missing": [str(missing.digest) for missing in inventory.missing],
    }


def commands(item: Item, gateway: str) -> dict[str, str]:
    """How to fetch one part elsewhere; empty where its root CID is not known.

    A blob of one block comes as it is; a larger one as a file from a daemon or from a gateway that puts files together,
    or with all its blocks as a CAR, which can be verified without trust in who sends it.
    """
    if item.root is None:
        return {}
    cid, file = cid_text(item.root), item.digest.hex[:12]
    found = {"ipfs_get": f"ipfs get -o {file} {cid}", "ipfs_cat": f"ipfs cat {cid} > {file}"}
    if item.size <= PIECE_SIZE:
        accept = "Accept: application/vnd.ipld.raw"
        found["gateway_raw"] = f"curl -fo {file} -H '{accept}' '{gateway}/ipfs/{cid}?format=raw'"
    else:
        accept = "Accept: application/vnd.ipld.car; version=1; order=dfs; dups=y"
        found["gateway_car"] = f"curl -fo {file}.car -H '{accept}' '{gateway}/ipfs/{cid}?format=car'"
    return found | {"dag_export": f"ipfs dag export {cid} > {file}.car"}


def lines(name: ImageName, inventory: Inventory, gateway: str) -> Iterator[str]:
    """For people."""
    yield f"image {name}"
    for item in inventory.items:
        yield ""
        about = (item.kind, str(item.digest), human(item.size), item.media_type, item.platform)
        yield "  ".join(printable(part) for part in about if part)
        if item.root is None:
            yield "  root CID not known: this registry does not state it; --read reckons it by downloading the blob"
            continue
        yield f"  {cid_text(item.root)}{_SAID[item.known or 'bytes']}"
        for command in commands(item, gateway).values():
            yield f"    {command}"
    for missing in inventory.missing:
        yield ""
        yield f"not in this registry: {missing.digest}  {human(missing.size)}  {printable(missing.media_type)}"
    yield ""
    yield "Whatever fetched a part: sha256sum of the file is its digest."


_SAID: Final = {"bytes": "", "claim": "  (as the registry's claim says)", "read": "  (reckoned from the bytes)"}


def printable(text: str) -> str:
    """What a manifest says, as a terminal may have it: 100 characters at most, none of which moves a cursor."""
    return "".join(char if char.isprintable() else "?" for char in text[:100])


def human(size: int) -> str:
    """A number of bytes for people: ``3.2 MiB``."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"

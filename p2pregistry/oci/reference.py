"""Names, tags, and the paths of the registry API.

Grammar: OCI distribution-spec, "Pulling manifests" and "Endpoints". A repository name may have any depth and may
contain components called ``blobs``, ``manifests`` or ``tags``, so paths are matched from the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
#: Clients limit host + "/" + name to 255 characters, so a longer name could never be pulled.
MAX_NAME = 255

Kind = Literal["base", "manifest", "blob", "uploads", "upload", "tags", "referrers", "catalog"]


def check_name(name: str) -> str:
    """``name`` if it is a repository name, else RequestError (NAME_INVALID)."""
    # The length first: the expression is linear, but there is no reason to run it over a megabyte.
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise RequestError(
            "NAME_INVALID",
            "a repository name is lower-case letters, digits and single separators, in parts divided by '/'",
            detail={"name": name[:MAX_NAME]},
        )
    return name


def check_tag(tag: str) -> str:
    """``tag`` if it is one, else RequestError (MANIFEST_INVALID, 400)."""
    if not _TAG.fullmatch(tag):
        raise RequestError(
            "MANIFEST_INVALID",
            "a tag is up to 128 letters, digits, '_', '.' and '-', and begins with none of '.' and '-'",
            detail={"tag": tag[:160]},
        )
    return tag


def parse_reference(reference: str) -> str | Digest:
    """A tag (str) or a digest: what stands behind ``/manifests/``. Raises RequestError."""
    if ":" in reference:
        return Digest.parse(reference)
    return check_tag(reference)


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the registry API taken apart; ``reference`` is what follows the keyword, not yet checked."""

    kind: Kind
    repository: str = ""
    reference: str = ""


def parse_path(path: str) -> Route:
    """Take a percent-decoded path apart.

    Raises NotFound for a path that is no endpoint (code NAME_UNKNOWN: the specification has none for this) and
    RequestError (NAME_INVALID) for a bad repository name. ``kind`` "upload" carries the session id as reference.
    """
    if path in ("/v2", "/v2/"):
        return Route("base")
    if path == "/v2/_catalog":
        return Route("catalog")
    if not path.startswith("/v2/"):
        raise NotFound("NAME_UNKNOWN", "there is no such endpoint")
    parts = path[4:].split("/")
    # blobs/uploads and blobs/uploads/ start an upload; blobs/uploads/<id> is one
    if parts[-2:] == ["blobs", "uploads"]:
        return Route("uploads", check_name("/".join(parts[:-2])))
    if len(parts) >= 4 and parts[-3:-1] == ["blobs", "uploads"]:
        name = check_name("/".join(parts[:-3]))
        return Route("upload", name, parts[-1]) if parts[-1] else Route("uploads", name)
    if len(parts) >= 3 and parts[-2:] == ["tags", "list"]:
        return Route("tags", check_name("/".join(parts[:-2])))
    if len(parts) >= 3 and parts[-2] in ("manifests", "blobs", "referrers") and parts[-1]:
        kinds: dict[str, Kind] = {"manifests": "manifest", "blobs": "blob", "referrers": "referrers"}
        return Route(kinds[parts[-2]], check_name("/".join(parts[:-2])), parts[-1])
    raise NotFound("NAME_UNKNOWN", "there is no such endpoint")

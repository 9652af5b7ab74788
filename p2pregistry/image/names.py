"""Names of images as people write them: ``[host[:port]/]repository[:tag|@digest]``.

The first part is a host as docker takes it for one: it has a dot or a port, or is ``localhost``. Without one the image
is in the node of this machine. Grammar: OCI distribution-spec "Pulling manifests"; Docker's "reference" package.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.reference import check_name, parse_reference

#: Where a name without a host is looked for: the pull API of the node on this machine.
LOCAL: Final = "localhost:5000"
_HOST: Final = re.compile(
    r"(?P<name>[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,252})|\[[0-9a-fA-F:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
#: Docker Hub is called by one name and reached by another, and its short names lack a part.
_HUB: Final = "docker.io"
_HUB_SERVER: Final = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class ImageName:
    """``host`` as written; ``reference`` is a tag or a digest."""

    host: str
    repository: str
    reference: str | Digest

    @property
    def server(self) -> str:
        """The host that is asked."""
        return _HUB_SERVER if self.host == _HUB else self.host

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        name = self.host.rpartition(":")[0] if re.search(r":[0-9]+$", self.host) else self.host
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return name == "localhost"

    def __str__(self) -> str:
        mark = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.host}/{self.repository}{mark}{self.reference}"


def parse_image(text: str) -> ImageName:
    """Raises RequestError that says what is wrong; ``detail`` names the part."""
    head, slash, rest = text.partition("/")
    host = LOCAL
    if slash and (head == "localhost" or "." in head or ":" in head):
        host, text = _host(head), rest
    text, at, digest = text.partition("@")
    name, colon, tag = text.rpartition(":")
    if not colon:
        name, tag = text, "latest"
    if host == _HUB and "/" not in name:
        name = f"library/{name}"
    check_name(name)
    reference = parse_reference(tag)
    if isinstance(reference, Digest):  # "sha256:..." cannot be a tag, and nothing else has a colon
        raise RequestError("NAME_INVALID", "a digest is written behind @", detail={"reference": tag[:160]})
    return ImageName(host, name, Digest.parse(digest) if at else reference)


def _host(text: str) -> str:
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        raise RequestError("NAME_INVALID", "the host is not host or host:port", detail={"host": text[:255]})
    return text

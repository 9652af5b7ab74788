"""Where an S3-compatible store is and how it wants to be spoken to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from p2pregistry.errors import SettingsError

MIB: Final = 1 << 20
#: Bytes of a temporary object, and of a part of a multipart upload: no less than S3 takes, and two of them are what a
#: draft may hold in memory.
PART_LEAST: Final = 5 * MIB
PART_MOST: Final = 8 * MIB
#: The longest a presigned link may live, seconds: seven days, which SigV4 sets.
LINK_MOST: Final = 604_800.0

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PREFIX: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*")
_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_KEY: Final = re.compile(r"[\x21-\x7e]+")
#: Cloudflare R2 refuses a multipart upload whose parts, but for the last, differ in length.
_EQUAL_PARTS: Final = ".r2.cloudflarestorage.com"


@dataclass(frozen=True, slots=True)
class S3Config:
    """Made by ``s3_config``, which checks it.

    ``path_style``: ``https://host/bucket/key`` and not ``https://bucket.host/key``. ``presign``: clients are sent to
    links at ``public_endpoint``. ``part_size``: bytes. ``sign_payload``: the hash of what is sent is part of the
    signature, as it must where TLS does not protect it. ``equal_parts``: all parts of a multipart upload but the last
    must have one length. ``requests`` and ``streams``: connections for short requests, and for what clients are sent.
    """

    endpoint: str
    region: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    path_style: bool = True
    presign: bool = False
    public_endpoint: str = ""
    part_size: int = PART_MOST
    sign_payload: bool = False
    equal_parts: bool = False
    ca_file: Path | None = None
    requests: int = 32
    streams: int = 256

    def url(self, key: str = "", *, public: bool = False) -> str:
        """The URL of a key, or of the bucket."""
        base = self.public_endpoint if public else self.endpoint
        if self.path_style:
            return f"{base}/{self.bucket}/{key}" if key else f"{base}/{self.bucket}"
        scheme, _, host = base.partition("://")
        return f"{scheme}://{self.bucket}.{host}/{key}"


def s3_config(
    *,
    endpoint: str,
    bucket: str,
    access_key: str,
    secret_key: str,
    session_token: str | None = None,
    region: str = "us-east-1",
    prefix: str = "",
    path_style: bool = True,
    presign: bool = False,
    public_endpoint: str | None = None,
    part_size: int = PART_MOST,
    sign_payload: bool | None = None,
    equal_parts: bool | None = None,
    ca_file: Path | None = None,
) -> S3Config:
    """A configuration from plain values, those of a settings file for example; None is for what follows from the rest.

    Raises SettingsError, whose message names the value but never shows a key.
    """
    endpoint = _endpoint("endpoint", endpoint)
    if not _BUCKET.fullmatch(bucket):
        raise SettingsError("bucket: no name of a bucket")
    if not path_style and not _BUCKET.fullmatch(bucket.lower()):
        raise SettingsError("bucket: this name cannot be part of a host name; use path_style")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    if not _PREFIX.fullmatch(prefix) or len(prefix) > 200:
        raise SettingsError("prefix: parts of letters, digits, . _ - with / between them, 200 characters at most")
    if not _REGION.fullmatch(region):
        raise SettingsError("region: a name such as us-east-1 or auto")
    for name, value in (("access_key", access_key), ("secret_key", secret_key), ("session_token", session_token)):
        if value is not None and not _KEY.fullmatch(value):
            raise SettingsError(f"{name}: is empty or has characters that no key has")
    if not PART_LEAST <= part_size <= PART_MOST:
        raise SettingsError(f"part_size: from {PART_LEAST} to {PART_MOST} bytes")
    if ca_file is not None and not ca_file.is_file():
        raise SettingsError(f"ca_file: {ca_file} is not a file")
    host = urlsplit(endpoint).hostname or ""
    return S3Config(
        endpoint=endpoint,
        region=region,
        bucket=bucket,
        prefix=prefix,
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        path_style=path_style,
        presign=presign,
        public_endpoint=_endpoint("public_endpoint", public_endpoint) if public_endpoint else endpoint,
        part_size=part_size,
        sign_payload=endpoint.startswith("http://") if sign_payload is None else sign_payload,
        equal_parts=host.endswith(_EQUAL_PARTS) if equal_parts is None else equal_parts,
        ca_file=ca_file,
    )


def _endpoint(name: str, value: str) -> str:
    scheme, _, host = value.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise SettingsError(f"{name}: a URL such as https://s3.example.org, without path, user or query")
    return f"{scheme}://{host.lower()}"

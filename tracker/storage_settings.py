"""What a tracker can be told of where bytes of blobs are."""

from __future__ import annotations

from typing import Annotated, Literal

from p2pregistry.errors import SettingsError
from p2pregistry.settings import Section, Setting


class Storage(Section, frozen=True):
    kind: Annotated[
        Literal["files", "s3", "ipfs"],
        Setting("Where bytes of blobs are: in files, in a bucket, or in the IPFS daemon of the section kubo."),
    ] = "files"
    path: Annotated[
        str | None,
        Setting(
            "The directory of blobs, which trackers of one database may share; unset: below the data directory.",
            example="/srv/p2pregistry/blobs",
        ),
    ] = None


class S3(Section, frozen=True):
    endpoint: Annotated[
        str | None,
        Setting("The URL of the S3-compatible service, without the bucket.", example="https://s3.example.com"),
    ] = None
    bucket: Annotated[str | None, Setting("The bucket.", example="images")] = None
    prefix: Annotated[str | None, Setting("What all keys begin with; unset: nothing.", example="registry/")] = None
    region: Annotated[str, Setting("The region that requests are signed for.")] = "us-east-1"
    access_key: Annotated[str | None, Setting("The access key's id.", example="AKIDEXAMPLE")] = None
    secret_key_file: Annotated[
        str | None, Setting("A file whose first line is the secret key.", example="/run/secrets/s3")
    ] = None
    session_token_file: Annotated[
        str | None,
        Setting(
            "A file whose first line is a session token, where keys are temporary.",
            example="/run/secrets/s3-token",
        ),
    ] = None
    path_style: Annotated[
        bool, Setting("The bucket stands in the path of URLs; false: it is a part of the host name.")
    ] = True
    reads: Annotated[
        Literal["proxied", "presigned"],
        Setting("Clients get blobs through the tracker, or are sent to the bucket by a link that is good for a while."),
    ] = "proxied"
    public_endpoint: Annotated[
        str | None,
        Setting(
            "The URL of the service as clients reach it; unset: as the tracker does.", example="https://s3.example.com"
        ),
    ] = None
    ca_file: Annotated[
        str | None,
        Setting("Certificates to trust for the service, PEM; unset: those of the system.", example="/etc/ssl/s3.pem"),
    ] = None


class Kubo(Section, frozen=True):
    url: Annotated[
        str | None,
        Setting(
            "The RPC of an IPFS daemon (Kubo) of yours, without /api/v0; whoever reaches it commands the daemon.",
            example="http://127.0.0.1:5001",
        ),
    ] = None
    secret_file: Annotated[
        str | None,
        Setting(
            "A file whose first line is the AuthSecret of the daemon's API.Authorizations: bearer:TOKEN or"
            " basic:USER:PASSWORD.",
            example="/run/secrets/kubo",
        ),
    ] = None
    secret: Annotated[
        str | None, Setting("That secret itself, for the environment.", example="bearer:TOKEN", secret=True)
    ] = None
    ca_file: Annotated[
        str | None,
        Setting("Certificates to trust for the RPC, PEM; unset: those of the system.", example="/etc/ssl/kubo.pem"),
    ] = None
    directory: Annotated[
        str,
        Setting('The directory of the daemon\'s files (MFS) that holds the blobs where storage.kind is "ipfs".'),
    ] = "/p2pregistry"


def check_storage(storage: Storage, s3: S3, kubo: Kubo) -> None:
    """Rules between values. Raises SettingsError."""
    if storage.kind == "s3":
        for name in ("endpoint", "bucket", "access_key", "secret_key_file"):
            if getattr(s3, name) is None:
                raise SettingsError(f'$.s3.{name}: must be set where storage.kind is "s3"')
    if storage.kind == "ipfs" and kubo.url is None:
        raise SettingsError('$.kubo.url: must be set where storage.kind is "ipfs"')
    if kubo.secret is not None and kubo.secret_file is not None:
        raise SettingsError("$.kubo.secret_file: kubo.secret is set too; give one of them")

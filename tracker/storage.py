"""Which object store a tracker uses."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from p2pregistry.errors import SettingsError
from p2pregistry.objects.base import ObjectStore
from p2pregistry.objects.files import open_file_objects
from tracker.settings import TrackerSettings, read_secret

if TYPE_CHECKING:
    from p2pregistry.ipfs.kubo import KuboConfig
    from p2pregistry.objects.s3_config import S3Config


def open_objects(settings: TrackerSettings, data: Path) -> AbstractAsyncContextManager[ObjectStore]:
    """The object store of the settings; ``data`` is the data directory. Raises SettingsError, and LocalError when it is
    entered."""
    if settings.storage.kind == "s3":
        from p2pregistry.objects.s3 import open_s3  # botocore takes a quarter of a second: only for who needs it

        return open_s3(_s3(settings))
    if settings.storage.kind == "ipfs":
        from p2pregistry.objects.kubo import check_directory, open_kubo_objects

        try:
            check_directory(settings.kubo.directory)
        except SettingsError as err:
            raise SettingsError(f"$.kubo.{err.message}") from err
        return open_kubo_objects(kubo_of(settings), settings.kubo.directory)
    return open_file_objects(Path(settings.storage.path or data / "blobs"))


def kubo_of(settings: TrackerSettings) -> KuboConfig:
    """How to reach the IPFS daemon of the settings. Raises SettingsError."""
    from p2pregistry.ipfs.kubo import kubo_config

    said = settings.kubo
    settings.check()
    secret = said.secret if said.secret_file is None else read_secret(said.secret_file, "kubo.secret_file")
    try:
        return kubo_config(
            said.url or "", secret=secret, ca_file=None if said.ca_file is None else Path(said.ca_file), connections=64
        )
    except SettingsError as err:
        raise SettingsError(f"$.kubo.{err.message}") from err


def _s3(settings: TrackerSettings) -> S3Config:
    from p2pregistry.objects.s3_config import s3_config

    said = settings.s3
    settings.check()
    token = said.session_token_file
    try:
        return s3_config(
            endpoint=said.endpoint or "",
            bucket=said.bucket or "",
            access_key=said.access_key or "",
            secret_key=read_secret(said.secret_key_file or "", "s3.secret_key_file"),
            session_token=None if token is None else read_secret(token, "s3.session_token_file"),
            region=said.region,
            prefix=said.prefix or "",
            path_style=said.path_style,
            presign=said.reads == "presigned",
            public_endpoint=said.public_endpoint,
            ca_file=None if said.ca_file is None else Path(said.ca_file),
        )
    except SettingsError as err:
        if err.message.startswith("$."):
            raise
        raise SettingsError(f"$.s3.{err.message}") from err

"""Which object store a tracker uses."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from p2pregistry.objects.base import ObjectStore
from p2pregistry.objects.files import open_file_objects
from tracker.settings import TrackerSettings


def open_objects(settings: TrackerSettings, data: Path) -> AbstractAsyncContextManager[ObjectStore]:
    """The object store of the settings; ``data`` is the data directory. Raises LocalError when it is entered."""
    return open_file_objects(Path(settings.storage.path or data / "blobs"))

"""That a process is gone, at any step of ``p2pregistry.objects.memory``."""

from __future__ import annotations


class Crash(BaseException):
    """The process is gone: nothing may handle this."""

"""Which repositories somebody sees, as a filter that a database can apply.

``None`` in place of a filter stands for everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pregistry.globs import matches


@dataclass(frozen=True, slots=True)
class Area:
    """The repositories whose names every one of the globs covers; ``public``: only the public ones among them."""

    globs: tuple[str, ...]
    public: bool = False

    def admits(self, repository: str, private: bool) -> bool:
        """Whether this one is among them."""
        return not (self.public and private) and all(matches(glob, repository) for glob in self.globs)


@dataclass(frozen=True, slots=True)
class Visible:
    """The repositories in at least one of the areas; without areas: none."""

    areas: tuple[Area, ...] = ()

    def admits(self, repository: str, private: bool) -> bool:
        """Whether this one is seen."""
        return any(area.admits(repository, private) for area in self.areas)

    @classmethod
    def of(cls, globs: Iterable[str], *, public: bool = True) -> Visible:
        """What these globs cover, and with ``public`` all that is public."""
        own = tuple(Area((glob,)) for glob in globs)
        return cls((EVERYTHING_PUBLIC, *own) if public else own)


#: All that is public.
EVERYTHING_PUBLIC = Area(("**",), public=True)

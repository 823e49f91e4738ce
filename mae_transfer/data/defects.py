"""What is wrong with a data set: collected to the end, so that one pass names everything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from rich.progress import track

T = TypeVar("T")
EXAMPLES = 5


class Defect(NamedTuple):
    """One kind of defect."""

    kind: str
    number: int
    examples: tuple[str, ...]  # the first EXAMPLES of them, by file or id

    def __str__(self) -> str:
        return f"{self.number} x {self.kind}: {', '.join(self.examples)}{' ...' if self.number > len(self.examples) else ''}"


class Defects:
    """A collection in the making."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, where: object) -> None:
        """Note one defect."""
        self._found.setdefault(kind, []).append(str(where))

    def add_all(self, kind: str, where: Sequence[object]) -> None:
        """Note the same defect in many places."""
        for place in where:
            self.add(kind, place)

    def collected(self) -> list[Defect]:
        """Return one Defect per kind, in the order in which they were met first."""
        return [Defect(kind, len(places), tuple(places[:EXAMPLES])) for kind, places in self._found.items()]


def watched(items: Iterable[T], *, what: str, total: int) -> Iterable[T]:
    """Return the items behind a progress bar, which a log that is no terminal is spared."""
    return track(items, description=what, total=total, transient=True, disable=not sys.stdout.isatty())

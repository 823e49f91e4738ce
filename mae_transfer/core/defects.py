"""Collect the defects of a data set, so that one pass reports all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EXAMPLES = 5


class Defect(NamedTuple):
    """One kind of defect."""

    kind: str
    number: int
    examples: tuple[str, ...]  # the first EXAMPLES, by file or id
    remedy: str = ""  # for the user
    policy: str = ""  # how a run handles it, "left out" for instance; empty: no run accepts it

    def __str__(self) -> str:
        policy = f" ({self.policy})" if self.policy else ""
        examples = f"{', '.join(self.examples)}{' ...' if self.number > len(self.examples) else ''}"
        return f"{self.number} x {self.kind}{policy}: {examples}{f'; {self.remedy}' if self.remedy else ''}"


class Defects:
    """Collects defects and groups them by kind."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[str]] = {}

    def add(self, kind: str, where: object, *, remedy: str = "", policy: str = "") -> None:
        """Note one defect."""
        self._found.setdefault((kind, remedy, policy), []).append(str(where))

    def add_all(self, kind: str, where: Sequence[object], *, remedy: str = "", policy: str = "") -> None:
        """Note the same defect of several files or objects."""
        for one in where:
            self.add(kind, one, remedy=remedy, policy=policy)

    def collected(self) -> list[Defect]:
        """Return one Defect per kind in the order found, with those that no run accepts first."""
        found = [
            Defect(kind, len(where), tuple(where[:EXAMPLES]), remedy, policy)
            for (kind, remedy, policy), where in self._found.items()
        ]
        return sorted(found, key=lambda defect: bool(defect.policy))


def refused(defects: Sequence[Defect], *, where: object) -> None:
    """Raise ValueError with the first defect that no run accepts, if any."""
    wrong = [defect for defect in defects if not defect.policy]
    if wrong:
        others = f"; {len(wrong) - 1} more kinds of defect" if len(wrong) > 1 else ""
        raise ValueError(f"{where}: {wrong[0]}{others} (tools/prepare_data.py check lists every defect)")

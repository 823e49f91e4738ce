"""Defects of a data set, and a progress bar for the check."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.progress import track

from mae_transfer.core.defects import Defect, Defects

__all__ = ["Defect", "Defects", "watched"]

T = TypeVar("T")


def watched(items: Iterable[T], *, what: str, total: int) -> Iterable[T]:
    """Iterate over items with a progress bar. The bar is shown only in a terminal."""
    return track(items, description=what, total=total, transient=True, disable=not sys.stdout.isatty())

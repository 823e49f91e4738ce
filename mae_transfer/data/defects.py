"""What is wrong with a data set, and the progress of looking for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.progress import track

from mae_transfer.core.defects import Defect, Defects

__all__ = ["Defect", "Defects", "watched"]

T = TypeVar("T")


def watched(items: Iterable[T], *, what: str, total: int) -> Iterable[T]:
    """Return the items behind a progress bar, which a log that is no terminal is spared."""
    return track(items, description=what, total=total, transient=True, disable=not sys.stdout.isatty())

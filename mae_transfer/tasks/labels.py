"""Checks that a training state learned the classes of the data, in the same order. Tensor shapes would not show it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any


def classes_digest(classes: tuple[str, ...]) -> str:
    """Return the number of classes and a short digest of their names in order."""
    return f"{len(classes)} classes {hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:12]}"


def learned(extra: Mapping[str, Any], classes: tuple[str, ...], *, where: str) -> None:
    """Raise ValueError if a training state learned other classes than these, or these in another order.

    The tensors of as many classes fit, but every figure would be wrong.

    extra: that of the training state. Its `names` are the learned classes; without them nothing is checked.
    """
    names = extra.get("names")
    if names is not None and names != list(classes):
        k, (was, now) = next((k, pair) for k, pair in enumerate(zip_longest(names, classes)) if pair[0] != pair[1])
        raise ValueError(
            f"{where} learned {len(names)} classes, the data have {len(classes)}; class {k} was {was!r} and is {now!r}"
            ": use the classes that it learned"
        )

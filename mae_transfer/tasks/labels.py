"""The classes that a training state learned: a state of others, or of these in another order, is refused; its tensors would fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any


def classes_digest(classes: tuple[str, ...]) -> str:
    """Return what a training state is known by: how many classes, and their names in order, shortened."""
    return f"{len(classes)} classes {hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:12]}"


def learned(extra: Mapping[str, Any], classes: tuple[str, ...], *, where: str) -> None:
    """Raise ValueError where a state learned other classes, or these in another order: as many of them fit, and every figure would be wrong.

    extra: the state's, with the `names` that it learned; one without any is taken as it is.
    """
    known = extra.get("names")
    if known is not None and known != list(classes):
        k, (was, now) = next((k, pair) for k, pair in enumerate(zip_longest(known, classes)) if pair[0] != pair[1])
        raise ValueError(
            f"{where} learned {len(known)} classes, the data have {len(classes)}; class {k} was {was!r} and is {now!r}"
        )

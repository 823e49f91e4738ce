"""Where data lie and what happens to files that cannot be read: the part of a config that every kind of data set shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from mae_transfer.bounds import Whole
from mae_transfer.config import Schema, Spec, build
from mae_transfer.data.loader import Unreadable

T = TypeVar("T", bound=Sized)
VIEWED = {"part", "first", "length", "skip_empty", "masks"}  # options that do not say which set it is


class Places(Schema):
    """Where the images are, and what an unreadable one does."""

    root: str | None = None
    """Folder of the data set; fills in for every spec below that takes a root and names none."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable file does: stop the run, or be reported and done without: another takes its place in training; evaluation leaves it out."""
    max_unreadable: Whole = 100
    """Different unreadable files that `skip` accepts in one process before it stops the run."""

    def named(self, train: Spec) -> str:
        """Return what tables call the data set: its folder's own name, or the kind of generated images."""
        return Path(self.root).name if self.root else train.name

    def unreadable(self) -> Unreadable:
        """Return the policy for unreadable files, whose `files` is the record of those met so far."""
        return Unreadable(limit=self.max_unreadable if self.on_error == "skip" else 0)


def opened(
    table: Mapping[str, Callable[..., T]],
    spec: Spec,
    root: str | None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> T:
    """Return the data set of a spec; `root` (data.root) is its root where it takes one and names none, and so are the other `defaults`.

    ValueError where it is empty, or needs a root and has none.
    """
    complete = rooted(table, spec, root, defaults)
    if "root" in complete.options and complete.options["root"] is None:
        raise ValueError(f"the data set {spec.name!r} needs a folder: set data.root")
    source = build(table, complete)
    if not len(source):
        raise ValueError(f"the data set {spec.name!r} is empty: {spec.options}")
    return source


def rooted(
    table: Mapping[str, Callable[..., T]],
    spec: Spec,
    root: str | None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Spec:
    """Return the spec with `root`, and the other `defaults`, filled in where its entry takes them and it does not say them itself."""
    takes = inspect.signature(table[spec.name]).parameters if spec.name in table else {}
    filled = {name: value for name, value in {"root": root, **defaults}.items() if name in takes}
    return Spec.model_validate({**filled, **spec.model_dump()})


def apart(holdout: Spec | None, others: Mapping[str, Spec]) -> None:
    """Raise ValueError where the held-out images are also among those of another set (by its key in the config)."""
    if holdout is None:
        return
    for key, other in others.items():
        one, two = ({k: v for k, v in spec.model_dump().items() if k not in VIEWED} for spec in (holdout, other))
        (start, end), (low, high) = (spec.options.get("part", (0.0, 1.0)) for spec in (holdout, other))
        if one == two and max(start, low) < min(end, high):
            raise ValueError(
                f"data.holdout shares images with data.{key}: give them parts of one set that do not overlap, "
                "for instance data.train.part=(0.0, 0.95) and data.holdout.part=(0.95, 1.0)"
            )


def same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raise ValueError where training and validation set have different classes, or these in another order: labels would not mean the same."""
    if train != val:
        different = sorted(set(train) ^ set(val))[:5]
        how = f"in one of them only: {different}" if different else "the same names in another order"
        raise ValueError(f"training set has {len(train)} classes, validation set {len(val)}; {how}")

"""Config fields shared by all kinds of data sets: the folder and the policy for unreadable files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mae_transfer.bounds import Whole
from mae_transfer.config import Schema, Spec, build
from mae_transfer.data.loader import Unreadable

T = TypeVar("T", bound=Sized)
VIEWED = {"part", "first", "length", "skip_empty", "masks"}  # options that select from a set and do not identify it


class Places(Schema):
    """The folder of the images, and the policy for unreadable files."""

    if TYPE_CHECKING:
        train: Spec  # each kind of data has its own default

    root: str | None = None
    """Folder of the data set. It is the default `root` of the data sets below."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with an unreadable file. "raise": stop the run. "skip": report it, then use another image instead
    (training) or leave it out (evaluation)."""
    max_unreadable: Whole = 100
    """Number of different unreadable files per process that "skip" accepts before it stops the run."""

    @property
    def name(self) -> str:
        """The data set's name in tables: the name of its folder, or the kind of generated images."""
        return Path(self.root).name if self.root else self.train.name

    def unreadable(self) -> Unreadable:
        """Return the policy for unreadable files. Its `files` record those found so far."""
        return Unreadable(limit=self.max_unreadable if self.on_error == "skip" else 0)


def opened(
    table: Mapping[str, Callable[..., T]],
    spec: Spec,
    root: str | None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> T:
    """Return the data set of a spec. `root` (data.root) and `defaults` fill in options that the spec does not set.

    Raises:
        ValueError: the data set is empty, or needs a root and has none.
    """
    complete = rooted(table, spec, root, defaults)
    if "root" in complete.options and complete.options["root"] is None:
        raise ValueError(f"the data set {spec.name!r} needs a folder: set data.root")
    source = build(table, complete)
    if not len(source):
        raise ValueError(f"the data set {spec.name!r} is empty; check its options: {spec.options}")
    return source


def rooted(
    table: Mapping[str, Callable[..., T]],
    spec: Spec,
    root: str | None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Spec:
    """Return the spec with `root` and `defaults` filled in, for options that its data set takes and it does not set."""
    takes = inspect.signature(table[spec.name]).parameters if spec.name in table else {}
    filled = {name: value for name, value in {"root": root, **defaults}.items() if name in takes}
    return Spec.model_validate({**filled, **spec.model_dump()})


def apart(holdout: Spec | None, others: Mapping[str, Spec]) -> None:
    """Raise ValueError if the hold-out shares images with another set. `others`: sets by their key in the config."""
    if holdout is None:
        return
    for key, other in others.items():
        one, two = ({k: v for k, v in spec.model_dump().items() if k not in VIEWED} for spec in (holdout, other))
        (start, end), (low, high) = (spec.options.get("part", (0.0, 1.0)) for spec in (holdout, other))
        if one == two and max(start, low) < min(end, high):
            raise ValueError(
                f"data.holdout shares images with data.{key}: use parts that do not overlap, for instance "
                "data.train.part=(0.0, 0.95) and data.holdout.part=(0.95, 1.0)"
            )


def same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raise ValueError if the classes of training and validation set differ in names or order."""
    if train != val:
        different = sorted(set(train) ^ set(val))[:5]
        how = f"only one set has {different}" if different else "the names are the same, but their order differs"
        raise ValueError(
            f"training set has {len(train)} classes, validation set {len(val)}; {how}: use the same list of classes"
        )

"""Where data lie and what happens to files that cannot be read: the part of a config that every kind of data set shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from mae_transfer.config import Schema, Spec, build
from mae_transfer.data.loader import Unreadable

T = TypeVar("T")


class Places(Schema):
    """Where the images are, and what an unreadable one does."""

    root: str | None = None
    """Folder of the data set; fills in for every spec below that takes a root and names none."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable file does: stop the run, or be reported and done without: another takes its place, save where a dense task evaluates."""
    max_unreadable: int = 100
    """Different unreadable files that `skip` accepts in one process before it stops the run."""

    def named(self, train: Spec) -> str:
        """Return what tables call the data set: its folder's own name, or the kind of generated images."""
        return Path(self.root).name if self.root else train.name

    def unreadable(self) -> Unreadable:
        """Return the policy for unreadable files, whose `files` is the record of those met so far."""
        return Unreadable(limit=self.max_unreadable if self.on_error == "skip" else 0)


def opened(table: Mapping[str, Callable[..., T]], spec: Spec, root: str | None) -> T:
    """Return the data set of a spec; `root` (data.root) is its root where it takes one and names none."""
    complete = rooted(table, spec, root)
    if "root" in complete.options and complete.options["root"] is None:
        raise ValueError(f"the data set {spec.name!r} needs a folder: set data.root")
    return build(table, complete)


def rooted(table: Mapping[str, Callable[..., T]], spec: Spec, root: str | None) -> Spec:
    """Return the spec with `root` filled in where its entry takes one."""
    takes_root = spec.name in table and "root" in inspect.signature(table[spec.name]).parameters
    return Spec.model_validate({"root": root, **spec.model_dump()}) if takes_root else spec

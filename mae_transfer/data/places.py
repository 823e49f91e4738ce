"""Config fields shared by all kinds of data sets: the folder and the policy for unreadable files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from mae_transfer.bounds import Whole
from mae_transfer.config import Part, Schema
from mae_transfer.data.loader import Unreadable

T = TypeVar("T", bound=Sized)
VIEWED = {"part", "first", "length", "skip_empty", "masks"}  # options that select from a set and do not identify it


class SetConfig(Part):
    """A data set of a config."""

    @abstractmethod
    def open(self) -> Sized:
        """Return the data set. ValueError names what is missing or broken."""

    def completed(self, options: Mapping[str, Any]) -> Self:
        """Return the set with those of the options that it takes and does not set."""
        missing = type(self).model_fields.keys() - self.model_fields_set
        return self.but({name: value for name, value in options.items() if name in missing})


class FolderSetConfig(SetConfig):
    """A data set in a folder."""

    root: str | None = None
    """Folder of the data set. None: `data.root`."""

    @property
    def home(self) -> Path:
        """The folder. ValueError if none is set."""
        if self.root is None:
            raise ValueError(f"the data set {self.name!r} needs a folder: set data.root")
        return Path(self.root).expanduser()


class Places(Schema):
    """The folder of the images, and the policy for unreadable files."""

    if TYPE_CHECKING:
        train: SetConfig  # each kind of data has its own default

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


def check_filled(source: T, part: SetConfig) -> T:
    """Return the opened data set of a config; ValueError if it is empty."""
    if not len(source):
        raise ValueError(f"the data set {part.name!r} is empty; check its options: {part.model_dump()}")
    return source


def apart(holdout: SetConfig | None, others: Mapping[str, SetConfig]) -> None:
    """Raise ValueError if the hold-out shares images with another set. `others`: sets by their key in the config."""
    if holdout is None:
        return
    for key, other in others.items():
        one, two = ({k: v for k, v in part.model_dump().items() if k not in VIEWED} for part in (holdout, other))
        (start, end), (low, high) = (getattr(part, "part", (0.0, 1.0)) for part in (holdout, other))
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

"""What every target is built from: the format of the encoder's images, its config, and the files that it refers to."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, Protocol

from mae_transfer.config import Part
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Backbone, ImageTokenizer, Target


class Frame(NamedTuple):
    """The patches of the encoder's images."""

    patch: int  # side p of a patch, pixels
    grid: tuple[int, int]  # h x w patches in raster order
    statistics: Statistics  # normalisation of the encoder's images, one value per channel


class Teacher(NamedTuple):
    """A frozen backbone, and the normalisation of its images."""

    backbone: Backbone
    statistics: Statistics


class Files(Protocol):
    """Opens the references in the options of a target. A task provides it."""

    def tokenizer(self, reference: str) -> ImageTokenizer:
        """Return the tokenizer of a reference."""
        ...

    def teacher(self, reference: str) -> Teacher:
        """Return the backbone of a reference as a frozen teacher."""
        ...

    def basis(self, reference: str) -> Basis:
        """Return the fitted basis of a reference."""
        ...


class TargetConfig(Part):
    """A target of a config."""

    @abstractmethod
    def build(self, frame: Frame, files: Files) -> Target:
        """Return the target for images of this format."""

"""What the config of an objective says: its heads, its weights to export, and the batches that it can use."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor

from mae_transfer.config import Part
from mae_transfer.interfaces import Heads, Objective, World

Patches = Literal["masked", "matched"]


class ObjectiveConfig(Part):
    """An objective of joint embedding, by its name."""

    exported: Literal["average", "trained"]
    """The encoder that is evaluated and exported: the teacher ("average") or the student ("trained")."""

    @property
    @abstractmethod
    def system(self) -> str:
        """The published system whose objective this is, for tables: "DINO"."""

    @property
    def compares(self) -> Patches | None:
        """Which patches the objective compares. None: none."""
        return None

    @abstractmethod
    def heads(self, dim: int) -> Heads:
        """Create the heads behind an encoder of width D = `dim`."""

    @abstractmethod
    def build(self, world: World) -> Objective:
        """Create the objective."""

    def timed(self, epochs: float) -> Self:
        """Return the objective of a run of this length: shares of the run become epochs."""
        return self

    def is_live(self, epoch: float) -> bool:
        """Return whether the last layer of the heads trains at this time. Call it on a `timed` objective."""
        return True

    def check(self, *, batch: int, wide: int, narrow: int, epochs: float) -> None:
        """Raise ValueError if the objective cannot use this global batch, these numbers of views, or so few epochs."""
        if wide < 2:
            raise ValueError(
                f"data.views.wide = {wide}: the student compares its view with the teacher's of another one; set it to "
                "2"
            )

    def check_split(self, *, images: int, micro_steps: int, together: bool) -> None:
        """Raise ValueError if the objective cannot use so many images per forward pass, or micro-steps per step.

        together: whether batch norms have the statistics of all processes' images.
        """


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()

"""What a benchmark is asked to measure. This module imports no torch, so that the command line knows the defaults without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Mode = Literal["eager", "compiled"]


@dataclass(frozen=True)
class Work:
    """What one step works on."""

    size: str = "vit_base"  # a name of models.vit.SIZES
    patch: int = 16
    image: int = 224  # pixels per side
    batch: int = 16
    mask_ratio: float = 0.75
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast over float32 parameters
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the matmuls."""
        import torch

        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

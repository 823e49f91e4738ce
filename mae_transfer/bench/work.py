"""The settings of a benchmark. This module imports no torch, because the command line reads its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Mode = Literal["eager", "compiled"]


@dataclass(frozen=True)
class Work:
    """Model, batch and precision of one step."""

    size: str = "vit_base"  # key of models.vit.SIZES
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

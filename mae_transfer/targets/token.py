"""The tokens of a discrete tokenizer (BEiT, arXiv 2106.08254, section 2.2; MAE, table 1d "dVAE token").

Legend: B batch, N = h * w patches, M requested patches, P codes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.patches import paint, patchify, size_of, take
from mae_transfer.interfaces import Batch, ImageTokenizer, Interpolation, ViewSpec
from mae_transfer.targets.classes import ClassTarget
from mae_transfer.targets.frame import Files, Frame, TargetConfig


class TokenConfig(TargetConfig):
    """The code of each patch, with cross-entropy as the loss.

    The tokenizer has its own view: the encoder's crop, resized with Lanczos so that the grid of codes equals the
    encoder's grid of patches (BEiT: 112 px at stride 8 for 14 x 14 patches). MAE does not specify the view of its
    tokenizer; this project uses BEiT's.
    """

    name: Literal["token"] = "token"
    tokenizer: str
    """The tokenizer: a tokenizer.safetensors, or a reference to weights of another layout (dalle:PATH)."""
    interpolation: Interpolation = "lanczos"
    """Filter that resizes the tokenizer's view."""
    cache: str | None = None
    """A folder for the codes, for crops that are always the same. The loader then provides the codes (Batch.label,
    (B, N) int64)."""

    def build(self, frame: Frame, files: Files) -> Token:
        return Token(frame, files.tokenizer(self.tokenizer), self)


class Token(ClassTarget):
    """The target of TokenConfig."""

    def __init__(self, frame: Frame, tokenizer: ImageTokenizer, cfg: TokenConfig) -> None:
        super().__init__()
        self.patch, self.grid, self.cache = frame.patch, frame.grid, cfg.cache
        self.tokenizer, self.dim = tokenizer, tokenizer.codes
        self.view = ViewSpec(size_of(*(side * tokenizer.stride for side in frame.grid)), cfg.interpolation)
        self.views = () if cfg.cache else (self.view,)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the codes (B, M) int64 of patches `ids` (B, M)."""
        return self.codes(batch).gather(1, ids)

    @torch.no_grad()
    def codes(self, batch: Batch) -> Tensor:
        """Return the codes (B, N) int64 of all patches."""
        if self.cache:
            label: Tensor = batch.label
            return label
        codes = self.tokenizer(batch.views[0])
        if tuple(codes.shape[1:]) != self.grid:
            h, w = codes.shape[1:]
            raise ValueError(
                f"the tokenizer gives {h} x {w} codes for a view of {self.view.size} px, but the encoder has "
                f"{self.grid[0]} x {self.grid[1]} patches: correct the tokenizer's stride of {self.tokenizer.stride} px"
            )
        return codes.flatten(1)

    @torch.no_grad()
    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1]: predicted patches as the tokenizer decodes them, grey elsewhere.

        The tokenizer decodes the predicted codes together with the true codes of the other patches.
        """
        codes = self.codes(batch).scatter(1, ids, pred.argmax(dim=2)).view(-1, *self.grid)
        size = (self.grid[0] * self.patch, self.grid[1] * self.patch)
        drawn = F.interpolate(self.tokenizer.decode(codes), size=size, mode="bilinear", antialias=True)
        patches = patchify(drawn.clamp(0, 1), self.patch)
        return paint(take(patches, ids), ids, self.grid)

"""The model of joint embedding: an encoder and the heads of an objective. Student and teacher are two copies of it.

Legend: G wide and L narrow views, V = G + L of both, B batch, N patches of a view, M hidden patches of all views, D
encoder width, K width of the heads.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.config import Schema
from mae_transfer.core.patches import grid_of
from mae_transfer.interfaces import Backbone, Embedded, Heads, Hidden
from mae_transfer.models.initialize import STD
from mae_transfer.models.vit import ViT, ViTConfig


class JointModelConfig(Schema):
    """The encoder. The objective says which heads are behind it."""

    encoder: ViTConfig = ViTConfig()
    """The backbone; transfer keeps it."""
    timm: str | None = None
    """A model of timm as the backbone instead, with fresh weights: "swin_tiny_patch4_window7_224". Of `encoder`, only
    image_size and drop_path may be set then."""
    freeze_stem: bool = False
    """Whether the patch projection keeps its random weights (MoCo v3, section 4)."""

    @model_validator(mode="after")
    def _timm_has_its_own_encoder(self) -> Self:
        usual = ViTConfig()
        for key, value in self.encoder if self.timm else ():
            if key not in ("image_size", "drop_path") and value != getattr(usual, key):
                raise ValueError(
                    f"model.encoder.{key} = {value!r} has no effect on model.timm = {self.timm!r}: remove one of them"
                )
        if self.timm and self.freeze_stem:
            raise ValueError(
                f"model.freeze_stem = True, but only a ViT (model.encoder) has its patch projection, not model.timm = "
                f"{self.timm!r}: remove one of them"
            )
        return self

    def name(self) -> str:
        """Return the name of the encoder in tables."""
        return self.encoder.name() if self.timm is None else self.timm


class Joint(nn.Module):
    """An encoder with heads. The student calls it, the teacher calls `teach`."""

    def __init__(
        self, encoder: Backbone, heads: Heads, *, patches: Literal["masked", "matched"] | None, freeze_stem: bool
    ) -> None:
        """Put heads behind an encoder.

        Args:
            patches: which patches the heads embed: those that are hidden from the student, or those of all views.
            freeze_stem: keep the patch projection as it is (MoCo v3, section 4).
        Raises:
            ValueError: the encoder is not a ViT, and patches are hidden or the stem is frozen.
        """
        super().__init__()
        if not isinstance(encoder, ViT) and (freeze_stem or patches == "masked"):
            what = "freeze_stem = True" if freeze_stem else "objective.patches = 'masked'"
            raise ValueError(f"{what}, but {encoder.name()} has no mask token and no patch projection: use a ViT")
        self.encoder, self.patches = encoder, patches
        self.head, self.predictor = heads.image, heads.predictor
        self.patch_head = None if heads.patches is heads.image else heads.patches  # None: shared
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.dim)) if patches == "masked" else None
        if isinstance(encoder, ViT) and self.mask_token is not None and encoder.cfg.init != "dino":
            nn.init.normal_(self.mask_token, std=STD)
        if isinstance(encoder, ViT) and freeze_stem:
            encoder.patch_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> Joint:
        """Set the mode, but keep the heads in training mode: a SyncBN of a teacher would not synchronise otherwise."""
        super().train(mode)
        for head in (self.head, self.predictor, self.patch_head):
            if head is not None:
                head.train()
        return self

    def forward(self, wide: Tensor, narrow: Tensor | None = None, hidden: Hidden | None = None) -> Embedded:
        """Return the student's embedding of normalised views (G, B, C, S, T) and (L, B, C, s, t).

        hidden: the patches of the wide views that the student does not see.
        """
        groups = [self.encode(wide, hidden)] + ([] if narrow is None else [self.encode(narrow)])
        image = self.head(torch.cat([features for features, _ in groups]))
        image = image if self.predictor is None else self.predictor(image)
        features = groups[0][0].detach()
        if self.patches is None:
            return Embedded(features, image)
        tokens = self._compared([patches for _, patches in groups], hidden)
        return Embedded(features, image, tuple(map(self._patch_head, tokens)), tokens)

    @torch.no_grad()
    def teach(self, wide: Tensor, hidden: Hidden | None = None) -> Embedded:
        """Return the teacher's embedding of normalised wide views. It sees all patches."""
        features, patches = self.encode(wide)
        image = self.head(features)
        if self.patches is None:
            return Embedded(features, image)
        head = self._patch_head
        embedded = head.embed(patches)
        with torch.autocast(wide.device.type, enabled=False):  # prototypes are linear: the mean of their similarities
            mean = head.compare(embedded.to(head.prototypes.dtype).mean(dim=(0, 1, 2)))
        compared, tokens = (self._compared([part], hidden) for part in (embedded, patches))
        return Embedded(features, image, tuple(map(head.compare, compared)), tokens, mean)

    def encode(self, views: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Return the features of images (V, B, D) and of their patches (V, B, N, D), after the final norm."""
        count, encoder, images = len(views), self.encoder, views.flatten(0, 1)
        if hidden is None:
            found = encoder(images, norm=True)
            patches = found.maps[-1].flatten(2).transpose(1, 2)
            image = patches.mean(dim=1) if found.cls is None else found.cls
        else:
            assert isinstance(encoder, ViT)
            assert self.mask_token is not None
            grid = grid_of((images.shape[2], images.shape[3]), encoder.patch)
            embedded = encoder.patch_embed(images)
            token = self.mask_token.to(embedded.dtype).view(1, -1).expand(len(hidden.ids), -1)
            seen = embedded.flatten(0, 1).index_copy(0, hidden.ids, token).view_as(embedded)
            tokens = encoder.encode(encoder.place(seen, grid), grid)[-1]
            patches = tokens[:, encoder.leading :]
            image = tokens[:, 0] if encoder.leading else patches.mean(dim=1)
        return image.unflatten(0, (count, -1)), patches.unflatten(0, (count, -1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass instead of keeping their activations."""
        self.encoder.set_grad_checkpointing(enable)

    @property
    def _patch_head(self) -> Any:  # PrototypeHead
        return self.head if self.patch_head is None else self.patch_head

    def _compared(self, groups: list[Tensor], hidden: Hidden | None) -> tuple[Tensor, ...]:
        """Return of the patches (V, B, N, D) of wide and narrow views those to compare: the hidden ones, or all."""
        if self.patches != "masked":
            return tuple(view for views in groups for view in views)
        assert hidden is not None
        return (groups[0].flatten(0, 2).index_select(0, hidden.ids),)

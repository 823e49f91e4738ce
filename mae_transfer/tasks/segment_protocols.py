"""Segmentation protocols: UperNet, fine-tuned as a whole, and a linear head on a frozen encoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field

from mae_transfer.adapters import AdaptedBackbone, TapFPNConfig
from mae_transfer.adapters.mmseg import Segmenter, encoder_decoder, fcn_head, linear_head, uper_head
from mae_transfer.adapters.normed_taps import NormedTaps
from mae_transfer.bounds import BelowOne, Factor, FewOrNone, Weight, Width
from mae_transfer.config import Part
from mae_transfer.engine.optim import Group, Layers, OptimConfig, param_groups, select_exempt
from mae_transfer.interfaces import Backbone


class SegmentProtocol(Part):
    """The interface between the task and a protocol."""

    @property
    def title(self) -> str:
        """Name in tables: "upernet", "linear"."""
        return self.name

    @property
    def least(self) -> int:
        """The fewest crops per forward pass that its batch norms can train on."""
        return 1

    @abstractmethod
    def changes(self) -> dict[str, Any]:
        """Return the fields of the backbone's architecture that the protocol sets."""

    @abstractmethod
    def model(self, backbone: Backbone, classes: int) -> Segmenter:
        """Return the model around a loaded backbone, with the frozen parts frozen.

        Heads are initialised from torch's generator.
        """

    @abstractmethod
    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        """Return the optimizer's groups. They contain every trainable parameter once."""


class UperNet(SegmentProtocol):
    """UPerHead with an auxiliary FCNHead on four maps of the encoder (BEiT; MAE, A.4; mae_segmentation).

    Every parameter trains. None keeps what the backbone has, unless stated otherwise.
    """

    name: Literal["upernet"] = "upernet"
    taps: tuple[FewOrNone, ...] | None = None
    """Indices of the four maps, 0-based. Published: 3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L. None: after d/4,
    d/2, 3d/4 and d blocks, or the stages of a hierarchical backbone."""
    channels: Width | None = None
    """Width of UPerHead. None: the encoder's width, as published."""
    auxiliary: Weight = 0.4
    """Weight of the auxiliary head's loss. 0: no auxiliary head."""
    dropout: BelowOne = 0.1
    """Dropout of the heads' channels before their last layer."""
    drop_path: BelowOne = 0.1
    """Stochastic depth rate of the encoder's last block."""
    relative_positions: Literal["shared", "per_block"] | None = None
    """Adds relative position tables, initialised with zeros."""
    positions: Literal["learned"] | None = None
    """Whether MAE's fixed position table trains: "learned"."""
    layer_scale: Factor | None = None
    """Initial value of a layer scale if the backbone has none."""
    class_token: Literal[False] | None = None
    """False removes the class token from the encoder."""
    decays: Literal["spared", "published"] = "spared"
    """Weight decay of the position table, the class token and the bias tables. "spared": they have none. "published":
    they decay, as in the recipes of BEiT, mae_segmentation and mmseg, whose lists of exceptions lack the prefix that
    these parameters have there. `optim.no_decay` overrides it."""

    @property
    def least(self) -> int:
        """Return two: the first map of the pyramid pooling has one pixel."""
        return 2

    def changes(self) -> dict[str, Any]:
        """Return the fields in which the backbone differs from the pretrained one."""
        wanted = {
            name: getattr(self, name) for name in ("relative_positions", "positions", "layer_scale", "class_token")
        }
        return {
            "final_norm": False,
            "drop_path": self.drop_path,
            **{name: value for name, value in wanted.items() if value is not None},
        }

    def model(self, backbone: Backbone, classes: int) -> Segmenter:
        adapter = TapFPNConfig(taps=self.taps, norm="batch", fpn=None, scales="relative").build(backbone.maps())
        decode = uper_head(adapter.widths, classes, channels=self.channels or backbone.dim, dropout=self.dropout)
        auxiliary = (
            fcn_head(adapter.widths, classes, weight=self.auxiliary, dropout=self.dropout) if self.auxiliary else None
        )
        return Segmenter(encoder_decoder(AdaptedBackbone(backbone, adapter), decode, auxiliary))

    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        layers = Layers(model.layer_of, model.encoder.depth, optim.layer_decay) if optim.layer_decay else None
        no_decay = select_exempt(model, optim, default=() if self.decays == "published" else None)
        return param_groups(model, weight_decay=optim.weight_decay, layers=layers, no_decay=no_decay)


class SegmentProbe(SegmentProtocol):
    """A batch norm and one linear layer per pixel, on the maps of the frozen encoder.

    It is cheap, and its result depends only on the features.
    """

    name: Literal["linear"] = "linear"
    taps: tuple[FewOrNone, ...] | None = None
    """Indices of the maps to concatenate, 0-based, including the last one. None: the last one only."""

    def changes(self) -> dict[str, Any]:
        return {"final_norm": False}

    def model(self, backbone: Backbone, classes: int) -> Segmenter:
        adapter = NormedTaps(backbone.maps(), taps=self.taps)
        return Segmenter(
            encoder_decoder(AdaptedBackbone(backbone, adapter), linear_head(adapter.widths, classes)), frozen=True
        )

    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        if optim.layer_decay:
            raise ValueError(f"optim.layer_decay = {optim.layer_decay}, but the encoder is frozen: leave it out")
        return param_groups(model, weight_decay=optim.weight_decay, no_decay=select_exempt(model, optim, default=None))


AnySegmentProtocol = Annotated[UperNet | SegmentProbe, Field(discriminator="name")]

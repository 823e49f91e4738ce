"""The ways to segment with a pretrained backbone: UperNet, all of it training, or a linear head on a frozen trunk. An entry of PROTOCOLS each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from mae_transfer.adapters import AdaptedBackbone, TapFPN, maps_of
from mae_transfer.adapters.mmseg import Segmenter, encoder_decoder, fcn_head, linear_head, uper_head
from mae_transfer.adapters.normed_taps import NormedTaps
from mae_transfer.bounds import BelowOne, Factor, FewOrNone, Weight, Width
from mae_transfer.engine.optim import Group, Layers, OptimConfig, param_groups, spared
from mae_transfer.interfaces import Backbone


class SegmentProtocol(Protocol):
    """What the task asks of a protocol."""

    @property
    def title(self) -> str:
        """What a table calls it: "upernet", "linear"."""
        ...

    @property
    def least(self) -> int:
        """Crops per forward pass that its batch norms train on at least."""
        ...

    def changes(self) -> dict[str, Any]:
        """Return the fields of the backbone's architecture that it sets."""
        ...

    def model(self, backbone: nn.Module, classes: int) -> Segmenter:
        """Return the model around a loaded backbone, frozen where it must be; heads are initialised from torch's generator."""
        ...

    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        """Return the optimizer's groups: every trainable parameter once."""
        ...


@dataclass(frozen=True, kw_only=True)
class UperNet:
    """UPerHead with an auxiliary FCNHead on four maps of the encoder, everything trains (BEiT; MAE, A.4; mae_segmentation).

    Args:
        taps: the four maps, 0-based: 3, 5, 7, 11 of ViT-B, 7, 11, 15, 23 of ViT-L as published; None: after d/4, d/2, 3d/4 and d blocks, or the
            stages of a hierarchical backbone.
        channels: of UPerHead; None: the encoder's width, as published.
        auxiliary: weight of the auxiliary head's loss; 0: no such head.
        dropout: of the heads' channels before their last layer.
        drop_path: stochastic depth of the encoder's last block.
        relative_positions: tables that are switched on at transfer, zero-initialised; None: as the backbone has them.
        positions: "learned" lets MAE's fixed table train; None: as the backbone has them.
        layer_scale: begins at this value where the backbone has none; None: as the backbone has it.
        class_token: False leaves it out of the encoder; None: as the backbone has it.
        decays: "spared": position table, class token and bias tables have no weight decay; "published": they decay, as in the recipes of BEiT,
            mae_segmentation and mmseg, whose list of exceptions names them without the prefix that they carry there. `optim.no_decay` overrides it.
    """

    taps: tuple[FewOrNone, ...] | None = None
    channels: Width | None = None
    auxiliary: Weight = 0.4
    dropout: BelowOne = 0.1
    drop_path: BelowOne = 0.1
    relative_positions: Literal["shared", "per_block"] | None = None
    positions: Literal["learned"] | None = None
    layer_scale: Factor | None = None
    class_token: Literal[False] | None = None
    decays: Literal["spared", "published"] = "spared"

    @property
    def title(self) -> str:
        return "upernet"

    @property
    def least(self) -> int:
        """Return two: the pyramid pooling's first map is one pixel."""
        return 2

    def changes(self) -> dict[str, Any]:
        """Return what differs from the backbone as it was pretrained; None stands for no difference."""
        wanted = {
            name: getattr(self, name) for name in ("relative_positions", "positions", "layer_scale", "class_token")
        }
        return {
            "final_norm": False,
            "drop_path": self.drop_path,
            **{name: value for name, value in wanted.items() if value is not None},
        }

    def model(self, backbone: nn.Module, classes: int) -> Segmenter:
        assert isinstance(backbone, Backbone)
        adapter = TapFPN(maps_of(backbone), taps=self.taps, norm="batch", fpn=None, scales="relative")
        decode = uper_head(adapter.widths, classes, channels=self.channels or backbone.dim, dropout=self.dropout)
        auxiliary = (
            fcn_head(adapter.widths, classes, weight=self.auxiliary, dropout=self.dropout) if self.auxiliary else None
        )
        return Segmenter(encoder_decoder(AdaptedBackbone(backbone, adapter), decode, auxiliary))

    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        layers = Layers(model.layer_of, model.pyramid.backbone.depth, optim.layer_decay) if optim.layer_decay else None
        no_decay = spared(model, optim, default=() if self.decays == "published" else None)
        return param_groups(model, weight_decay=optim.weight_decay, layers=layers, no_decay=no_decay)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer per pixel behind a batch norm, on the frozen encoder's maps: cheap, and nothing but the features can earn the number.

    Args:
        taps: the maps, 0-based, side by side, the last one among them; None: the last one alone.
    """

    taps: tuple[FewOrNone, ...] | None = None

    @property
    def title(self) -> str:
        return "linear"

    @property
    def least(self) -> int:
        return 1

    def changes(self) -> dict[str, Any]:
        return {"final_norm": False}

    def model(self, backbone: nn.Module, classes: int) -> Segmenter:
        assert isinstance(backbone, Backbone)
        adapter = NormedTaps(maps_of(backbone), taps=self.taps)
        return Segmenter(
            encoder_decoder(AdaptedBackbone(backbone, adapter), linear_head(adapter.widths, classes)), frozen=True
        )

    def groups(self, model: Segmenter, optim: OptimConfig) -> list[Group]:
        if optim.layer_decay:
            raise ValueError(f"layer_decay = {optim.layer_decay}, but the trunk is frozen: leave it out")
        return param_groups(model, weight_decay=optim.weight_decay, no_decay=spared(model, optim, default=None))


PROTOCOLS: Mapping[str, Callable[..., SegmentProtocol]] = {"upernet": UperNet, "linear": Linear}

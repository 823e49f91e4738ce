"""Any timm model as a Backbone: plain ViTs, Swin, ConvNeXt, ResNets ... Hierarchical ones return maps with growing strides.

Legend: B batch, H x W pixels, K taps, D_k channels and s_k stride of map k.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mae_transfer.interfaces import Features


class TimmBackbone(nn.Module):
    """A timm model behind interfaces.Backbone. Taps index what timm's `forward_intermediates` hands out: blocks of a ViT, stages of the others.

    `depth` counts the layers that layer-wise decay sees: timm's coarse groups (blocks of a ViT, stages of the others). `channels` and `strides` tell
    D_k and s_k of every tap; `patch` is the first stride, `dim` the last width and `cls_dim` that of what the model's own classifier reads.
    """

    model: Any  # timm's classes share their interface by custom, not by a type

    def __init__(self, model: Any, *, class_token: bool = True, final_norm: bool = True) -> None:
        """Wrap a model without classifier. class_token False: Features.cls is None; final_norm False: the final norm is taken out.

        Raises:
            ValueError: timm has no feature maps or no layer groups for this model.
        """
        super().__init__()
        name = type(model).__name__
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "group_matcher")):
            raise ValueError(
                f"timm's {name} hands out no intermediate maps (forward_intermediates); choose a model that does"
            )
        info: list[dict[str, Any]] = list(model.feature_info)
        self.strides = tuple(int(entry["reduction"]) for entry in info)
        self.channels = tuple(int(entry["num_chs"]) for entry in info)
        if not final_norm:
            model.prune_intermediate_layers([len(info) - 1], prune_norm=True, prune_head=True)
            if isinstance(getattr(getattr(model, "head", None), "norm", None), nn.Module):
                model.head.norm = nn.Identity()  # where ConvNeXt has its final norm; timm before 1.0.31 leaves it there
        self.model, self.class_token, self.final_norm = model, class_token, final_norm
        call = model.forward_intermediates
        self.prefixed = "return_prefix_tokens" in inspect.signature(call).parameters and bool(
            getattr(model, "num_prefix_tokens", 1)
        )
        self.normalizes = "assert not norm" not in inspect.getsource(
            call
        )  # Hiera's maps have no norm: it stands in its head
        try:
            self.layers = _layers(model)
        except (KeyError, TypeError, IndexError, AssertionError) as error:
            raise ValueError(
                f"timm's {name} tells no layers of its parameters (group_matcher: {error!r}); choose a model that does"
            ) from None
        self.dim, self.patch, self.depth = self.channels[-1], self.strides[0], max(self.layers.values())
        self.cls_dim = int(getattr(model, "head_hidden_size", None) or self.dim)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps (B, D_k, H / s_k, W / s_k) at `taps` (the last where empty) and the class token or pooled vector, (B, D).

        norm: pass maps through the final norm where timm applies it to them (ViTs: all; Swin: the last), and give as class token what timm hands its
        classifier. Otherwise it is the class token of the last tapped map, or that map's mean. ValueError where a tap is none of the model's.
        """
        last = len(self.strides) - 1
        taps = list(taps or (last,))
        if not all(0 <= tap <= last for tap in taps) or taps != sorted(set(taps)):
            raise ValueError(f"taps {tuple(taps)}: name maps 0..{last} of this model, each once, in rising order")
        options: dict[str, Any] = {"return_prefix_tokens": True} if self.prefixed else {}
        norm = norm and self.final_norm
        whole = norm and taps[-1] == last and self.class_token  # what the head reads needs the model to its end
        options |= {"indices": taps, "norm": norm and self.normalizes, "output_fmt": "NCHW"}
        found = self.model.forward_intermediates(images, stop_early=not whole, intermediates_only=not whole, **options)
        final, outputs = found if whole else (None, found)
        maps = tuple(output[0] if isinstance(output, tuple) else output for output in outputs)
        if not self.class_token:
            return Features(maps, None)
        if whole:
            return Features(maps, self._read_by_head(final))
        token = outputs[-1][1] if isinstance(outputs[-1], tuple) else None
        return Features(maps, maps[-1].mean((2, 3)) if token is None or not token.shape[1] else token[:, 0])

    def _read_by_head(self, final: Any) -> Tensor:
        """Return what the model's own classifier reads, (B, cls_dim); ValueError where timm hands out something else."""
        vector: Tensor = self.model.forward_head(final, pre_logits=True)
        if vector.shape[1:] != (self.cls_dim,):
            name, shape = type(self.model).__name__, tuple(vector.shape[1:])
            raise ValueError(
                f"timm's {name} hands out {shape} where its classifier reads {self.cls_dim} values: pool the maps instead "
                "(pool='mean' and --set \"backbone.changes={'class_token': False}\")"
            )
        return vector

    def layer_of(self, name: str) -> int:
        """Return 0 for the stem, 1..depth for blocks or stages, depth + 1 after them; an unknown name raises ValueError."""
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{name!r} is no parameter of this {type(self.model).__name__}")
        return self.layers.get(name, self.depth + 1)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm spares from weight decay."""
        spared = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        return {
            name
            for name, _ in self.named_parameters()
            if any(name.removeprefix("model.").endswith(key) for key in spared)
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.model.set_grad_checkpointing(enable)


def _layers(model: Any) -> dict[str, int]:
    """Return name -> layer of the parameters of stem (0) and blocks (1, 2 ...), by timm's own patterns; what follows the blocks is left out."""
    groups = model.group_matcher(coarse=True)
    if callable(groups):  # CaiT's: a function from a name to its number, 0 in the stem, infinite after the blocks
        numbers = {f"model.{name}": groups(name) for name, _ in model.named_parameters()}
        finite = sorted({number for number in numbers.values() if 0 < number < float("inf")})
        return {
            name: finite.index(number) + 1 if number else 0 for name, number in numbers.items() if number < float("inf")
        }
    patterns = groups["blocks"] if isinstance(groups["blocks"], list) else [(groups["blocks"], None)]
    patterns = [pattern if isinstance(pattern, tuple) else (pattern, None) for pattern in patterns]
    stems = groups["stem"] if isinstance(groups["stem"], list | tuple) else [groups["stem"]]
    found: dict[str, str] = {}  # number of the block as it is written in the name; "" in the stem
    for name, _ in model.named_parameters():
        matches = [match for pattern, _ in patterns if (match := re.match(pattern, name)) and match.groups()]
        if any(re.match(stem if isinstance(stem, str) else stem[0], name) for stem in stems):
            found[f"model.{name}"] = ""
        elif matches:
            found[f"model.{name}"] = matches[0].group(1)
    order = {number: layer for layer, number in enumerate(sorted(set(found.values()) - {""}, key=int), start=1)}
    return {name: order.get(number, 0) for name, number in found.items()}

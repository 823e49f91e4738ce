"""Any timm model as a Backbone: plain ViTs, Swin, ConvNeXt, ResNets ... Maps of hierarchical models grow in stride.

Legend: B batch, H x W pixels, K taps, D_k channels and s_k stride of map k.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mae_transfer.interfaces import Backbone, Features, Maps


class TimmBackbone(Backbone):
    """A timm model.

    Taps index the maps of timm's `forward_intermediates`: blocks of a ViT, stages of other models. `depth` is the
    number of layers for layer-wise decay: timm's coarse groups (blocks of a ViT, stages of other models). `channels`
    and `strides` hold D_k and s_k of every tap. `patch` is the first stride, `dim` the last width, and `cls_dim` the
    width of the input of the model's classifier.
    """

    model: Any  # timm's classes have no common type

    def __init__(
        self, model: Any, *, class_token: bool = True, final_norm: bool = True, label: str | None = None
    ) -> None:
        """Wrap a model without classifier.

        Args:
            model: the timm model.
            label: its name in tables; None: timm's name of it, or its class if timm's factory did not make it.
            class_token: False: Features.cls is None.
            final_norm: False: the final norm is removed.
        Raises:
            ValueError: timm has no feature maps or no layer groups for this model.
        """
        super().__init__()
        self.model, name = model, type(model).__name__
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "group_matcher")):
            raise ValueError(f"timm's {name} has no intermediate maps (forward_intermediates); choose a model that has")
        self.label = label or getattr(model, "pretrained_cfg", {}).get("architecture") or name
        info: list[dict[str, Any]] = list(model.feature_info)
        self.strides = tuple(int(entry["reduction"]) for entry in info)
        self.channels = tuple(int(entry["num_chs"]) for entry in info)
        if not final_norm:
            model.prune_intermediate_layers([len(info) - 1], prune_norm=True, prune_head=True)
            if isinstance(getattr(getattr(model, "head", None), "norm", None), nn.Module):
                model.head.norm = nn.Identity()  # the final norm of ConvNeXt; timm before 1.0.31 does not remove it
        self.class_token, self.final_norm = class_token, final_norm
        call = model.forward_intermediates
        self.prefixed = "return_prefix_tokens" in inspect.signature(call).parameters and bool(
            getattr(model, "num_prefix_tokens", 1)
        )
        self.prefix_is_class = getattr(model, "cls_token", self.prefixed) is not None  # else registers only
        self.own_pool = getattr(model, "global_pool", "token") != "token"  # the head reads no class token
        self.normalizes = "assert not norm" not in inspect.getsource(call)  # Hiera has its final norm in the head only
        try:
            self.layers = _layers(model)
        except (KeyError, TypeError, IndexError, AssertionError) as error:
            raise ValueError(
                f"timm's {name} has no layer groups (group_matcher: {error!r}); choose a model that has"
            ) from None
        self.dim, self.patch, self.depth = self.channels[-1], self.strides[0], max(self.layers.values())
        self.cls_dim = int(getattr(model, "head_hidden_size", None) or self.dim)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps (B, D_k, H / s_k, W / s_k) at `taps` and the class token or pooled vector, (B, D).

        Args:
            images: normalised, (B, 3, H, W).
            taps: indices of maps; empty: the last one.
            norm: True: apply the final norm to the maps to which timm applies it (ViTs: all; Swin: the last), and
                return the input of timm's classifier as class token. False: return the class token of the last tapped
                map, or the mean of that map. `cls_tokens` are class tokens, even if the classifier reads a mean.
        Raises:
            ValueError: the model has no such tap.
        """
        last = len(self.strides) - 1
        taps = list(taps or (last,))
        if not all(0 <= tap <= last for tap in taps) or taps != sorted(set(taps)):
            raise ValueError(f"taps {tuple(taps)}: give maps 0..{last} of this model, each once, in rising order")
        options: dict[str, Any] = {"return_prefix_tokens": True} if self.prefixed else {}
        norm = norm and self.final_norm
        whole = norm and taps[-1] == last and self.class_token  # the input of the classifier needs the full model
        options |= {"indices": taps, "norm": norm and self.normalizes, "output_fmt": "NCHW"}
        found = self.model.forward_intermediates(images, stop_early=not whole, intermediates_only=not whole, **options)
        final, outputs = found if whole else (None, found)
        maps = tuple(output[0] if isinstance(output, tuple) else output for output in outputs)
        if not self.class_token:
            return Features(maps, None)
        prefixes = [output[1] for output in outputs if isinstance(output, tuple) and output[1].shape[1]]
        prefixes = prefixes if self.prefix_is_class else []
        tokens = tuple(prefix[:, 0] for prefix in prefixes)
        cls = self._read_by_head(final) if whole else tokens[-1] if tokens else maps[-1].mean((2, 3))
        return Features(maps, cls, tokens if self.own_pool or not tokens else (*tokens[:-1], cls))

    def accept_any_size(self) -> None:
        """Accept images of other sizes than the model's own, as narrow views are (timm's strict_img_size=False)."""
        for module in self.model.modules():
            for name, value in (("strict_img_size", False), ("dynamic_mask", True)):
                if hasattr(module, name):
                    setattr(module, name, value)

    def _read_by_head(self, final: Any) -> Tensor:
        """Return the input of the model's classifier, (B, cls_dim); ValueError if its shape differs."""
        vector: Tensor = self.model.forward_head(final, pre_logits=True)
        if vector.shape[1:] != (self.cls_dim,):
            raise ValueError(
                f"timm's {self.name()} returns {tuple(vector.shape[1:])} but its classifier takes {self.cls_dim} "
                "values: pool the maps instead (pool='mean' and --set \"backbone.changes={'class_token': False}\")"
            )
        return vector

    def name(self) -> str:
        return str(self.label)

    def described(self) -> dict[str, Any]:
        """Return timm's name of the model and its image size, which a file needs to create it again."""
        size = getattr(getattr(self.model, "patch_embed", None), "img_size", None)
        return {"timm": self.model.pretrained_cfg["architecture"], "image_size": size and list(size)}

    def maps(self) -> Maps:
        return Maps(self.channels, self.strides)

    def layer_of(self, name: str) -> int:
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{name!r} is not a parameter of this {self.name()}")
        return self.layers.get(name, self.depth + 1)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm exempts from weight decay."""
        exempt = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        return {
            name
            for name, _ in self.named_parameters()
            if any(name.removeprefix("model.").endswith(key) for key in exempt)
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def _layers(model: Any) -> dict[str, int]:
    """Return name -> layer of the parameters of stem (0) and blocks (1, 2 ...), by timm's patterns.

    Parameters after the blocks are left out.
    """
    groups = model.group_matcher(coarse=True)
    if callable(groups):  # CaiT: a function from a name to its number, 0 in the stem, infinite after the blocks
        numbers = {f"model.{name}": groups(name) for name, _ in model.named_parameters()}
        finite = sorted({number for number in numbers.values() if 0 < number < float("inf")})
        return {
            name: finite.index(number) + 1 if number else 0 for name, number in numbers.items() if number < float("inf")
        }
    patterns = groups["blocks"] if isinstance(groups["blocks"], list) else [(groups["blocks"], None)]
    patterns = [pattern if isinstance(pattern, tuple) else (pattern, None) for pattern in patterns]
    stems = groups["stem"] if isinstance(groups["stem"], list | tuple) else [groups["stem"]]
    found: dict[str, str] = {}  # name -> number of the block as written in the name; "" in the stem
    for name, _ in model.named_parameters():
        matches = [match for pattern, _ in patterns if (match := re.match(pattern, name)) and match.groups()]
        if any(re.match(stem if isinstance(stem, str) else stem[0], name) for stem in stems):
            found[f"model.{name}"] = ""
        elif matches:
            found[f"model.{name}"] = matches[0].group(1)
    order = {number: layer for layer, number in enumerate(sorted(set(found.values()) - {""}, key=int), start=1)}
    return {name: order.get(number, 0) for name, number in found.items()}

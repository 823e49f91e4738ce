"""Classification heads: one for full or partial fine-tuning, and a row of probes on a frozen encoder.

Legend: B batch, D width of the backbone's last map, N tokens, C classes, K probes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from mae_transfer.bounds import FewOrNone
from mae_transfer.interfaces import Backbone, Features, Model
from mae_transfer.models.vit import NORM_EPS

Pool = Literal["mean", "cls"]
POOLS = re.compile(r"mean|cls(?:-([2-9]|[1-9]\d))?(\+mean)?")
Tokens = Literal["patches", "all"]
Head = Literal["linear", "efficient", "cross"]
Tune = FewOrNone | Literal["half", "all"]

NO_CLASS_TOKEN = "this backbone has no class token: set pool to 'mean' (of probes: protocol.pools)"
PROBE_EPS = 1e-6  # epsilon of a probe's batch norm (MAE, table 10)
PROBE_STD = 0.01  # standard deviation of a linear probe's initial weights
HALF = (".norm2.", ".mlp.", ".ls2.")  # parts of the parameter names in the MLP half of a block


class Pooled(NamedTuple):
    """The parts of a FrozenPool."""

    blocks: int  # number of last blocks whose class tokens it has
    mean: bool  # whether it has the mean of the patch tokens

    @classmethod
    def of(cls, how: str) -> Pooled:
        """Return the parts; ValueError if it is none."""
        if not (found := POOLS.fullmatch(how)):
            raise ValueError(f"{how!r} is no pool: give 'cls', 'mean', 'cls+mean', 'cls-4' or 'cls-4+mean'")
        return cls(0, True) if how == "mean" else cls(int(found[1] or 1), bool(found[2]))


def check_pool(how: str) -> str:
    """Return a FrozenPool; ValueError if it is none."""
    Pooled.of(how)
    return how


FrozenPool = Annotated[str, AfterValidator(check_pool)]
"""Pool, or several vectors of a frozen backbone: "cls-4" is the class tokens of the last 4 blocks, "cls+mean" and
"cls-4+mean" add the mean of the patch tokens."""


def pool(features: Features, how: FrozenPool) -> Tensor:
    """Return one vector per image, (B, E), in float32 or wider: class tokens, shallow to deep, then the mean of a map.

    The class tokens of several blocks, concatenated, are those of DINO's evaluation (eval_linear.py, n_last_blocks). It
    interleaves class token and mean, which makes no difference to a linear classifier.

    Args:
        features: with the maps `taps_of`.
    """
    at_least = torch.promote_types(features.maps[-1].dtype, torch.float32)
    blocks, mean = Pooled.of(how)
    parts = [token.to(at_least) for token in class_tokens(features, blocks)]
    parts += [features.maps[-1].mean(dim=(2, 3), dtype=at_least)] if mean else []
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def class_tokens(features: Features, blocks: int) -> tuple[Tensor, ...]:
    """Return the class tokens (B, D) of the last blocks; ValueError if the backbone has none."""
    own = features.cls_tokens if blocks > 1 or features.cls_tokens else (features.cls,)  # else a pooled vector
    found = own[-blocks:] if blocks else ()
    tokens = tuple(token for token in found if token is not None)
    if len(tokens) < blocks:
        raise ValueError(
            NO_CLASS_TOKEN
            if features.cls is None
            else "blocks of this backbone have no class token: set pool to 'cls' (of probes: protocol.pools)"
        )
    return tokens


def taps_of(backbone: Backbone, pools: Iterable[FrozenPool]) -> tuple[int, ...]:
    """Return the maps that the pools need; empty: the last one. ValueError if the backbone has fewer."""
    most, count = max((Pooled.of(how).blocks for how in pools), default=1), len(backbone.maps().channels)
    if most > count:
        raise ValueError(f"pool 'cls-{most}': {backbone.name()} has {count} blocks; lower the number")
    return tuple(range(count - most, count)) if most > 1 else ()


def tokens(features: Features, which: Tokens) -> Tensor:
    """Return the patch tokens of the last map, (B, N, D), in float32 or wider; "all": after the class token."""
    patches = features.maps[-1].flatten(2).transpose(1, 2)
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    if which == "patches":
        return patches
    if features.cls is None:
        raise ValueError("this backbone has no class token: set protocol.tokens to ('patches',)")
    return torch.cat([class_tokens(features, 1)[0][:, None].to(patches), patches], dim=1)


def freeze(backbone: Backbone, tune: Tune, *, norm: bool = True) -> None:
    """Freeze all but the last `tune` blocks.

    Args:
        tune: number of blocks; "half": the MLP of the last block; "all": everything, including stem and positions.
        norm: whether the backbone's final norm trains. Tables shared by all blocks train with "all" only.
    Raises:
        ValueError: the backbone has fewer blocks, or its last block has no parameters of an MLP half.
    """
    if tune == "all":
        backbone.requires_grad_(True)
        return
    depth = backbone.depth
    if isinstance(tune, int) and not 0 <= tune <= depth:
        raise ValueError(f"tune_blocks = {tune}, but the backbone has {depth} blocks: set 0..{depth}, 'half' or 'all'")
    for name, parameter in backbone.named_parameters():
        layer = backbone.layer_of(name)
        last = layer > depth - (1 if tune == "half" else tune)
        within = layer <= depth and last and (tune != "half" or any(part in f".{name}" for part in HALF))
        parameter.requires_grad_(within or (layer == depth + 1 and norm and "norm" in name.split(".")))
    if tune == "half" and not any(
        p.requires_grad for name, p in backbone.named_parameters() if backbone.layer_of(name) == depth
    ):
        raise ValueError(
            f"tune_blocks = 'half': no parameter name of the last block contains {', '.join(HALF)}; "
            "set a number of blocks"
        )


def check_pools(backbone: Backbone, pools: Iterable[FrozenPool]) -> None:
    """Raise ValueError if a pooled vector has another width than the last map, which sets the width of heads."""
    if any(Pooled.of(how).blocks for how in pools) and backbone.cls_dim not in (None, backbone.dim):
        raise ValueError(
            f"{backbone.name()} passes {backbone.cls_dim} values to its classifier, but its last map has "
            f"{backbone.dim} channels: set pool to 'mean' (of probes: protocol.pools)"
        )


class Classifier(Model):
    """Backbone, pooling, norm and linear layer. Frozen parts run in eval mode and save nothing for backward."""

    def __init__(
        self, backbone: Backbone, classes: int, *, how: Pool = "mean", head_std: float = 2e-5, frozen_eval: bool = True
    ) -> None:
        """Create the classifier around a loaded backbone, after `freeze`.

        Args:
            how: "mean": mean of the patch tokens, then a new norm instead of the backbone's; "cls": the class token
                after the backbone's norm.
            head_std: standard deviation of the linear layer's initial weights (MAE's fine-tuning: 2e-5).
            frozen_eval: True: frozen parts run without drop path; False: they use drop path like the trained parts.
        """
        super().__init__()
        self.how: Pool = how
        self.frozen_eval = frozen_eval
        self.backbone = backbone
        check_pools(backbone, (how,))
        self.fc_norm = nn.LayerNorm(backbone.dim, eps=NORM_EPS) if how == "mean" else nn.Identity()
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of normalised images (B, 3, H, W).

        They are float32, because 1 in 200 images has two equal best classes in bfloat16.
        """
        features = self.backbone(images, norm=self.how == "cls")
        features = Features(features.maps, features.cls)  # its "cls" is what timm's own classifier reads
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.head(self.fc_norm(pool(features, self.how)))
        return logits

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; modules whose parameters are all frozen stay in eval mode."""
        super().train(mode)
        if mode and self.frozen_eval:
            for part in self.backbone.modules():
                parameters = list(part.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    part.eval()
        return self

    @property
    def encoder(self) -> Backbone:
        return self.backbone


class Probe(NamedTuple):
    """A probe of a row."""

    head: Head
    source: FrozenPool | Tokens  # what it reads: a pooled vector (linear) or tokens (attentive)


class ProbeRow(nn.Module):
    """K probes on one frozen encoder, whose features are computed once for all of them.

    MAE, table 10; it also does the sweeps of BEiT and MoCo in one run. A linear probe is a linear layer after a batch
    norm without parameters. Linear probes with the same pooling share this norm. models/attentive.py has the other
    heads. The probes are independent: the gradient of the summed losses gives each probe the gradient of its own loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        probes: Mapping[str, Probe],
        queries: int = 32,
        head_width: int = 64,
    ) -> None:
        """Create the probes by name. All with the same head and input width start from the same weights.

        Args:
            queries: of head "efficient".
            head_width: channels per attention head of head "cross".
        Raises:
            ValueError: `queries` or `head_width` does not divide the backbone's width.
        """
        super().__init__()
        self.backbone = backbone
        backbone.requires_grad_(False)
        self.sources = [probe.source for probe in probes.values()]
        self.tokens: list[Tokens] = [which for which in get_args(Tokens) if which in self.sources]
        self.pools = [one for one in dict.fromkeys(self.sources) if one not in self.tokens]
        self.taps = taps_of(backbone, self.pools)
        check_pools(backbone, [*self.pools, "cls"] if "all" in self.tokens else self.pools)
        widths = {how: sum(Pooled.of(how)) * backbone.dim for how in self.pools}
        self.norms = nn.ModuleList(nn.BatchNorm1d(widths[how], affine=False, eps=PROBE_EPS) for how in self.pools)
        kinds = {name: (probe.head, widths.get(probe.source, backbone.dim)) for name, probe in probes.items()}
        starts: dict[tuple[Head, int], nn.Module] = {}
        for head, width in set(kinds.values()):
            with torch.random.fork_rng(devices=()):  # no head's start depends on the other heads
                starts[head, width] = first_head(head, width, classes, queries=queries, head_width=head_width)
        self.probes = nn.ModuleDict({name: deepcopy(starts[kind]) for name, kind in kinds.items()})

    def forward(self, images: Tensor | Features) -> Tensor:
        """Return the logits (K, B, C) of normalised images (B, 3, H, W), or of the encoder's features of them.

        They are float32: the heads cost little, and learning rates are compared by them.
        """
        if isinstance(images, Features):
            features = images
        else:
            with torch.no_grad():
                features = self.backbone(images, taps=self.taps, norm=True)
        with torch.autocast(features.maps[-1].device.type, enabled=False):
            pooled = {how: norm(pool(features, how)) for norm, how in zip(self.norms, self.pools, strict=True)}
            read = pooled | {which: tokens(features, which) for which in self.tokens}
            return torch.stack([p(read[source]) for p, source in zip(self.probes.values(), self.sources, strict=True)])

    def train(self, mode: bool = True) -> ProbeRow:
        """Set the mode of the probes; the encoder stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self


def first_head(head: Head, dim: int, classes: int, *, queries: int, head_width: int) -> nn.Module:
    """Return a head with initial weights; the arguments are those of ProbeRow."""
    if head == "efficient":
        from mae_transfer.models.attentive import EfficientHead

        return EfficientHead(dim, classes, queries=queries)
    if head == "cross":
        from mae_transfer.models.attentive import CrossHead

        return CrossHead(dim, classes, head_width=head_width)
    start, linear = torch.randn(classes, dim) * PROBE_STD, nn.Linear(dim, classes)
    linear.weight.data.copy_(start)
    nn.init.zeros_(linear.bias)
    return linear

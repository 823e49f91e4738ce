"""Attention weights of any encoder that calls torch's fused attention, as those of this package and of timm do.

Legend: B images, R heads, L tokens, T leading tokens, N patches in raster order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mae_transfer.interfaces import Backbone

MOST_LEADING = 8  # class token and registers


class Recorder(TorchFunctionMode):
    """A context that records the attention weights (B, R, L, L) of each scaled_dot_product_attention call, in order."""

    def __init__(self, *, last: int | None = None) -> None:
        """Keep the weights of the `last` calls; None: of all."""
        super().__init__()
        self.weights: deque[Tensor] = deque(maxlen=last)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scale = options.get("scale") or query.shape[-1] ** -0.5
            logits = query @ key.transpose(-2, -1) * scale
            bias = options.get("attn_mask")
            if options.get("is_causal"):
                bias = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
            if bias is not None:  # True: attended to
                logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
            self.weights.append(logits.softmax(dim=-1))
        return func(*args, **options)


@torch.no_grad()
def attention_entropy(backbone: Backbone, images: Tensor) -> Tensor | None:
    """Return the entropy of the attention among the patches of each image in the last block, (B,), as a share of log N.

    It is the mean over heads and patches. 1: a patch attends to all patches alike; 0: to one. Attention to leading
    tokens is left out. None: the last fused attention is not among all patches (convolutions, windows, pools), or there
    is one patch.
    """
    with Recorder(last=1) as recorder:
        patches = backbone(images).maps[-1][0, 0].numel()
    if not recorder.weights or patches == 1:
        return None
    (weights,) = recorder.weights
    leading = weights.shape[-1] - patches
    among_all = weights.ndim == 4 and len(weights) == len(images) and weights.shape[2] == weights.shape[3]
    if not among_all or not 0 <= leading <= MOST_LEADING:
        return None
    among = weights[:, :, leading:, leading:]
    total = among.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(among.dtype).tiny)
    entropy: Tensor = torch.special.entr(among / total).sum(dim=-1)
    return entropy.mean(dim=(1, 2)) / log(patches)

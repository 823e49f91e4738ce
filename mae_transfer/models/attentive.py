"""Attentive probes: classifiers that pool the tokens of a frozen encoder by learned queries.

Legend: B batch, N tokens X, D their width, M queries, w = D / M, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_transfer.models.heads import PROBE_EPS

STD = 0.02  # standard deviation of the initial queries in both methods, and of CAPI's weights


def pool_by_queries(tokens: Tensor, queries: Tensor, values: Tensor, *, scale: float) -> Tensor:
    """Return softmax(scale * X q_j)^T X W_j^T of all queries j, side by side, (B, D).

    The tokens are averaged before they are projected: the result is the same, and the work is a fraction of it.

    Args:
        tokens: X, (B, N, D).
        queries: (M, D).
        values: the value projection (D, D); W_j are its rows j * w to (j + 1) * w.
    Raises:
        ValueError: there is one token.
    """
    if tokens.shape[1] == 1:
        raise ValueError(
            "the backbone's last map has one patch, so an attentive probe has nothing to choose from: set "
            "protocol.heads=('linear',), or use larger images"
        )
    weights = (tokens @ (scale * queries).T).softmax(dim=1)
    pooled = weights.transpose(1, 2) @ tokens
    return torch.einsum("bmd,mwd->bmw", pooled, values.unflatten(0, (len(queries), -1))).flatten(1)


class EfficientHead(nn.Module):
    """Efficient probing (arXiv 2506.10178, with the defaults of billpsomas/efficient-probing).

    y is softmax(X q_j / sqrt(D))^T X W_j^T of M learned queries q_j, side by side. The tokens are their own keys; the
    W_j are slices of one value projection without bias. A batch norm without parameters and a linear layer follow.
    """

    def __init__(self, dim: int, classes: int, *, queries: int = 32) -> None:
        """Create the head for tokens of width `dim`; ValueError if `queries` does not divide it."""
        super().__init__()
        if dim % queries:
            raise ValueError(
                f"protocol.queries = {queries} does not divide the width {dim} of the backbone's last map: set a "
                "divisor"
            )
        self.queries = nn.Parameter(torch.randn(queries, dim) * STD)
        self.values = nn.Linear(dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=PROBE_EPS)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, C) of tokens (B, N, D)."""
        pooled = pool_by_queries(tokens, self.queries, self.values.weight, scale=tokens.shape[2] ** -0.5)
        logits: Tensor = self.classifier(self.norm(pooled))
        return logits


class CrossHead(nn.Module):
    """The attentive probe of CAPI (arXiv 2502.08769, eval_classification.py of facebookresearch/capi).

    y is multi-head attention of one learned query q over X: softmax(q_h K_h^T / sqrt(w)) V_h of all heads h, side by
    side, for K = X W_K^T and V = X W_V^T + b_V. A linear layer follows. CAPI's keys also have a bias. It adds the same
    to all logits of a head, so it has no effect and is left out.
    """

    def __init__(self, dim: int, classes: int, *, head_width: int = 64) -> None:
        """Create the head for tokens of width `dim`; ValueError if `head_width` (w) does not divide it."""
        super().__init__()
        if dim % head_width:
            raise ValueError(
                f"protocol.head_width = {head_width} does not divide the width {dim} of the backbone's last map: set a "
                "divisor"
            )
        self.query = nn.Parameter(torch.empty(1, dim))
        self.keys = nn.Linear(dim, dim, bias=False)
        self.values = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, classes)
        self.head_width = head_width
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, C) of tokens (B, N, D)."""
        of_heads = (-1, self.head_width)
        # q_h K_h^T = (q_h W_K,h) X^T: each head is a query on the tokens
        queries = torch.einsum(
            "hw,hwd->hd", self.query[0].unflatten(0, of_heads), self.keys.weight.unflatten(0, of_heads)
        )
        pooled = pool_by_queries(tokens, queries, self.values.weight, scale=self.head_width**-0.5)
        logits: Tensor = self.classifier(pooled + self.values.bias)
        return logits

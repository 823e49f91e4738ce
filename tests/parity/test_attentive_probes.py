"""Attentive probes against the formulas of their papers, written anew, with the same weights in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.models.attentive import CrossHead, EfficientHead

B, N, D, CLASSES, QUERIES, WIDTH = 6, 9, 24, 5, 4, 8


def efficient_as_published(head: EfficientHead, tokens: Tensor) -> Tensor:
    """Psomas et al., arXiv 2506.10178: one softmax per query over the tokens, each averages its share of the values."""
    rows = []
    for x in tokens:
        values, parts = x @ head.values.weight.T, []
        for j, query in enumerate(head.queries):
            logits = torch.stack([token @ query for token in x]) / D**0.5
            attention = logits.exp() / logits.exp().sum()
            parts.append((attention[:, None] * values[:, j * D // QUERIES : (j + 1) * D // QUERIES]).sum(dim=0))
        rows.append(torch.cat(parts))
    y = torch.stack(rows)
    normed = (y - y.mean(dim=0)) / (y.var(dim=0, unbiased=False) + 1e-6).sqrt()
    return normed @ head.classifier.weight.T + head.classifier.bias


def cross_by_torch(head: CrossHead, tokens: Tensor, key_bias: Tensor) -> Tensor:
    """torch's multi-head attention of one query, which is not projected; keys have a bias, outputs no projection."""
    biases = torch.cat([torch.zeros(D), key_bias, head.values.bias])
    eye = torch.eye(D, dtype=torch.float64)
    weights = torch.cat([eye, head.keys.weight, head.values.weight])
    pooled, _ = F.multi_head_attention_forward(
        head.query.expand(1, B, D),
        *(tokens.transpose(0, 1),) * 2,
        D,
        D // WIDTH,
        weights,
        biases,
        None,
        None,
        False,
        0.0,
        eye,
        None,
        attn_mask=None,
        need_weights=False,
    )
    return pooled[0] @ head.classifier.weight.T + head.classifier.bias


@pytest.fixture
def tokens() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(B, N, D, dtype=torch.float64)


def scattered(head: nn.Module) -> nn.Module:
    """The head in float64, with weights that are far from their start."""
    head = head.double()
    for parameter in head.parameters():
        parameter.data.normal_()
    return head


def assert_same(head: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    """The same logits, and the same gradient of every parameter."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    truth = torch.arange(B) % CLASSES
    gradients = [torch.autograd.grad(F.cross_entropy(one, truth), list(head.parameters())) for one in (ours, theirs)]
    for mine, published in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, published, rtol=1e-9, atol=1e-9)


def test_the_efficient_probe_is_that_of_its_paper(tokens: Tensor) -> None:
    head = scattered(EfficientHead(D, CLASSES, queries=QUERIES))
    assert_same(head, head(tokens), efficient_as_published(head, tokens))


def test_the_efficient_probe_has_the_parameters_that_its_authors_report() -> None:
    """1,383,400 for ViT-B and 1,000 classes, in their log of MAE-B."""
    assert sum(p.numel() for p in EfficientHead(768, 1000).parameters()) == 1_383_400


def test_the_cross_probe_is_torch_attention_of_one_query(tokens: Tensor) -> None:
    head = scattered(CrossHead(D, CLASSES, head_width=WIDTH))
    assert_same(head, head(tokens), cross_by_torch(head, tokens, torch.randn(D, dtype=torch.float64)))
    attention = F.scaled_dot_product_attention(
        head.query.view(1, -1, 1, WIDTH).expand(B, -1, -1, -1),
        *((tokens @ one.T).view(B, N, -1, WIDTH).transpose(1, 2) for one in (head.keys.weight, head.values.weight)),
    )
    torch.testing.assert_close(
        head(tokens), head.classifier(attention.flatten(1) + head.values.bias), rtol=1e-9, atol=1e-9
    )

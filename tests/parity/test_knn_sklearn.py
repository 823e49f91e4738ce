"""Our k-NN against scikit-learn's with the same weights, and against DINO's evaluation, on random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from mae_transfer.metrics import knn
from mae_transfer.metrics.accuracy import hits
from mae_transfer.metrics.knn import knn_scores


@pytest.mark.parametrize("chunk", [2**27, 1000])
def test_votes_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    torch.manual_seed(0)
    bank, queries, labels = torch.randn(300, 12), torch.randn(50, 12) * 3, torch.randint(0, 7, (300,))
    scores = knn_scores(queries, bank, labels, classes=7, ks=(1, 10, 100), temperature=0.07)
    assert scores.shape == (3, 50, 7)
    for row, k in zip(scores, (1, 10, 100), strict=True):
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        reference.fit(F.normalize(bank, dim=1).double().numpy(), labels.numpy())
        shares = reference.predict_proba(F.normalize(queries, dim=1).double().numpy())
        row = row.clamp(min=0)  # scikit-learn gives a class without a vote 0, where ours gives no answer
        np.testing.assert_allclose((row / row.sum(dim=1, keepdim=True)).numpy(), shares, atol=1e-4)
        assert row.argmax(dim=1).tolist() == reference.predict(F.normalize(queries, dim=1).double().numpy()).tolist()


@pytest.mark.parametrize(("ks", "temperature"), [((0,), 0.07), ((11,), 0.07), ((), 0.07), ((5,), 0.0)])
def test_impossible_neighbours_are_refused(ks: tuple[int, ...], temperature: float) -> None:
    with pytest.raises(ValueError, match="give 1 <= k <= 10"):
        knn_scores(
            torch.randn(2, 3),
            torch.randn(10, 3),
            torch.zeros(10, dtype=torch.int64),
            classes=2,
            ks=ks,
            temperature=temperature,
        )


def dino(
    queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor, *, classes: int, k: int
) -> list[int]:
    """Count top-1 and top-min(5, k) hits by votes, as DINO's eval_knn.py does; written from the paper."""
    similar, neighbours = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(k, dim=1)
    votes = (F.one_hot(labels[neighbours], classes) * (similar / 0.07).exp()[..., None]).sum(dim=1)
    right = votes.sort(dim=1, descending=True).indices == truth[:, None]
    return [int(right[:, :1].sum()), int(right[:, : min(5, k)].sum())]


@pytest.mark.parametrize("k", [1, 3, 20, 100])
def test_top_1_and_top_5_are_dinos_where_the_neighbours_are_of_five_classes(k: int) -> None:
    torch.manual_seed(0)
    centres = torch.randn(10, 16)
    labels, truth = torch.randint(0, 10, (400,)), torch.randint(0, 10, (400,))
    bank, queries = centres[labels] + torch.randn(400, 16) * 3, centres[truth] + torch.randn(400, 16) * 3
    scores = knn_scores(queries, bank, labels, classes=10, ks=(k,))
    enough = (scores[0].isfinite().sum(dim=1) >= min(5, k)).nonzero()[:, 0]
    assert len(enough) > 100
    found = hits(scores[:, enough], truth[enough])[:, 0]
    assert found.tolist() == dino(queries[enough], bank, labels, truth[enough], classes=10, k=k)


def test_top_5_counts_no_class_without_a_vote() -> None:
    """One neighbour has one answer: its top-5 is its top-1."""
    torch.manual_seed(0)
    bank, queries, labels, truth = (
        torch.randn(500, 8),
        torch.randn(400, 8),
        torch.randint(0, 10, (500,)),
        torch.arange(400) % 10,
    )
    scores = knn_scores(queries, bank, labels, classes=10, ks=(1, 3, 500))
    assert [int(row.isfinite().sum(dim=1).max()) for row in scores] == [1, 3, 10]
    one, three, all_vote = hits(scores, truth).T.tolist()
    assert one[1] == one[0]
    assert three[1] == sum(
        int(label in row) for label, row in zip(truth.tolist(), voters(queries, bank, labels, k=3), strict=True)
    )
    assert all_vote[1] > three[1]


def voters(queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, *, k: int) -> list[list[int]]:
    neighbours = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(k, dim=1).indices
    return labels[neighbours].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 0.07, 1e6])
def test_votes_are_finite_at_every_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    bank, labels = torch.randn(30, 4), torch.arange(30) % 3
    scores = knn_scores(bank, bank, labels, classes=3, ks=(1, 30), temperature=temperature)
    assert scores[0].max(dim=1).values.tolist() == [1.0] * 30
    assert scores[1].isfinite().all()
    assert scores[0].argmax(dim=1).tolist() == labels.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["query", "bank"])
def test_features_that_are_not_finite_are_refused(value: float, broken: str) -> None:
    queries, bank = torch.randn(6, 3), torch.randn(10, 3)
    (queries if broken == "query" else bank)[2, 1] = value
    with pytest.raises(ValueError, match=f"1 of {6 if broken == 'query' else 10} {broken} features contain NaN"):
        knn_scores(queries, bank, torch.zeros(10, dtype=torch.int64), classes=2, ks=(1,))

"""Our k-NN against scikit-learn's with the same weights, on random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from mae_transfer.metrics import knn
from mae_transfer.metrics.knn import knn_scores


@pytest.mark.parametrize("chunk", [2**27, 1000])
def test_votes_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    torch.manual_seed(0)
    bank, queries, labels = torch.randn(300, 12), torch.randn(50, 12) * 3, torch.randint(0, 7, (300,))
    scores = knn_scores(queries, bank, labels, classes=7, ks=(1, 10, 100), temperature=0.07)
    assert scores.shape == (3, 50, 7)
    for row, k in zip(scores, (1, 10, 100), strict=True):
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07))
        reference.fit(F.normalize(bank, dim=1).double().numpy(), labels.numpy())
        shares = reference.predict_proba(F.normalize(queries, dim=1).double().numpy())
        np.testing.assert_allclose((row / row.sum(dim=1, keepdim=True)).numpy(), shares, atol=1e-4)
        assert row.argmax(dim=1).tolist() == reference.predict(F.normalize(queries, dim=1).double().numpy()).tolist()


@pytest.mark.parametrize(("ks", "temperature"), [((0,), 0.07), ((11,), 0.07), ((), 0.07), ((5,), 0.0)])
def test_impossible_neighbours_are_refused(ks: tuple[int, ...], temperature: float) -> None:
    with pytest.raises(ValueError, match="need 1 <= k <= 10"):
        knn_scores(torch.randn(2, 3), torch.randn(10, 3), torch.zeros(10, dtype=torch.int64), classes=2, ks=ks, temperature=temperature)

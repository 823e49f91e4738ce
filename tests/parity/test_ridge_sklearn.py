"""Our ridge classifier against scikit-learn's Ridge and RidgeClassifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier

from mae_transfer.metrics import features as features_module
from mae_transfer.metrics import ridge
from mae_transfer.metrics.ridge import fit_ridge


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("images", [200, 20])
@pytest.mark.parametrize("chunk", [2**16, 7])
def test_weights_and_classes_equal_scikit_learns(
    monkeypatch: pytest.MonkeyPatch, penalty: float, images: int, chunk: int
) -> None:
    monkeypatch.setattr(ridge, "CHUNK", chunk)
    monkeypatch.setattr(features_module, "CHUNK", chunk)
    torch.manual_seed(0)
    features, labels, queries = torch.randn(images, 32) + 3, torch.arange(images) % 5, torch.randn(50, 32) + 3
    path = fit_ridge(features, labels, classes=5)
    weight, bias = path.solve(penalty)
    alpha = penalty * path.values.mean().item()
    x, hot = features.double().numpy(), torch.nn.functional.one_hot(labels).double().numpy()
    reference = Ridge(alpha).fit(x, hot)
    np.testing.assert_allclose(weight.T, reference.coef_, atol=1e-9)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-9)
    classes = RidgeClassifier(alpha).fit(x, labels.numpy()).predict(queries.double().numpy())
    assert (queries.double() @ weight + bias).argmax(dim=1).tolist() == classes.tolist()

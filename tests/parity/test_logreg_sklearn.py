"""Our logistic regression against scikit-learn's, in float64: coefficients, biases and probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mae_transfer.metrics.logreg import fit_logreg


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("classes", [3, 7])
def test_coefficients_equal_scikit_learns(c: float, classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.arange(210) % classes
    features = (torch.randn(classes, 12)[labels] + torch.randn(210, 12)).double()
    found = fit_logreg(features, labels, classes=classes, c=c, tolerance=1e-9)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight, reference.coef_, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(
        found.bias - found.bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-4
    )
    np.testing.assert_allclose(found(features).softmax(dim=1), reference.predict_proba(features.numpy()), atol=1e-4)
    assert found.gradient <= 1e-6


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_float32_and_a_warm_start_reach_the_same_minimum(c: float) -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(4, 8)[labels] + torch.randn(200, 8)
    exact = fit_logreg(features.double(), labels, classes=4, c=c, tolerance=1e-9)
    cold = fit_logreg(features, labels, classes=4, c=c)
    warm = fit_logreg(features, labels, classes=4, c=c, start=fit_logreg(features, labels, classes=4, c=c / 10))
    for other in (cold, warm):
        assert other.gradient <= 1e-4  # float32 values of the loss allow no more
        np.testing.assert_allclose(other.weight, exact.weight, atol=1e-2 * exact.weight.abs().max().item())

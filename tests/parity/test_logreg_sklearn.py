"""Our logistic regression against scikit-learn's, in float64: coefficients, biases and probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mae_transfer.metrics import logreg
from mae_transfer.metrics.logreg import fit_logreg, fit_path


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
        found.bias - found.bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-4, rtol=1e-4
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


def test_features_of_very_different_variances_need_few_passes_in_parts_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    labels = torch.arange(600) % 5
    turn = torch.linalg.qr(torch.randn(40, 40))[0]
    features = (torch.randn(5, 40)[labels] + torch.randn(600, 40)) * torch.logspace(1, -2, 40) @ turn + 3
    passes, whole = [], logreg._cross_entropy
    monkeypatch.setattr(logreg, "_cross_entropy", lambda *parts: passes.append(None) or whole(*parts))
    features, cs = features.double(), (1e-3, 1e-2)
    path = fit_path(features, labels, classes=5, cs=cs)
    with monkeypatch.context() as plain:
        same = logreg.Axes(torch.zeros(40).double(), torch.ones(40).double(), torch.eye(40).double())
        plain.setattr(logreg, "find_axes", lambda _: same)
        scaled = len(passes)
        fit_path(features, labels, classes=5, cs=cs)
    assert 2 * scaled < len(passes) - scaled
    assert all(one.gradient <= 1e-5 for one in path)
    monkeypatch.setattr(logreg, "CHUNK", 7 * 5)
    parts = fit_path(features, labels, classes=5, cs=cs)
    for one, other in zip(path, parts, strict=True):
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-5, atol=1e-9)


def test_equal_features_and_fewer_features_than_dimensions_are_fitted() -> None:
    equal = fit_logreg(torch.ones(10, 4), torch.tensor([0] * 3 + [1] * 7), classes=2, c=1.0)
    np.testing.assert_allclose(equal(torch.ones(1, 4)).softmax(dim=1)[0], [0.3, 0.7], atol=1e-4)
    torch.manual_seed(0)
    few, labels = torch.randn(6, 20).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    found = fit_logreg(few, labels, classes=3, c=1.0, tolerance=1e-9)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(few.numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight, reference.coef_, atol=1e-4)

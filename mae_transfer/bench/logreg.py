"""The benchmark `logreg`: a path of logistic regressions on features, ours and scikit-learn's, to the same tolerance.

The features have the falling variances of a ViT's, and classes that overlap. Both fit float32 on the CPU, each C from
the weights of the one before.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_transfer.bench.harness import not_installed
from mae_transfer.metrics.logreg import fit_path
from mae_transfer.tasks.logreg import CS

OURS, PEER = "ours", "scikit-learn"
TOLERANCE = 1e-5  # the default of fit_logreg
SEPARATION = 0.2  # standard deviation of the class means relative to that within a class


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time both on the same features, alternating, and return a record of each."""
    features, labels = draw_features(args.images, args.width, args.classes)
    contestants: dict[str, Callable[[Tensor, Tensor, int], np.ndarray]] = {OURS: fit_ours, PEER: fit_peer}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    weights: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    for number in range(args.rounds):
        for name in list(contestants) if number % 2 == 0 else list(contestants)[::-1]:
            start = time.perf_counter()
            try:
                weights[name] = contestants[name](features, labels, args.classes)
            except ImportError as error:
                failures[name] = not_installed(error)
            else:
                seconds[name].append(time.perf_counter() - start)
    ours, size = seconds[OURS], f"{args.images} x {args.width}, {args.classes} classes, {len(CS)} C"
    return [
        {"name": name, "size": size, "failure": failures[name]}
        if name in failures
        else {
            "name": name,
            "size": size,
            "seconds": statistics.median(seconds[name]),
            "seconds_range": [min(seconds[name]), max(seconds[name])],
            "ratio_to_ours": statistics.median(other / own for other, own in zip(seconds[name], ours, strict=True)),
            "largest_difference": float(np.abs(weights[name] - weights[OURS]).max() / np.abs(weights[OURS]).max()),
        }
        for name in contestants
    ]


def fit_ours(features: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Return the weights of all C, (len(CS), C, D)."""
    models = fit_path(features, labels, classes=classes, cs=CS)
    return torch.stack([model.weight for model in models]).numpy()


def fit_peer(features: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Return those of scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    model, found = LogisticRegression(tol=TOLERANCE, max_iter=1000, warm_start=True), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # line searches end where float32 allows no progress
        for c in CS:
            found.append(model.set_params(C=c).fit(features.numpy(), labels.numpy()).coef_.copy())
    return np.stack(found)


def draw_features(images: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return features (N, D) of mean 0 and mean variance 1, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    deviations = torch.arange(1.0, width + 1) ** -0.5
    labels = torch.arange(images) % classes
    centres = SEPARATION * torch.randn(classes, width, generator=generator)
    features = torch.randn(images, width, generator=generator).add_(centres[labels]).mul_(deviations) @ turn
    features -= features.mean(dim=0)
    return features / features.square().mean().sqrt(), labels

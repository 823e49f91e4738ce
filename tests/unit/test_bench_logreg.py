"""The benchmark of logistic regression: both contestants find the same weights. No assertion is about time."""

from __future__ import annotations

import argparse

import pytest

from mae_transfer.bench import logreg


def test_ours_and_scikit_learn_find_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logreg, "CS", (1e-3, 1.0))
    options = argparse.Namespace(images=300, width=12, classes=4, rounds=2)
    ours, peer = logreg.run(options)
    assert (ours["name"], ours["ratio_to_ours"], ours["largest_difference"]) == ("ours", 1.0, 0.0)
    assert peer["largest_difference"] < 0.01
    assert peer["seconds_range"][0] <= peer["seconds"] <= peer["seconds_range"][1]

    def absent(*_: object) -> None:
        raise ImportError("none", name="sklearn")

    monkeypatch.setattr(logreg, "fit_peer", absent)
    assert logreg.run(options)[1]["failure"] == "not installed (sklearn): pip install -e '.[bench]'"

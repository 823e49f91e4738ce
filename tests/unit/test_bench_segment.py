"""The benchmark of segmentation: its contestants train the same model; no assertion is about time."""

from __future__ import annotations

import pytest

from mae_transfer.adapters.mmseg import quiet
from mae_transfer.bench import segment
from mae_transfer.bench.harness import Measures, Row, Work

WORK = Work(size="vit_tiny", image=32, batch=2)


@pytest.fixture(scope="module", autouse=True)
def mmseg_is_here() -> None:
    with quiet():
        pytest.importorskip("mmseg.models")


def test_the_contestants_train_models_of_one_size() -> None:
    counts = []
    for build in segment.CONTESTANTS.values():
        module, inputs = build(WORK)
        loss = module.train()(*inputs)
        loss.backward()
        assert loss.isfinite()
        counts.append(sum(p.numel() for p in module.parameters() if p.grad is not None))
    assert counts[0] == counts[1]


def test_the_ratio_is_the_median_over_rounds_to_mmseg_in_the_same_mode() -> None:
    measures = Measures(1.0, 10, 100.0, 0.5)
    rows = [Row(segment.OURS, "eager", (4.0, 6.0, 8.0), measures), Row(segment.PEER, "eager", (2.0, 2.0, 4.0), measures)]
    assert segment.record(rows[0], rows, WORK)["ratio_to_mmseg"] == 2.0
    failed = Row("absent", "eager", failure="not installed")
    assert segment.record(failed, rows, WORK) == {"name": "absent", "mode": "eager", "failure": "not installed"}

"""The benchmark of segmentation: its contestants train the same model; no assertion is about time."""

from __future__ import annotations

import pytest

from mae_transfer.adapters.mmseg import quiet
from mae_transfer.bench import segment
from mae_transfer.bench.harness import Work

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

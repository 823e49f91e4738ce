"""The benchmark of classification: its contestants train what they claim to; no assertion is about time."""

from __future__ import annotations

import pytest

from mae_transfer.bench import classify
from mae_transfer.bench.options import Workload

WORK = Workload(size="vit_tiny", image=32, batch=2)


@pytest.mark.parametrize("name", classify.COMPARISON.contestants)
def test_every_contestant_trains_its_share(name: str) -> None:
    module, compute_loss, *_ = classify.COMPARISON.contestants[name](WORK)
    module.train()
    loss = compute_loss()
    loss.backward()
    assert loss.isfinite()
    share = sum(p.numel() for p in module.parameters() if p.grad is not None) / sum(
        p.numel() for p in module.parameters()
    )
    expected = {
        classify.FINETUNE: 1.0,
        classify.PEER: 1.0,
        "4 blocks": 0.35,
        "1 block": 0.11,
        "1 probe": 0.03,
        "10 probes": 0.26,
    }[name]
    assert share == pytest.approx(expected, abs=0.05)

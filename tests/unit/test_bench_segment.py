"""The benchmark of segmentation: its contestants train the same model; no assertion is about time."""

from __future__ import annotations

from mae_transfer.bench import segment
from mae_transfer.bench.options import Workload

WORK = Workload(size="vit_tiny", image=32, batch=2)


def test_the_contestants_train_models_of_one_size() -> None:
    counts = []
    for build in segment.COMPARISON.contestants.values():
        module, compute_loss, *_ = build(WORK)
        module.train()
        loss = compute_loss()
        loss.backward()
        assert loss.isfinite()
        counts.append(sum(p.numel() for p in module.parameters() if p.grad is not None))
    assert counts[0] == counts[1]


def test_windows_in_batches_give_mmsegs_logits_at_every_size() -> None:
    records = segment.slide(Workload(size="vit_tiny", image=32, batch=3), rounds=1)
    ways = [(segment.ONE_BY_ONE, 1), (segment.OURS, 1), (segment.OURS, 3)]
    assert [(r["name"], r["windows_per_pass"], r["image"]) for r in records] == [
        (*way, image) for image in ("32 x 42", "56 x 74") for way in ways
    ]
    assert max(r["largest_difference"] for r in records) <= 1e-5
    assert all(r["seconds"] > 0 for r in records)

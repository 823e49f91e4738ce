"""The benchmarks of detection: their contestants train, both evaluators agree; no assertion is about time."""

from __future__ import annotations

import pytest

from mae_transfer.bench import detect
from mae_transfer.bench.harness import Comparison, Measures, Timing, describe
from mae_transfer.bench.options import Workload

WORK = Workload(size="vit_tiny", image=64, batch=1)


@pytest.mark.parametrize(
    "name",
    [
        detect.OURS,
        detect.CHANNELS,
        detect.FLEX,
        pytest.param(detect.HEADS, marks=pytest.mark.detectron2),
        pytest.param(detect.PEER, marks=pytest.mark.detectron2),
    ],
)
@pytest.mark.filterwarnings("ignore")  # detectron2's own imports warn
def test_every_contestant_trains(name: str, request: pytest.FixtureRequest) -> None:
    if name in (detect.HEADS, detect.PEER):
        request.getfixturevalue("detectron2")
    module, compute_loss, *_ = detect.COMPARISON.contestants[name](WORK)
    module.train()
    loss = compute_loss()
    loss.backward()
    assert loss.isfinite()
    assert (
        sum(p.numel() for p in module.parameters() if p.grad is not None) > 10_000_000
    )  # the encoder and heads of full width


def test_both_evaluators_give_the_same_figures() -> None:
    records = detect.evaluators(images=6, rounds=1)
    assert [(r["name"], r["kind"]) for r in records] == [
        (backend, kind) for kind in detect.KINDS for backend in detect.BACKENDS
    ]
    assert max(r["largest_difference"] for r in records) <= 1e-9


def test_the_ratio_is_the_median_over_rounds_to_the_peer_in_the_same_mode() -> None:
    comparison = Comparison({}, "ratio", "peer")
    measures = Measures(1.0, 10, 100.0, 0.5)
    cores = (1.0, 1.0, 1.0)
    rows = [
        Timing("peer", "eager", (2.0, 2.0, 4.0), measures, None, cores),
        Timing("peer", "compiled", (9.0, 9.0, 9.0), measures, None, cores),
        Timing("ours", "eager", (4.0, 6.0, 8.0), measures, None, (1.5, 1.2, 1.0)),
        Timing("absent", "eager", failure="not installed"),
    ]
    record = describe(rows[2], rows, WORK, comparison)
    assert (record["ratio"], record["images_per_core_s"], record["ratio_by_core"]) == (2.0, 1.2, 1.2)
    assert describe(rows[3], rows, WORK, comparison) == {
        "name": "absent",
        "mode": "eager",
        "failure": "not installed",
    }

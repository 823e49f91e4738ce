"""The profile of some steps, and what a log line says of speed and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import train
from mae_transfer.engine.profile import PROFILED, matmul_peak
from mae_transfer.engine.schedule import Rates
from mae_transfer.engine.state import LoopConfig, RunConfig, TrainState
from mae_transfer.interfaces import Batch

CPU = torch.device("cpu")


def run(folder: Path, *, steps: int = 10, profile: int | None = None, flops: int | None = None) -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 4), Batch(torch.rand(2, 4), (), None, None, torch.arange(2))
    options = RunConfig(device="cpu", log_every=5, save_minutes=None, profile=profile)
    cfg = LoopConfig(steps=steps, steps_per_epoch=5, global_batch=2, run=options, flops_per_image=flops)
    state = TrainState.create(model, torch.optim.SGD(model.parameters(), lr=0.1), cfg, dist=Dist(CPU))
    with Logger(folder, steps=steps) as log:
        train(
            state, iter([batch] * steps), lambda model, batch, step: (model(batch.image).square().mean(), {}), cfg,
            rates_at=lambda step: Rates(0.1), log=log, checkpoints=None,
        )  # fmt: skip


@pytest.mark.parametrize(("steps", "after", "seen"), [(10, 1, PROFILED), (10, 4, PROFILED), (6, 4, 2)])
def test_a_profile_has_a_trace_and_a_table_of_some_steps(
    tmp_path: Path, steps: int, after: int, seen: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, steps=steps, profile=after)
    trace, table = sorted((tmp_path / "profile").iterdir())
    assert (trace.name, table.name) == (f"step_{after:08d}.json", f"step_{after:08d}.txt")
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::linear" for event in events) == seen
    assert "aten::addmm" in table.read_text()
    assert f"profile of the steps after {after}: {trace}" in capsys.readouterr().out


def test_without_the_option_or_after_its_step_there_is_no_profile(tmp_path: Path) -> None:
    run(tmp_path / "none")
    run(tmp_path / "late", profile=20)
    assert not list(tmp_path.rglob("profile"))


def test_a_log_line_has_the_share_of_the_matmul_peak_if_the_flops_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mae_transfer.engine.profile.matmul_peak", lambda device, precision: 1e9)
    for name, flops in (("with", 100_000), ("without", None)):
        run(tmp_path / name, flops=flops)
        row = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        line = capsys.readouterr().out.splitlines()[-1]
        assert f"  {row['peak_mem_gib']:.1f} GiB" in line
        assert ("mfu" in row) == (" mfu " in line) == (flops is not None)
        if flops is not None:
            assert row["mfu"] == pytest.approx(row["images_per_s"] * 1e5 / 1e9)


def test_the_matmul_peak_is_that_of_a_product() -> None:
    assert 1e8 < matmul_peak(CPU, "float32", tries=1) < 1e14

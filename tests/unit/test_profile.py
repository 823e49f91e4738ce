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
from mae_transfer.engine.profile import PROFILED, Profile, matmul_peak
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


def test_a_profile_that_cannot_be_is_named_and_without_the_option_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "none")
    assert "profile" not in capsys.readouterr().out
    for after in (10, 20):
        run(tmp_path / str(after), profile=after)
        assert f"run.profile={after} profiles nothing: give a step after 0, below 10" in capsys.readouterr().out
    assert not list(tmp_path.rglob("profile"))


def test_a_run_that_stops_before_the_profiled_steps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger(tmp_path, steps=9) as log, Profile(5, log) as profile:
        profile.advance(4)  # it stops while the profile warms up
    assert "run.profile=5 profiled nothing: the run ended too early" in capsys.readouterr().out


def test_a_profile_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").touch()
    run(tmp_path, profile=2)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 10
    (warning,) = caplog.messages
    assert warning.startswith("run.profile: the profile was not written, and the run goes on: ")
    assert str(tmp_path / "profile") in warning


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


def test_the_peak_of_memory_is_that_after_the_measurement_of_the_matmul_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("mae_transfer.engine.profile.matmul_peak", lambda *_: calls.append("matmul") or 1e9)
    monkeypatch.setattr("mae_transfer.engine.loop.reset_peak_memory", lambda device: calls.append(f"reset {device}"))
    run(tmp_path, flops=100_000)
    assert calls == ["matmul", "reset cpu"]


def test_the_matmul_peak_is_that_of_a_product() -> None:
    assert 1e8 < matmul_peak(CPU, "float32", tries=1) < 1e14

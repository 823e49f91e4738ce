"""The log of a run: complete lines, no duplicates after resume, plain output without a terminal, main rank only."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mae_transfer.engine.log import Logger

ROW = {"epoch": 0.5, "loss": 0.25, "lr": 1e-3, "images_per_s": 100.0, "data_wait": 0.02}


def rows(folder: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]


def test_rows_are_json_lines_flushed_at_once_and_curves_go_to_tensorboard(tmp_path: Path) -> None:
    with Logger(tmp_path, steps=10, progress=False) as log:
        log.write("train", 5, ROW | {"grad_norm": float("inf")})
        assert json.loads((tmp_path / "log.jsonl").read_text()) == {
            "kind": "train",
            "step": 5,
            **ROW,
            "grad_norm": None,
        }
        log.write("eval", 5, {"top1": 0.5})
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/loss")] == [(5, 0.25)]
    assert [(point.step, point.value) for point in curves.Scalars("eval/top1")] == [(5, 0.5)]


def test_a_resumed_record_has_no_duplicates_and_no_broken_line(tmp_path: Path) -> None:
    with Logger(tmp_path, steps=10, progress=False) as log:
        for step in (2, 4, 6):
            log.write("train", step, ROW)
            log.write("eval", step, {"top1": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with Logger(tmp_path, steps=10, resumed_at=4, progress=False) as log:
        log.write("eval", 4, {"top1": 0.5})
        log.write("train", 6, ROW)
    assert rows(tmp_path) == [("train", 2), ("eval", 2), ("train", 4), ("eval", 4), ("train", 6)]


def test_off_a_terminal_there_is_one_plain_line_per_log_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Logger(tmp_path, steps=100) as log:
        for step in range(1, 101):
            log.tick(step)
            if step % 50 == 0:
                log.write("train", step, ROW)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train 50/100  loss 0.2500  lr 1.00e-03  100 img/s  waiting for data 2%  0:00:0")


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger(tmp_path / "d", steps=10, main=False) as log:
        log.write("train", 5, ROW)
        log.tick(5)
        log.say("hello")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "d").exists()


def test_the_record_is_closed_when_the_run_crashes(tmp_path: Path) -> None:
    log = Logger(tmp_path, steps=10, progress=False)
    with pytest.raises(ZeroDivisionError), log:
        log.write("train", 1 // len(rows(tmp_path)), ROW)
    log.write("train", 2, ROW)
    log.close()
    assert rows(tmp_path) == []


def test_on_a_terminal_there_is_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Logger(tmp_path, steps=100) as log:
        log.write("train", 50, ROW)
        log.tick(50)
        log.say("a [sentence] in between")
    out = capsys.readouterr().out
    assert "50/100" in out
    assert "loss 0.2500" in out
    assert "a [sentence] in between" in out


def test_wandb_asked_for_and_absent_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_wandb(name: str, *args: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(ValueError, match="pip install wandb"):
        Logger(tmp_path, steps=10, wandb=True)

"""The monitor of a pretraining: figures on its schedule, and no influence on the training."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_runs import ROOT, Values, assert_equal, config, log, losses, payload, run_options, stop_at, values

from mae_transfer import checkpoints
from mae_transfer.config import load
from mae_transfer.data import folders
from mae_transfer.tasks import monitor, pretrain
from mae_transfer.tasks.pretrain import PretrainConfig
from tests.integration.conftest import Torchrun


@pytest.fixture
def watched(image_folder: Path) -> Values:
    """A monitor every 3 of the 5 epochs (10 steps) of pretrain_runs, on 12 JPEGs of 3 classes."""
    return {"monitor": {"data": {"root": str(image_folder)}, "every_epochs": 3.0, "ks": (1, 3)}}


def figures(folder: Path) -> list[Values]:
    return [row for row in log(folder) if row["kind"] == "monitor"]


def test_a_monitor_measures_on_its_schedule_and_changes_no_bit_of_the_training(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = folders.read_file
    monkeypatch.setattr(folders, "read_file", lambda path: decoded.append(path) or read(path))
    without = pretrain.Pretrain.launch(config(evaluate_epochs=2.0), tmp_path / "without")
    assert decoded == []
    watched_too = pretrain.Pretrain.launch(config(evaluate_epochs=2.0, **watched), tmp_path / "with")
    assert len(decoded) == len(set(decoded)) == 24  # once each, for two measurements
    assert losses(tmp_path / "without") == losses(tmp_path / "with")
    assert_equal(payload(tmp_path / "without"), payload(tmp_path / "with"))
    assert_equal(*(checkpoints.read(tmp_path / run / "backbone.safetensors") for run in ("without", "with")))
    assert [(r.metric, r.value, r.config_digest) for r in without] == [
        (r.metric, r.value, r.config_digest) for r in watched_too
    ]
    first, last = figures(tmp_path / "with")
    assert (first["step"], last["step"], first["epoch"]) == (6, 10, 3.0)
    names = {"knn-1_top1", "knn-3_top1", "ridge_top1", "statistics_rank", "statistics_spread"}
    names |= {"statistics_attention"}
    assert names < first.keys() == last.keys()
    assert all(0 <= last[name] <= 1 for name in names)
    assert (tmp_path / "with" / "curves.png").stat().st_size > (tmp_path / "without" / "curves.png").stat().st_size
    assert load(tmp_path / "with" / "config.py", PretrainConfig) == config(evaluate_epochs=2.0, **watched)


def test_the_digest_and_a_work_dir_know_no_monitor(watched: Values) -> None:
    plain, more = config(), config(**watched)
    assert (plain.digest(), plain.recipe_digest(), plain.recipe()) == (
        more.digest(),
        more.recipe_digest(),
        more.recipe(),
    )
    assert plain.differences(more) == []


def test_a_resumed_run_has_the_figures_of_a_whole_one(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor measures step 6, the run stops after step 8 and resumes."""
    pretrain.Pretrain.launch(config(**watched), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert pretrain.Pretrain.launch(config(**watched), tmp_path / "halves") == []
    pretrain.Pretrain.launch(config(**watched), tmp_path / "halves", resume=True)
    assert figures(tmp_path / "whole") == figures(tmp_path / "halves")
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "halves"))


def test_a_signal_during_a_measurement_stops_the_run_and_the_resumed_one_repeats_it(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, stops = monitor.Monitor.__call__, [6]

    def stopping(self: Any, backbone: Any) -> Any:
        if stops and stops.pop():
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(self, backbone)

    monkeypatch.setattr(monitor.Monitor, "__call__", stopping)
    assert pretrain.Pretrain.launch(config(**watched), tmp_path / "run") == []
    assert max(losses(tmp_path / "run")) in (6, 7)
    pretrain.Pretrain.launch(config(**watched), tmp_path / "run", resume=True)
    assert [row["step"] for row in figures(tmp_path / "run")] == [6, 10]


def test_a_signal_ends_a_measurement_between_two_batches(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    batches = monitor.Monitor.batches

    def stopping(self: Any, part: str) -> Any:
        for batch in batches(self, part):
            seen.append(part)
            yield batch
            os.kill(os.getpid(), signal.SIGTERM)

    cfg = config(**watched, **run_options(evaluation_batch=4))
    with monkeypatch.context() as patched:
        patched.setattr(monitor.Monitor, "batches", stopping)
        assert pretrain.Pretrain.launch(cfg, tmp_path / "run") == []
    assert seen == ["train"]  # one of three batches
    assert figures(tmp_path / "run") == []
    pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)
    pretrain.Pretrain.launch(cfg, tmp_path / "whole")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_an_estimate_counts_the_measurements(
    watched: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"run": run_options()["run"] | {"estimate": True}}
    assert pretrain.Pretrain.launch(config(**watched, **options), tmp_path / "run") == []
    assert re.search(r"and 2 measurement\(s\) of the monitor, [\d.]+ seconds each\n", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(watched: Values, torchrun: Torchrun, tmp_path: Path) -> None:
    """Dropout and EMA are off, so both train alike up to rounding; 11 of 12 validation images are not halved evenly."""
    encoder = values()["model"]["encoder"] | {"drop_path": 0.0}
    watched["monitor"] |= {"val_images": 11}
    plain = {"model": values()["model"] | {"encoder": encoder}, **watched, **run_options(device_batch=None)}
    pretrain.Pretrain.launch(config(**plain), tmp_path / "one")
    path = tmp_path / "two.py"
    path.write_text(config(**plain).source())
    torchrun(ROOT / "tools" / "pretrain.py", path, "--work-dir", tmp_path / "two")
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert two.pop("kind") == one.pop("kind")
        assert two == pytest.approx(one, rel=1e-3)


def test_the_weights_measured_are_the_averaged_ones_in_eval_mode_without_masks(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    judge = monitor.Monitor.__call__

    def watching(self: Any, backbone: Any) -> Any:
        tokens: list[int] = []
        handle = backbone.blocks[0].register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[1]))
        found = judge(self, backbone)
        handle.remove()
        seen.append((backbone.training, set(tokens).pop()))
        assert torch.is_grad_enabled() is False
        return found

    monkeypatch.setattr(monitor.Monitor, "__call__", watching)
    pretrain.Pretrain.launch(config(**watched), tmp_path / "run")
    assert seen == [(False, 17)] * 2  # 16 patches and the class token


def test_features_that_are_not_finite_are_counted_and_training_goes_on(
    watched: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae_transfer.tasks import evaluation

    extract = evaluation.extract

    def broken(*words: Any) -> Any:
        found = extract(*words)
        found.features[0, 0] = float("nan")
        return found

    monkeypatch.setattr(evaluation, "extract", broken)
    assert pretrain.Pretrain.launch(config(**watched), tmp_path / "run")
    assert [row["broken_features"] for row in figures(tmp_path / "run")] == [pytest.approx(2 / 24)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (1, 13)}, "monitor: .*only 12 training images could be read, fewer than 13 neighbours; lower ks"),
        ({"images": 3, "ks": (1,)}, "no training image can be held out .* each of 3 classes has one image"),
        (
            {"data": {"val": {"name": "folder", "split": "test"}}},
            r"monitor: '.*images' has no split 'test'; its subfolders: train, val",
        ),
        ({"data": {"train": {"name": "folder", "labelled": False}}}, "set has no classes"),
    ],
)
def test_what_cannot_be_measured_stops_the_run_before_its_first_step(
    watched: Values, tmp_path: Path, changes: Values, message: str
) -> None:
    own = watched["monitor"]
    data = own["data"] | changes.pop("data", {})
    with pytest.raises(ValueError, match=message):
        pretrain.Pretrain.launch(config(monitor=own | changes | {"data": data}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_pool_fits_the_encoder_and_the_command_line_sets_a_monitor(watched: Values, tmp_path: Path) -> None:
    encoder = values()["model"]["encoder"] | {"class_token": False}
    without = {"model": values()["model"] | {"encoder": encoder}}
    with pytest.raises(ValueError, match=r"monitor.pool = 'cls', but the encoder has no class token"):
        config(monitor=watched["monitor"] | {"pool": "cls"}, **without)
    path = tmp_path / "config.py"
    path.write_text(config().source())
    words = ["monitor.data.root=/data/imagenet", "monitor.every_epochs=20.0"]
    found = load(path, PretrainConfig, overrides=words).monitor
    assert found is not None
    assert (found.data.root, found.every_epochs, found.ks) == ("/data/imagenet", 20.0, (5, 20))

"""What a run would take (--estimate), and the device batch that fits ("auto"): steps that nothing is kept of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_runs import Values, assert_equal, config, losses, payload, run_options, values

from mae_transfer.cli.main import main
from mae_transfer.config import load
from mae_transfer.engine.loop import Step
from mae_transfer.tasks import pretrain, trial
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]


COMMANDS = {
    "pretrain/own_photos_one_gpu": ["pretrain"],
    "classify/linear_probe": ["classify"],
    "detect/mini": ["detect"],
    "segment/upernet_vit_base_160k": ["segment"],
    "tokenizer/dalle_8192": ["tokenizer", "dvae"],
}


@pytest.mark.parametrize("file", COMMANDS)
def test_every_training_tool_estimates_and_writes_nothing(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[file], str(ROOT / f"configs/{file}.py"), "--debug", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"estimate from 20 steps of 4 images, 4 per device.*: [\d.]+ images/s", said)
    assert re.search(r"time +[\d.]+ (seconds|minutes) for \d+ steps .*1 evaluation\(s\)", said)
    assert re.search(r"memory +[\d.]+ GiB", said)
    assert re.search(r"disk +[\d.]+ GiB: 3 training states of", said)
    assert not list(tmp_path.iterdir())


def test_what_trains_nothing_has_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(ROOT / "configs/classify/knn.py"), "--debug", "--estimate"]) == 1
    assert "trains nothing" in capsys.readouterr().err


def test_without_an_estimate_the_work_dir_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", str(ROOT / "configs/mini/pretrain.py"), "--debug"])
    assert "--work-dir is missing" in capsys.readouterr().err


def test_times_and_sizes_by_hand() -> None:
    assert [trial.duration(seconds) for seconds in (42.0, 750.0, 113040.0)] == [
        "42.0 seconds",
        "12.5 minutes",
        "31.4 hours",
    ]
    assert trial.size({"a": torch.zeros(3, 5), "b": [torch.zeros(2, dtype=torch.float64), 7], "c": "x"}) == 60 + 16


@pytest.mark.parametrize(
    ("share", "multiple", "expected"),
    [(64, 1, [64, 32, 16, 8, 4, 2, 1]), (12, 1, [12, 6, 3, 1]), (24, 4, [24, 12, 4]), (7, 1, [7, 1])],
)
def test_halves_divide_the_share_and_keep_the_crops_of_an_image_together(
    share: int, multiple: int, expected: list[int]
) -> None:
    assert list(trial.halves(share, multiple=multiple)) == expected


class TooLarge:
    """A device that changes the weights and then runs out of memory if a forward pass has more than `most` images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.seen = most, []  # type: ignore[var-annotated]
        inner = pretrain.Pretrain.loss

        def loss(task: Any, model: torch.nn.Module, batch: Any, at: Step) -> Any:
            self.seen.append(len(batch.image))
            if len(batch.image) > self.most and at.number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return inner(task, model, batch, at)

        monkeypatch.setattr(trial, "can_try", lambda device: True)
        monkeypatch.setattr(pretrain.Pretrain, "loss", loss)


def test_auto_takes_the_largest_that_fits_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Values = {"ema_decay": 0.9}
    batch = config().batch
    pretrain.Pretrain.launch(config(**plain, **run_options(device_batch=batch // 4)), tmp_path / "told")
    TooLarge(monkeypatch, batch // 4)
    resets: list[int] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    pretrain.Pretrain.launch(config(**plain, **run_options(device_batch="auto")), tmp_path / "found")
    assert len(resets) == 3  # graphs of batches that were tried are not kept
    assert losses(tmp_path / "found") == losses(tmp_path / "told")
    assert_equal(payload(tmp_path / "found"), payload(tmp_path / "told"))
    assert load(tmp_path / "found/config.py", PretrainConfig).run.device_batch == batch // 4


def test_a_resumed_run_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, batch = config(**run_options(device_batch="auto", save_every=5)), config().batch
    limited = TooLarge(monkeypatch, batch // 2)
    pretrain.Pretrain.launch(cfg, tmp_path)
    (tmp_path / "results.jsonl").unlink()
    newest = max((tmp_path / "checkpoints").glob("step_*.pt"))
    newest.unlink()
    limited.most, limited.seen = batch, []
    capsys.readouterr()
    pretrain.Pretrain.launch(cfg, tmp_path, resume=True)
    assert set(limited.seen) == {batch // 2}
    assert "as when the run began" in capsys.readouterr().out


def test_where_nothing_fits_the_error_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TooLarge(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"not even 1 image.*checkpoint_activations"):
        pretrain.Pretrain.launch(config(**run_options(device_batch="auto")), tmp_path)


def test_on_a_cpu_it_is_the_whole_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(**run_options(device_batch="auto"))
    pretrain.Pretrain.launch(cfg, tmp_path)
    assert f"run.device_batch = {cfg.batch} (auto: the whole share" in capsys.readouterr().out


def test_auto_is_refused_where_the_device_batch_changes_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"mixup and cutmix draw one weight per device batch"):
        load(ROOT / "configs/classify/finetune_vit_base.py", ClassifyConfig, overrides=["run.device_batch=auto"])
    with pytest.raises(ValueError, match=r"the mask loss is a mean over the objects of a device batch"):
        load(ROOT / "configs/detect/mini.py", DetectConfig, overrides=["run.device_batch=auto"])
    load(ROOT / "configs/detect/mini.py", DetectConfig, overrides=["run.device_batch=auto", "heads.masks=False"])
    argv = [
        str(ROOT / "configs/segment/mini.py"),
        "--work-dir",
        str(tmp_path),
        "--debug",
        "--set",
        "run.device_batch=auto",
    ]
    assert main(["segment", *argv]) == 1
    assert "with batch norm (net.backbone." in capsys.readouterr().err
    skipping = values()["model"]
    skipping["encoder"]["skip_dropped"] = True
    with pytest.raises(ValueError, match=r"'auto': with skip_dropped \(encoder.blocks.1\) the result would depend"):
        pretrain.Pretrain.launch(config(model=skipping, **run_options(device_batch="auto")), tmp_path / "skipping")

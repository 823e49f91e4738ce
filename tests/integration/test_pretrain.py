"""Pretraining end to end, on files and through the tools: outputs, stops, kills and bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_runs import ROOT, Values, assert_equal, config, log, losses, payload, run_options, stop_at, values

from mae_transfer import checkpoints, results
from mae_transfer.config import load, validate
from mae_transfer.data import Crops, UnreadableImage
from mae_transfer.data.packs import write_pack
from mae_transfer.data.regions import _decoder
from mae_transfer.draw.reconstructions import HEADER
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import NonFiniteLoss
from mae_transfer.tasks import pretrain
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.reconstruct import reconstruct
from tests.integration.conftest import Torchrun


def test_a_work_dir_ends_with_everything_that_the_readme_names(tmp_path: Path) -> None:
    written = pretrain.Pretrain.launch(config(evaluate_epochs=2.0), tmp_path / "run")
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "backbone.safetensors", "checkpoints", "config.py", "curves.png", "log.jsonl", "reconstructions",
        "results.jsonl", "tensorboard"
    }  # fmt: skip
    assert load(folder / "config.py", PretrainConfig) == config(evaluate_epochs=2.0)
    assert list(losses(folder)) == list(range(1, 11))
    assert [row["step"] for row in log(folder) if row["kind"] == "eval"] == [4, 8, 10]
    loaded, defects = results.load(folder / "results.jsonl")
    assert defects == []
    assert loaded == written
    assert [(r.metric, r.steps, r.images_seen, r.global_batch, r.scale) for r in loaded] == [
        ("val_loss", 10, 80, 8, "mini")
    ]
    assert loaded[0].checkpoint_sha256 == checkpoints.sha256(folder / "backbone.safetensors")
    assert loaded[0].tokens_per_image == 5
    assert list((folder / "tensorboard").iterdir())
    backbone = checkpoints.load_backbone(folder / "backbone.safetensors")
    averaged = {
        name.removeprefix("encoder."): tensor
        for name, tensor in payload(folder)["ema"].items()
        if name.startswith("encoder.")
    }
    assert_equal(dict(backbone.state_dict()), averaged)
    about = checkpoints.metadata(folder / "backbone.safetensors")
    assert about["digest"] == config(evaluate_epochs=2.0).digest()
    assert about["recipe"]["optim"]["lr"] == 1e-3
    for sheet in (folder / "reconstructions").iterdir():
        assert Image.open(sheet).size == (4 * (128 + 4) + 4, HEADER + 2 * (128 + 4) + 4)


CROSS = {"kind": "cross", "share": 1 / 3, "depth": 2, "dim": 8, "heads": 2}


@pytest.mark.parametrize("decoder", [values()["model"]["decoder"], CROSS], ids=["self", "cross"])
def test_ten_steps_are_five_and_five_resumed_bit_for_bit(
    decoder: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation 2, EMA, drop path, workers 1 -> 2; the whole run has none."""
    model = values()["model"] | {"decoder": decoder}
    pretrain.Pretrain.launch(config(model=model), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert pretrain.Pretrain.launch(config(model=model, **run_options(workers=1)), tmp_path / "halves") == []
    assert payload(tmp_path / "halves", 5)["step"] == 5
    assert not (tmp_path / "halves" / "backbone.safetensors").exists()
    pretrain.Pretrain.launch(config(model=model, **run_options(workers=2)), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "halves"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    weights = [checkpoints.read(tmp_path / name / "backbone.safetensors") for name in ("whole", "halves")]
    assert_equal(*weights)


def test_a_run_on_a_folder_goes_on_with_its_pack_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    for index in range(18):
        path = images / f"{index % 3}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (20, 24, 3), np.uint8)).save(path)
    write_pack(images, tmp_path / "images.zip")

    parts = {"train": {"name": "photos", "split": "train"}, "val": {"name": "photos", "split": "val"}}

    def on(root: Path, **options: Any) -> PretrainConfig:
        return config(data={"root": str(root), "size": 16, **parts}, **run_options(**options))

    (whole,) = pretrain.Pretrain.launch(on(images), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain.Pretrain.launch(on(images), tmp_path / "halves")
    (halves,) = pretrain.Pretrain.launch(on(tmp_path / "images.zip", workers=2), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "halves"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert whole.dataset == halves.dataset == "images"
    assert whole.record.data == halves.record.data


def test_crossmae_is_named_evaluated_on_all_patches_counted_and_exported(tmp_path: Path) -> None:
    """12 patches are hidden; training predicts 4 of them."""
    model = values()["model"] | {"decoder": CROSS}
    cfg, whole = (config(model=model | {"decoder": CROSS | {"share": share}}, epochs=1.0) for share in (1 / 3, 1.0))
    shapes = []

    class Counting(pretrain.Pretrain):
        def loss(self, model: Any, batch: Any, at: Any) -> Any:
            shapes.append(batch.mask.ids_predicted.shape[1])
            return super().loss(model, batch, at)

        def evaluate(self, model: Any, step: int) -> dict[str, float]:
            model.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[1]))
            return super().evaluate(model, step)

    (result,) = Counting.launch(cfg, tmp_path / "run")
    assert shapes[:4] == [4] * 4
    assert shapes[4:] == [12] * len(shapes[4:])
    assert len(shapes) > 5  # the loss and the pictures
    assert (result.metric, result.unit) == ("val_loss", "loss per hidden patch")
    assert result.pretrain == "CrossMAE norm_pixel, random 75%, 25% predicted, 1 ep"
    assert whole.method() == "CrossMAE norm_pixel, random 75%, 1 ep"
    assert checkpoints.metadata(tmp_path / "run" / "backbone.safetensors")["pretrain"] == result.pretrain
    assert checkpoints.load_backbone(tmp_path / "run" / "backbone.safetensors").depth == 2
    flops = []
    for one in (cfg, whole):
        task = pretrain.Pretrain(one, Dist(torch.device("cpu")))
        task.open()
        flops.append(task.training_flops())
    # of each of the 8 patches that only the second predicts, per multiply-add: 2 forward and 4 backward
    per_patch = 2 * (8 * 8 * 2 + 2 * 8 * 32 + 2 * 8 * 5) + 8 * 48  # q, proj, MLP and attention of 2 blocks; prediction
    assert flops[0] == result.flops_per_image
    assert flops[1] - flops[0] == 6 * 8 * per_patch


def test_accumulation_changes_no_sample_and_hardly_a_loss(tmp_path: Path) -> None:
    plain = values()["model"]["encoder"] | {"drop_path": 0.0}
    model = values()["model"] | {"encoder": plain}
    for size in (8, 2):
        pretrain.Pretrain.launch(config(model=model, **run_options(device_batch=size)), tmp_path / str(size))
    a, b = (losses(tmp_path / size) for size in ("8", "2"))
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)


def tool(config_file: Path, work_dir: Path, *more: str, python: Path | str = sys.executable) -> list[str]:
    return [str(python), str(ROOT / "tools" / "pretrain.py"), str(config_file), "--work-dir", str(work_dir), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def write_config(folder: Path, cfg: PretrainConfig) -> Path:
    path = folder / "config_of_test.py"
    path.write_text(cfg.source())
    return path


def test_two_processes_train_as_one(torchrun: Torchrun, tmp_path: Path) -> None:
    model = values()["model"] | {"encoder": values()["model"]["encoder"] | {"drop_path": 0.0}}
    cfg = config(model=model, **run_options(device_batch=None))
    pretrain.Pretrain.launch(cfg, tmp_path / "one")
    torchrun(ROOT / "tools" / "pretrain.py", write_config(tmp_path, cfg), "--work-dir", tmp_path / "two")
    a, b = (losses(tmp_path / name) for name in ("one", "two"))
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)
    one, two = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("one", "two"))
    assert [r.world_size for r in (*one, *two)] == [1, 2]
    assert one[0].value == pytest.approx(two[0].value, rel=1e-5)  # 3 images over 2 processes: each counted once


def kill_and_resume(tmp_path: Path, kills: int, seed: int, python: Path) -> None:
    cfg = config(epochs=7.0 * kills, **run_options(save_every=1, keep_last=2))
    steps = pretrain.Pretrain.launch(cfg, tmp_path / "whole")[0].steps
    file, folder, rng = write_config(tmp_path, cfg), tmp_path / "killed", random.Random(seed)
    command = tool(file, folder, "--resume", python=python)
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
        before = newest_step(folder)
        deadline = time.monotonic() + 600
        while newest_step(folder) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()  # until nothing of it writes there any more
        assert newest_step(folder) > before
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert_equal(payload(tmp_path / "whole", steps), payload(folder, steps))
    assert losses(tmp_path / "whole") == losses(folder)


def newest_step(folder: Path) -> int:
    return max((int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pt")), default=0)


def test_kill_9_loses_only_the_steps_since_the_last_save(python: Path, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=3, seed=0, python=python)


@pytest.mark.slow
def test_kill_9_twenty_times(python: Path, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=20, seed=1, python=python)


def test_sigterm_saves_and_exits_with_status_0(tmp_path: Path) -> None:
    cfg = config(epochs=5000.0, **run_options(progress=True))
    with subprocess.Popen(
        tool(write_config(tmp_path, cfg), tmp_path / "run"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train 3/"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "continue with --resume" in rest
    assert newest_step(tmp_path / "run") >= 3


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_samples(tmp_path: Path) -> None:
    cfg = config(schedule={"warmup_epochs": 0.0}, **run_options(save_every=1))
    cfg = cfg.model_copy(update={"optim": cfg.optim.model_copy(update={"lr": 1e30})})  # more than a config may say
    with pytest.raises(NonFiniteLoss, match=r"step \d+ \(lr \d.*e\+\d\d; sample ids") as error:
        pretrain.Pretrain.launch(cfg, tmp_path / "run")
    assert "last good checkpoint" in str(error.value)
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        assert all(tensor.isfinite().all() for tensor in torch.load(path, weights_only=True)["model"].values())


def test_a_folder_of_another_config_or_with_a_run_in_it_is_refused(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(), tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        pretrain.Pretrain.launch(config(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"(?s)run of another config.*optim.lr: 0.001 != 0.002"):
        pretrain.Pretrain.launch(config(optim={"lr": 2e-3}), tmp_path / "run", resume=True)
    assert pretrain.Pretrain.launch(config(), tmp_path / "run", resume=True)[0].steps == 10
    assert len(results.load(tmp_path / "run" / "results.jsonl")[0]) == 1  # it was finished: nothing is written again


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(**run_options(save_every=2))
    pretrain.Pretrain.launch(cfg, tmp_path / "whole")
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    pretrain.Pretrain.launch(cfg, tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "checkpoints" / "step_00000006.pt"
    path.write_bytes(path.read_bytes()[:-500])
    pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)
    assert "checkpoint of step 6 cannot be read" in capsys.readouterr().out
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "run"))


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(**run_options(save_every=2))

    def fill() -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)

    stop_at(monkeypatch, 5, fill)
    with pytest.raises(OSError, match="step_00000006.pt was not written.*older ones are intact"):
        pretrain.Pretrain.launch(cfg, tmp_path / "run")
    monkeypatch.undo()
    assert newest_step(tmp_path / "run") == 4
    assert pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)[0].steps == 10


def odd_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16)).save(folder / "deep.png")
    rgb.save(folder / "png_named.jpg", format="PNG")
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    rgb.resize((6000, 20)).save(folder / "wide.jpg")
    rgb.convert("L").save(folder / "grey.jpg")


def test_a_flat_folder_of_odd_images_trains(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    odd_images(images)
    data = values()["data"] | {"root": str(images), "train": {"name": "folder", "labelled": False}, "val": None}
    written = pretrain.Pretrain.launch(config(data=data), tmp_path / "run")
    assert [(r.metric, r.split, r.dataset) for r in written] == [("train_loss", "train", "images")]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_truncated_image_stops_the_run_or_is_counted(
    tmp_path: Path, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    odd_images(images)
    broken = images / "cut.jpg"
    broken.write_bytes((images / "rotated.jpg").read_bytes()[:600])
    data = values()["data"] | {
        "root": str(images),
        "train": {"name": "folder", "labelled": False},
        "val": None,
        "on_error": on_error,
    }
    if on_error == "raise":
        with pytest.raises(UnreadableImage, match="cut.jpg"):
            pretrain.Pretrain.launch(config(data=data), tmp_path / "run")
    else:
        pretrain.Pretrain.launch(config(data=data), tmp_path / "run")
        assert sum("cut.jpg" in message for message in caplog.messages) >= 1


@pytest.mark.parametrize(("changes", "match"), [
    ({"data.root": "/absent", "data.train": {"name": "folder"}}, "/absent"),
    ({"data.train": {"name": "folder"}}, "set data.root"),
    ({"batch": 32}, "smaller than one batch"),
    ({"mask": {"name": "randon"}}, "did you mean 'random'"),
    ({"mask": {"name": "random", "ratio": 1.5}}, "ratio = 1.5"),
    ({"target": {"name": "norm_pixel", "epsilon": 1.0}}, "did you mean 'eps'"),
    ({"schedule": {"warmup_epochs": 6.0}}, "warmup_epochs=6"),
    ({"mean": (0.5,)}, "with one value per channel"),
    ({"data.size": 20}, "set both to the same size"),
    ({"model.encoder.patch": 5}, "multiples of patch = 5"),
    ({"run.device_batch": 3}, "run.device_batch"),
])  # fmt: skip
def test_each_mistake_is_an_error_before_training_starts(tmp_path: Path, changes: Values, match: str) -> None:
    from mae_transfer.config import assign

    given = json.loads(json.dumps(values()))
    for key, value in changes.items():
        assign(given, key, value)
    with pytest.raises(ValueError, match=match):
        pretrain.Pretrain.launch(validate(given, PretrainConfig, where="test"), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_tool_reports_a_mistake_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cfg.py"
    path.write_text("scale = 'mini'\nepochs = 1\nbatch = 8\noptim = dict(lr=0.1)\nmodle = dict()")
    done = subprocess.run(tool(path, tmp_path / "run"), capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert "unknown key 'modle'; did you mean 'model'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sheets_are_drawn_at_several_mask_ratios(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(), tmp_path / "run")
    images = tmp_path / "images"
    images.mkdir()
    odd_images(images)
    sheets = reconstruct(tmp_path / "run", images, mask_ratios=[0.5, 0.75], out=tmp_path / "out", most=5)
    assert [path.name for path in sheets] == ["ratio_0.5.png", "ratio_0.75.png"]
    assert all(Image.open(path).size == (4 * 132 + 4, HEADER + 5 * 132 + 4) for path in sheets)
    with pytest.raises(ValueError, match="ratio = 1.0"):
        reconstruct(tmp_path / "run", None, mask_ratios=[1.0], out=tmp_path / "out")
    with pytest.raises(ValueError, match="does not exist"):
        reconstruct(tmp_path / "nothing", None, mask_ratios=[0.75], out=tmp_path / "out")


@pytest.mark.data
def test_real_images_are_learned(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    data = {"root": str(real_data("tinyimagenet")), "val": {"name": "folder", "split": "val"}, "size": 64}
    model = {
        "encoder": {"size": None, "dim": 64, "depth": 2, "heads": 4, "patch": 8, "image_size": 64},
        "decoder": {"depth": 1, "dim": 48, "heads": 4},
    }
    cfg = config(epochs=0.08, batch=32, data=data, model=model, ema_decay=None, evaluate_images=64, optim={"lr": 2e-3},
                 schedule={"warmup_epochs": 0.0}, **run_options(device_batch=None))  # fmt: skip
    written = pretrain.Pretrain.launch(cfg, tmp_path / "run")
    curve = list(losses(tmp_path / "run").values())
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert written[0].value is not None
    assert written[0].value < 1.0  # 1 is what predicting each patch's mean gives


def test_the_samples_know_what_decodes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae_transfer.data.config.check_decoder", lambda _: None)
    for where, device in (("worker", None), ("device", torch.device("cpu"))):
        task = pretrain.Pretrain(config(**run_options(decode_on=where)), Dist(torch.device("cpu")))
        task.open()
        samples = task.training_samples()
        assert isinstance(samples, Crops)
        assert samples.decode_on == device
    for data in ({"augmentation": {"name": "random_crop", "jitter": 0.4}}, {"crops_per_image": 2}):
        with pytest.raises(ValueError, match=r"run\.decode_on = 'device': .* without jitter"):
            config(data=values()["data"] | data, **run_options(decode_on="device"))


def test_a_device_that_cannot_decode_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    _decoder.cache_clear()
    with pytest.raises(ValueError, match="needs nvImageCodec"):
        pretrain.Pretrain.launch(config(**run_options(decode_on="device")), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The detection task end to end: what a run leaves, exact resume, kills, ranks, bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detect_runs import RUN, STEPS, config, values
from PIL import Image
from pretrain_runs import ROOT, Values, assert_equal, losses, payload
from pycocotools import mask

from mae_transfer import results
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.data.objects import SceneBatch
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import NonFiniteLoss
from mae_transfer.models import attention
from mae_transfer.tasks import detect
from mae_transfer.tasks.detect import DetectConfig
from tests.integration.conftest import Torchrun


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Make the training step call `action` when it computes step `step` (0-based)."""
    loss = detect.Detect.loss

    def acting(self: Any, model: Any, batch: Any, at: Any) -> Any:
        if (at.number, at.micro) == (step, 0):
            action()
        return loss(self, model, batch, at)

    monkeypatch.setattr(detect.Detect, "loss", acting)


def tool(python: Path, cfg: DetectConfig, folder: Path, *more: str) -> list[str]:
    file = folder.with_suffix(".py")
    file.write_text(cfg.source())
    return [str(python), str(ROOT / "tools" / "det_train.py"), str(file), "--work-dir", str(folder), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_work_dir_ends_with_everything_that_the_tool_names(tmp_path: Path) -> None:
    written = detect.Detect.launch(config(), tmp_path / "run")
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "checkpoints", "config.py", "curves.png", "detections", "log.jsonl", "predictions.json", "results.jsonl",
        "tensorboard"
    }  # fmt: skip
    loaded, defects = results.load(folder / "results.jsonl")
    assert (loaded, defects) == (written, [])
    about = {r.metric: (r.task, r.dataset, r.engine, r.steps, r.tokens_per_image, r.unit) for r in loaded}
    assert about["bbox/AP"] == about["segm/AP50"] == ("detect", "shapes", "torchvision", STEPS, 16, "%")
    entries = json.loads((folder / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == {1, 2, 3, 4, 5}
    assert {entry["category_id"] for entry in entries} <= set(range(1, 11))
    assert Image.open(folder / "detections" / "0000.png").size[0] > 1000
    assert list(losses(folder)) == list(range(1, STEPS + 1))


def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation 2, EMA, drop path, regions drawn by chance, workers 1 -> 2; the whole run has none."""
    whole = detect.Detect.launch(config(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert detect.Detect.launch(config(run=RUN | {"workers": 1}), tmp_path / "halves") == []
    halves = detect.Detect.launch(config(run=RUN | {"workers": 2}), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "halves", STEPS))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert [(r.metric, r.value) for r in whole] == [(r.metric, r.value) for r in halves]


def newest_step(folder: Path) -> int:
    return max((int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pt")), default=0)


def test_positions_as_channels_train_as_the_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detect.Detect.launch(config(epochs=1.0), tmp_path / "tensor")
    monkeypatch.setattr(attention.DecomposedBias, "tensor", None)  # calling it fails
    detect.Detect.launch(config(epochs=1.0, run=RUN | {"position_bias": "channels"}), tmp_path / "channels")
    assert losses(tmp_path / "channels") == pytest.approx(losses(tmp_path / "tensor"), rel=1e-5)


def test_kill_9_loses_only_the_steps_since_the_last_save(python: Path, tmp_path: Path) -> None:
    cfg, folder, rng = config(run=RUN | {"save_every": 1, "pictures": 0}), tmp_path / "killed", random.Random(0)
    detect.Detect.launch(cfg, tmp_path / "whole")
    command = tool(python, cfg, folder, "--resume")
    for _ in range(2):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
        before, deadline = newest_step(folder), time.monotonic() + 600
        while newest_step(folder) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()  # until nothing of it writes there any more
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert_equal(payload(tmp_path / "whole", STEPS), payload(folder, STEPS))


def test_two_processes_hold_the_same_weights_and_count_every_image_once(torchrun: Torchrun, tmp_path: Path) -> None:
    """Batch norm: processes share its statistics before an evaluation; a notice says that CPUs do not sync it."""
    heads = values()["heads"] | {"norm": "batch"}
    adapter = {"name": "tap_fpn", "fpn": 16, "fpn_norm": "batch", "p6": True}
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys, torch\nfrom pathlib import Path\n"
        "from mae_transfer.config import load\nfrom mae_transfer.tasks import detect\n"
        "class Watched(detect.Detect):\n"
        "    def evaluate(self, model, step):\n"
        "        figures = super().evaluate(model, step)\n"
        "        torch.save(model.state_dict(), Path(sys.argv[2]).parent / f'rank{self.dist.rank}.pt')\n"
        "        return figures\n"
        "Watched.launch(load(sys.argv[1], detect.DetectConfig), Path(sys.argv[2]))\n"
    )
    cfg = config(heads=heads, adapter=adapter, run=RUN | {"device_batch": None})
    (tmp_path / "two.py").write_text(cfg.source())
    done = torchrun(script, tmp_path / "two.py", tmp_path / "two")
    assert "SyncBN needs several cuda processes" in done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0], ranks[1])
    written = results.load(tmp_path / "two" / "results.jsonl")[0]
    assert {r.world_size for r in written} == {2}
    assert {entry["image_id"] for entry in json.loads((tmp_path / "two" / "predictions.json").read_text())} == {
        1,
        2,
        3,
        4,
        5,
    }
    alone = detect.Detect.evaluate_checkpoint(
        cfg, str(tmp_path / "two" / "checkpoints" / f"step_{STEPS:08d}.pt"), None
    )  # one process
    assert [(r.metric, r.value) for r in alone] == [(r.metric, pytest.approx(r.value)) for r in written]


def test_a_training_state_evaluates_to_the_numbers_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = detect.Detect.launch(
        config(precision="bfloat16"), tmp_path / "run"
    )  # and evaluated in float32, after training as well as here
    given = config(precision="bfloat16", backbone={})  # the backbone is that of the run
    again = detect.Detect.evaluate_checkpoint(
        given, str(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}.pt"), tmp_path / "eval"
    )
    assert {r.config_digest for r in again} == {given.digest()}  # as every task's evaluation has it
    assert [(r.metric, r.value) for r in again] == [(r.metric, r.value) for r in written]
    assert {(r.steps, r.images_seen) for r in again} == {(r.steps, r.images_seen) for r in written}
    assert {r.precision for r in again} == {"float32"}
    assert (tmp_path / "eval" / "predictions.json").read_bytes() == (tmp_path / "run" / "predictions.json").read_bytes()
    assert (tmp_path / "eval" / "detections" / "0000.png").exists()
    assert "bbox " in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    cfg = config(schedule={"warmup_epochs": 0.0}, run=RUN | {"save_every": 1})
    cfg = cfg.model_copy(update={"optim": cfg.optim.model_copy(update={"lr": 1e30})})  # more than a config may say
    with pytest.raises(NonFiniteLoss, match=r"step \d+ \(lr \d.*e\+\d\d; sample ids"):
        detect.Detect.launch(cfg, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        assert all(tensor.isfinite().all() for tensor in torch.load(path, weights_only=True)["model"].values())


def test_a_red_image_reaches_the_encoder_as_red_and_padding_as_the_mean() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 0, :40, :50] = 255
    seen: list[torch.Tensor] = []
    task = detect.Detect(config(), Dist(torch.device("cpu")))
    task.open()
    detector: Any = task.model()
    detector.pyramid.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    detector.eval()
    batch = SceneBatch(image, ((40, 50),), (task.train_set.read(0).objects,), torch.tensor([0]))
    with torch.no_grad():
        detector(detect.padded(batch, IMAGENET), batch.sizes)
    red, green, blue = seen[0][0]
    assert red[0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert green[0, 0].item() == pytest.approx(-0.456 / 0.224, abs=1e-4)
    assert blue[0, 0].item() == pytest.approx(-0.406 / 0.225, abs=1e-4)
    assert not seen[0][0, :, 40:].any()
    assert not seen[0][0, :, :, 50:].any()


def test_what_is_found_is_brought_back_to_the_stored_image() -> None:
    found = detect.Found(
        torch.tensor([[0.0, 0, 32, 32], [60, 60, 64, 70]]),
        torch.tensor([0.9, 0.8]),
        torch.tensor([1, 2]),
        torch.ones(2, 28, 28),
    )
    stored = detect.in_stored(found, (64, 64), (128, 256))
    assert stored.boxes.tolist() == [[0, 0, 128, 64], [240, 120, 256, 128]]
    assert stored.masks is not None
    for code, area in zip(stored.masks, (128 * 64, 16 * 8), strict=True):
        assert code["size"] == [128, 256]
        assert area - 4 <= mask.area(code) <= area  # a corner may be rounded


def test_a_thread_encodes_what_was_found_while_the_model_goes_on() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for item in range(4):
            made.append(item)
            if item == 2:
                third.set()
            yield item

    def work(item: int) -> int:
        if item == 1:
            assert third.wait(timeout=60)  # the next item is made while this one is worked on
        return 10 * item

    results = detect.beside(work, items())
    assert next(results) == 0
    assert made == [0, 1]  # and no more, so few masks wait
    assert list(results) == [10, 20, 30]
    with pytest.raises(ZeroDivisionError):
        list(detect.beside(lambda item: 1 // item, [1, 0, 2]))


@pytest.mark.parametrize(("square", "asked", "compiled"), [
    (64, None, None), (None, None, False), (None, True, True),
])  # fmt: skip
def test_blocks_that_take_images_of_many_sizes_are_compiled_only_if_asked(
    square: int | None, asked: bool | None, compiled: bool | None
) -> None:
    cfg = config(data=values()["data"] | {"square": square}, run=RUN | {"compile": asked})
    assert detect.Detect(cfg, Dist(torch.device("cpu"))).cfg.run.compile is compiled


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"engine": "mmdet"}, "engine"),
        ({"adapter": {"name": "simple_fpm"}}, "did you mean 'simple_fpn'"),
        ({"heads": {"norm": "instance"}}, "heads.norm = 'instance': one of"),
        ({"adapter": {"name": "tap_fpn", "fpn": 16, "norm": "layer"}}, "is p6=True missing"),
        ({"data": values()["data"] | {"square": 80}}, "no multiple of 32"),
        ({"backbone": {}}, "no backbone"),
    ],
)
def test_each_mistake_is_an_error_before_training_starts(tmp_path: Path, changes: Values, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        detect.Detect.launch(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_detectron2_where_it_is_absent_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(
        ValueError, match=r"pip install --no-build-isolation 'git\+https://github.com/facebookresearch/detectron2'"
    ):
        detect.Detect.launch(config(engine="detectron2"), tmp_path / "run")


@pytest.mark.detectron2
@pytest.mark.usefixtures("detectron2")
@pytest.mark.filterwarnings("ignore")
def test_training_with_detectron2_s_heads_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = detect.Detect.launch(config(engine="detectron2"), tmp_path / "whole")
    assert {r.engine for r in written} == {"detectron2"}
    with monkeypatch.context() as patched:
        stop_at(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        detect.Detect.launch(config(engine="detectron2"), tmp_path / "halves")
    detect.Detect.launch(config(engine="detectron2"), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "halves", STEPS))

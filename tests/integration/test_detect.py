"""The detection task end to end: what a run leaves, exact resume, kills, ranks, bad input."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_runs import ROOT, Values, assert_equal, losses, payload

from mae_transfer import results
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.data import SceneBatch, UnreadableImage
from mae_transfer.data.dense_shapes import write_coco
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.loop import Step
from mae_transfer.engine.window import NonFiniteLoss
from mae_transfer.tasks import detect
from mae_transfer.tasks.detect import DetectConfig

RUN = {"device": "cpu", "workers": 0, "device_batch": 2, "log_every": 1, "save_minutes": None, "progress": False, "pictures": 1}
STEPS = 6


def values(**changes: Any) -> Values:
    """Return a config of 6 steps with everything on that could break an exact resume."""
    base: Values = {
        "scale": "mini", "epochs": 3.0, "batch": 4, "precision": "float32", "ema_decay": 0.9, "drop_path": 0.3,
        "data": {
            "train": {"name": "shapes", "size": 64, "length": 8}, "val": {"name": "shapes", "size": 64, "length": 5, "seed": 1},
            "augmentation": {"name": "large_scale_jitter", "size": 64},
            "view": {"name": "shortest_edge", "lengths": (64,), "longest": 64, "flip": 0.0}, "square": 64,
        },
        "backbone": {
            "encoder": {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 16, "image_size": 64},
            "changes": {"windows": 3, "global_blocks": (1, 3), "relative_positions": "decomposed", "positions": "learned"},
        },
        "adapter": {"name": "simple_fpn", "channels": 16},
        "heads": {"box_convs": 1, "box_width": 16, "mask_convs": 1, "roi_batch": 16, "post_nms_topk": (50, 20), "score_threshold": 0.0},
        "optim": {"lr": 1e-3, "layer_decay": 0.8}, "schedule": {"warmup_epochs": 1.0},
        "run": RUN,
    }  # fmt: skip
    return base | changes


def config(**changes: Any) -> DetectConfig:
    return validate(values(**changes), DetectConfig, where="test")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    make = detect.make_step

    def making(*args: Any) -> Any:
        original = make(*args)

        def acting(model: Any, batch: Any, at: Step) -> Any:
            if (at.number, at.micro) == (step, 0):
                action()
            return original(model, batch, at)

        return acting

    monkeypatch.setattr(detect, "make_step", making)


def tool(cfg: DetectConfig, folder: Path, *more: str, processes: int = 1) -> list[str]:
    file = folder.with_suffix(".py")
    file.write_text(cfg.source())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, str(ROOT / "tools" / "det_train.py"), str(file), "--work-dir", str(folder), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_work_dir_ends_with_everything_that_the_tool_names(tmp_path: Path) -> None:
    written = detect.run(config(), tmp_path / "run")
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.py", "curves.png", "detections", "log.jsonl", "predictions.json", "results.jsonl", "tensorboard"
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


def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulation 2, EMA, drop path, regions drawn by chance, workers 1 -> 2; the whole run has none."""
    whole = detect.run(config(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert detect.run(config(run=RUN | {"workers": 1}), tmp_path / "halves") == []
    halves = detect.run(config(run=RUN | {"workers": 2}), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "halves", STEPS))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert [(r.metric, r.value) for r in whole] == [(r.metric, r.value) for r in halves]


def newest_step(folder: Path) -> int:
    return max((int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pt")), default=0)


def test_kill_9_loses_only_the_steps_since_the_last_save(tmp_path: Path) -> None:
    cfg, folder, rng = config(run=RUN | {"save_every": 1, "pictures": 0}), tmp_path / "killed", random.Random(0)
    detect.run(cfg, tmp_path / "whole")
    command = tool(cfg, folder, "--resume")
    for _ in range(2):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        before, deadline = newest_step(folder), time.monotonic() + 600
        while newest_step(folder) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert_equal(payload(tmp_path / "whole", STEPS), payload(folder, STEPS))


def test_two_processes_hold_the_same_weights_and_count_every_image_once(tmp_path: Path) -> None:
    """With batch norm, whose statistics the processes share before an evaluation; the notice says that it is not synchronised on a CPU."""
    heads = values()["heads"] | {"norm": "batch"}
    adapter = {"name": "tap_fpn", "fpn": 16, "fpn_norm": "batch", "p6": True}
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys, torch\nfrom pathlib import Path\nfrom mae_transfer.config import load\nfrom mae_transfer.tasks import detect\n"
        "original = detect.evaluate\n"
        "def evaluate(cfg, parts, state, folder, model, step):\n"
        "    figures = original(cfg, parts, state, folder, model, step)\n"
        "    torch.save(model.state_dict(), Path(sys.argv[2]).parent / f'rank{state.dist.rank}.pt')\n"
        "    return figures\n"
        "detect.evaluate = evaluate\ndetect.run(load(sys.argv[1], detect.DetectConfig), Path(sys.argv[2]))\n"
    )
    cfg = config(heads=heads, adapter=adapter, run=RUN | {"device_batch": None})
    command = tool(cfg, tmp_path / "two", processes=2)
    place = command.index(str(ROOT / "tools" / "det_train.py"))
    done = subprocess.run(
        [*command[:place], str(script), str(tmp_path / "two.py"), str(tmp_path / "two")],
        env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SyncBN needs several cuda processes" in done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0], ranks[1])
    written = results.load(tmp_path / "two" / "results.jsonl")[0]
    assert {r.world_size for r in written} == {2}
    assert {entry["image_id"] for entry in json.loads((tmp_path / "two" / "predictions.json").read_text())} == {1, 2, 3, 4, 5}
    alone = detect.evaluate_checkpoint(cfg, str(tmp_path / "two" / "checkpoints" / f"step_{STEPS:08d}.pt"), None)  # one process
    assert [(r.metric, r.value) for r in alone] == [(r.metric, pytest.approx(r.value)) for r in written]


def test_a_training_state_evaluates_to_the_numbers_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = detect.run(config(precision="bfloat16"), tmp_path / "run")  # and evaluated in float32, after training as well as here
    again = detect.evaluate_checkpoint(
        config(precision="bfloat16", backbone={}), str(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}.pt"), tmp_path / "eval"
    )
    assert [(r.metric, r.value) for r in again] == [(r.metric, r.value) for r in written]
    assert {(r.steps, r.images_seen) for r in again} == {(r.steps, r.images_seen) for r in written}
    assert {r.precision for r in again} == {"float32"}
    assert (tmp_path / "eval" / "predictions.json").read_bytes() == (tmp_path / "run" / "predictions.json").read_bytes()
    assert (tmp_path / "eval" / "detections" / "0000.png").exists()
    assert "bbox " in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    cfg = config(optim={"lr": 1e30}, schedule={"warmup_epochs": 0.0}, run=RUN | {"save_every": 1})
    with pytest.raises(NonFiniteLoss, match=r"step \d+ \(lr \d.*e\+\d\d; sample ids"):
        detect.run(cfg, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        assert all(tensor.isfinite().all() for tensor in torch.load(path, weights_only=True)["model"].values())


def test_a_red_image_reaches_the_encoder_as_red_and_padding_as_the_mean() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 0, :40, :50] = 255
    seen: list[torch.Tensor] = []
    parts = detect.open_parts(config())
    parts.model.pyramid.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    parts.model.eval()
    batch = SceneBatch(image, ((40, 50),), (parts.train.read(0).objects,), torch.tensor([0]))
    with torch.no_grad():
        parts.model(detect.padded(batch, IMAGENET), batch.sizes)
    red, green, blue = seen[0][0]
    assert red[0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert green[0, 0].item() == pytest.approx(-0.456 / 0.224, abs=1e-4)
    assert blue[0, 0].item() == pytest.approx(-0.406 / 0.225, abs=1e-4)
    assert not seen[0][0, :, 40:].any()
    assert not seen[0][0, :, :, 50:].any()


def test_what_is_found_is_brought_back_to_the_stored_image() -> None:
    found = detect.Found(torch.tensor([[0.0, 0, 32, 32], [60, 60, 64, 70]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 2]), torch.ones(2, 28, 28))
    stored = detect.in_stored(found, (64, 64), (128, 256))
    assert stored.boxes.tolist() == [[0, 0, 128, 64], [240, 120, 256, 128]]
    assert stored.masks is not None
    for mask, area in zip(stored.masks, (128 * 64, 16 * 8), strict=True):
        assert area - 4 <= mask.sum() <= area  # a corner may be rounded


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    write_coco(root, train=6, val=3, size=64)
    return root


def coco_data(root: Path, **changes: Any) -> Values:
    sets = {"train": {"name": "coco", "split": "train2017", "skip_empty": True}, "val": {"name": "coco", "split": "val2017"}}
    return values()["data"] | {"root": str(root), **sets, **changes}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_unreadable_image_in_mid_epoch_stops_the_run_or_is_counted(
    coco: Path, tmp_path: Path, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = sorted((coco / "train2017").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:300])
    cfg = config(data=coco_data(coco, on_error=on_error), epochs=6.0)
    if on_error == "raise":
        with pytest.raises(UnreadableImage, match=broken.name):
            detect.run(cfg, tmp_path / "run")
    else:
        assert detect.run(cfg, tmp_path / "run")
        assert broken.name in caplog.text


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_first_image_with_a_code_of_another_size_is_unreadable_like_any_other(coco: Path, tmp_path: Path, on_error: str) -> None:
    def shrink(content: Values) -> None:
        first = min(image["id"] for image in content["images"])
        own = next(one for one in content["annotations"] if one["image_id"] == first)
        own["segmentation"] = {"size": [32, 32], "counts": [0, 1024]}

    edit(coco / "annotations" / "instances_train2017.json", shrink)
    cfg = config(data=coco_data(coco, on_error=on_error), epochs=2.0, run=RUN | {"pictures": 0})
    if on_error == "raise":
        with pytest.raises(UnreadableImage, match="a run-length code in instances_train2017.json has another size"):
            detect.run(cfg, tmp_path / "run")
    else:
        assert detect.run(cfg, tmp_path / "run")


def test_a_set_without_masks_is_named_where_masks_are_to_be_learned_and_does_for_an_evaluation(coco: Path, tmp_path: Path) -> None:
    bare = {name: {"name": "coco", "split": f"{name}2017", "masks": False} for name in ("train", "val")}
    with pytest.raises(ValueError, match=r"data.train = \{'name': 'coco', 'split': 'train2017', 'masks': False\} has no masks"):
        detect.run(config(data=coco_data(coco, train=bare["train"])), tmp_path / "run")
    cfg = config(data=coco_data(coco), epochs=2.0, run=RUN | {"pictures": 0})
    written = detect.run(cfg, tmp_path / "run")
    alone = config(data=coco_data(coco, **bare), epochs=2.0)
    again = detect.evaluate_checkpoint(alone, str(next((tmp_path / "run" / "checkpoints").iterdir())), None)
    assert [(r.metric, r.value) for r in again] == [(r.metric, r.value) for r in written]


def test_sets_of_other_classes_and_empty_sets_are_refused_before_training(coco: Path, tmp_path: Path) -> None:
    file = coco / "annotations" / "instances_val2017.json"
    edit(file, lambda content: content["categories"].append({"id": 99, "name": "zebra"}))
    with pytest.raises(ValueError, match=r"10 classes, validation set 11; in one of them only: \['zebra'\]"):
        detect.run(config(data=coco_data(coco)), tmp_path / "run")
    edit(coco / "annotations" / "instances_train2017.json", lambda content: content.update(annotations=[]))
    with pytest.raises(ValueError, match="lists no image with an object"):
        detect.run(config(data=coco_data(coco)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_classes_is_refused(coco: Path, tmp_path: Path) -> None:
    detect.run(config(), tmp_path / "run")
    for split in ("train2017", "val2017"):
        edit(coco / "annotations" / f"instances_{split}.json", lambda content: content["categories"].append({"id": 99, "name": "zebra"}))
    with pytest.raises(ValueError, match="learned 10 classes, the data have 11; class 10 was None and is 'zebra'"):
        detect.evaluate_checkpoint(config(data=coco_data(coco)), str(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}.pt"), None)


def test_classes_in_another_order_neither_resume_a_run_nor_evaluate_its_state(coco: Path, tmp_path: Path) -> None:
    cfg = config(data=coco_data(coco), epochs=2.0, run=RUN | {"save_every": 1, "keep_last": 9, "pictures": 0})
    detect.run(cfg, tmp_path / "run")
    first, *later = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))
    for path in later:
        path.unlink()

    def swap(content: Values) -> None:
        one, other = content["categories"][:2]
        one["name"], other["name"] = other["name"], one["name"]

    for split in ("train2017", "val2017"):
        edit(coco / "annotations" / f"instances_{split}.json", swap)
    with pytest.raises(ValueError, match=r"made with '10 classes \w+', this run has '10 classes \w+'"):
        detect.run(cfg, tmp_path / "run", resume=True)
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt")) == [first]
    with pytest.raises(ValueError, match="learned 10 classes, the data have 10; class 0 was"):
        detect.evaluate_checkpoint(cfg, str(first), None)


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
        detect.run(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_detectron2_where_it_is_absent_is_an_error_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ValueError, match=r"pip install --no-build-isolation 'git\+https://github.com/facebookresearch/detectron2'"):
        detect.run(config(engine="detectron2"), tmp_path / "run")


@pytest.mark.detectron2
@pytest.mark.usefixtures("detectron2")
@pytest.mark.filterwarnings("ignore")
def test_training_with_detectron2_s_heads_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = detect.run(config(engine="detectron2"), tmp_path / "whole")
    assert {r.engine for r in written} == {"detectron2"}
    with monkeypatch.context() as patched:
        stop_at(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        detect.run(config(engine="detectron2"), tmp_path / "halves")
    detect.run(config(engine="detectron2"), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "halves", STEPS))


def test_an_image_without_objects_and_one_of_a_single_pixel_are_evaluated(coco: Path, tmp_path: Path) -> None:
    folder, file = coco / "val2017", coco / "annotations" / "instances_val2017.json"
    Image.fromarray(np.zeros((1, 1, 3), dtype=np.uint8)).save(folder / "dot.png")

    def add(content: Values) -> None:
        content["images"].append({"id": 77, "file_name": "dot.png", "height": 1, "width": 1})

    edit(file, add)
    parts = detect.open_parts(config(data=coco_data(coco)))
    parts.model.eval()
    with torch.no_grad():
        found = detect.predicted(config(data=coco_data(coco)), parts, Dist(torch.device("cpu")), parts.model)
    assert not math.isnan(found.compute(save=tmp_path / "predictions.json")["bbox/AP"])  # every image must have been predicted


def test_classic_resizing_and_boxes_alone_train(coco: Path, tmp_path: Path) -> None:
    classic = {"name": "shortest_edge", "lengths": (48, 64), "longest": 80}
    data = coco_data(coco, augmentation=classic, view=classic | {"lengths": (64,), "flip": 0.0}, square=None)
    cfg = config(data=data, heads=values()["heads"] | {"masks": False}, epochs=4.0)
    assert detect.open_parts(cfg).train.objects(0).masks is None
    assert {r.metric.split("/")[0] for r in detect.run(cfg, tmp_path / "run")} == {"bbox"}


def test_an_evaluation_needs_no_training_set(coco: Path, tmp_path: Path) -> None:
    cfg = config(data=coco_data(coco), epochs=4.0)
    written = detect.run(cfg, tmp_path / "run")
    (coco / "annotations" / "instances_train2017.json").unlink()
    again = detect.evaluate_checkpoint(cfg, str(next((tmp_path / "run" / "checkpoints").iterdir())), None)
    assert [r.value for r in again] == [r.value for r in written]


def test_an_unreadable_validation_image_is_counted_as_one_in_which_nothing_is_found(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = sorted((coco / "val2017").iterdir())[1]
    broken.write_bytes(b"no image")
    assert detect.run(config(data=coco_data(coco, on_error="skip"), epochs=4.0), tmp_path / "run")
    assert broken.name in caplog.text
    entries = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} <= {1, 3}


def test_a_validation_object_without_outline_is_an_error_before_training(coco: Path, tmp_path: Path) -> None:
    edit(coco / "annotations" / "instances_val2017.json", lambda content: content["annotations"][0].pop("segmentation"))
    with pytest.raises(ValueError, match="1 objects of the ground truth have no outline"):
        detect.run(config(data=coco_data(coco)), tmp_path / "run")

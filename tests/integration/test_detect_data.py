"""Detection on files in COCO's layout: sets that do not fit, unreadable images, evaluation without a training set."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detect_runs import RUN, STEPS, coco_data, config, edit, values
from PIL import Image
from pretrain_runs import Values

from mae_transfer.data import UnreadableImage
from mae_transfer.data.dense_shapes import write_coco
from mae_transfer.engine.dist import Dist
from mae_transfer.tasks import detect
from mae_transfer.tasks.workdir import WorkDir


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    write_coco(root, train=6, val=3, size=64)
    return root


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_unreadable_image_in_mid_epoch_stops_the_run_or_is_counted(
    coco: Path, tmp_path: Path, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = sorted((coco / "train2017").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:1000])  # its header is whole
    cfg = config(data=coco_data(coco, on_error=on_error), epochs=6.0)
    if on_error == "raise":
        with pytest.raises(UnreadableImage, match=broken.name):
            detect.Detect.launch(cfg, tmp_path / "run")
    else:
        assert detect.Detect.launch(cfg, tmp_path / "run")
        assert broken.name in caplog.text


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        (
            "val2017",
            {"segmentation": {"size": [32, 32], "counts": [0, 1024]}},
            "run-length code whose size differs from the image: object 1 ",
        ),
        (
            "train2017",
            {"segmentation": {"size": [32, 32], "counts": [0, 1024]}},
            "run-length code whose size differs from the image: object 1 ",
        ),
        (
            "val2017",
            {"segmentation": {"size": [64, 64], "counts": "abc"}},
            "broken run-length code: object 1; encode the mask again",
        ),
        (
            "val2017",
            {"segmentation": [[10, 10, None, 10, 40, 40]]},
            "polygon with a coordinate that is not a finite number: object 1; correct",
        ),
        (
            "train2017",
            {"segmentation": [[10, 10, 1e9, 10, 40, 40]]},
            r"polygon outside its image: object 1 \(x0, y0, x1, y1 \[10.0, 10.0, 1e9|1000",
        ),
        (
            "val2017",
            {"area": None},
            r"area that is not a number of at least 0: object 1 \(None\); write the area in pixels, or remove the key",
        ),
        ("val2017", {"bbox": [1, 2, float("nan"), 4]}, "box that is not four finite numbers: object 1 "),
        ("train2017", {"bbox": [1, 2, float("nan"), 4]}, "box that is not four finite numbers: object 1 "),
        (
            "val2017",
            {"image_id": "1"},
            r"object whose image_id is not a whole number of at least 0: object 1 \('1'\); write whole numbers",
        ),
        ("train2017", {"iscrowd": "0"}, r"iscrowd that is neither 0 nor 1: object 1 \('0'\); write the number 0 or 1"),
    ],
)
def test_a_broken_annotation_of_either_set_is_an_error_before_training(
    coco: Path, tmp_path: Path, split: str, change: Values, message: str
) -> None:
    file = coco / "annotations" / f"instances_{split}.json"
    edit(file, lambda content: content["annotations"][0].update(change))
    with pytest.raises(ValueError, match=f"{file}: 1 x {message}"):
        detect.Detect.launch(config(data=coco_data(coco, on_error="skip")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_a_missing_or_mis_sized_image_of_either_set_is_an_error_before_training(
    coco: Path, tmp_path: Path, split: str
) -> None:
    first, second, *_ = sorted((coco / split).iterdir())
    first.unlink()
    with pytest.raises(ValueError, match=f"set, {coco / split}: 1 x missing image: {first.name}"):
        detect.Detect.launch(config(data=coco_data(coco)), tmp_path / "run")
    Image.new("RGB", (64, 64)).save(first)
    Image.new("RGB", (60, 64)).save(second)
    with pytest.raises(
        ValueError, match=rf"1 x image whose size differs from the json: {second.name} \(60 x 64, json: 64 x 64\)"
    ):
        detect.Detect.launch(config(data=coco_data(coco)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_without_masks_is_named_where_masks_are_to_be_learned_and_does_for_an_evaluation(
    coco: Path, tmp_path: Path
) -> None:
    bare = {name: {"name": "coco", "split": f"{name}2017", "masks": False} for name in ("train", "val")}
    with pytest.raises(
        ValueError, match=r"data.train = \{'name': 'coco', 'split': 'train2017', 'masks': False\} has no masks"
    ):
        detect.Detect.launch(config(data=coco_data(coco, train=bare["train"])), tmp_path / "run")
    cfg = config(data=coco_data(coco), epochs=2.0, run=RUN | {"pictures": 0})
    written = detect.Detect.launch(cfg, tmp_path / "run")
    alone = config(data=coco_data(coco, **bare), epochs=2.0)
    again = detect.Detect.evaluate_checkpoint(alone, str(next((tmp_path / "run" / "checkpoints").iterdir())), None)
    assert [(r.metric, r.value) for r in again] == [(r.metric, r.value) for r in written]


def test_sets_of_other_classes_and_empty_sets_are_refused_before_training(coco: Path, tmp_path: Path) -> None:
    file = coco / "annotations" / "instances_val2017.json"
    edit(file, lambda content: content["categories"].append({"id": 99, "name": "zebra"}))
    with pytest.raises(ValueError, match=r"10 classes, validation set 11; only one set has \['zebra'\]"):
        detect.Detect.launch(config(data=coco_data(coco)), tmp_path / "run")
    swapped = [{"id": k, "name": f"{k}"} for k in (1, 2)], [{"id": k, "name": f"{3 - k}"} for k in (1, 2)]
    for split, categories in zip(("train2017", "val2017"), swapped, strict=True):
        edit(
            coco / "annotations" / f"instances_{split}.json",
            lambda content, to=categories: content.update(
                categories=to, annotations=[one | {"category_id": 1} for one in content["annotations"]]
            ),
        )
    with pytest.raises(
        ValueError, match="2 classes, validation set 2; the names are the same, but their order differs"
    ):
        detect.Detect.launch(config(data=coco_data(coco)), tmp_path / "run")
    edit(coco / "annotations" / "instances_train2017.json", lambda content: content.update(annotations=[]))
    with pytest.raises(ValueError, match="no object to train on or to evaluate: 0 objects"):
        detect.Detect.launch(config(data=coco_data(coco)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_classes_is_refused(coco: Path, tmp_path: Path) -> None:
    detect.Detect.launch(config(), tmp_path / "run")
    for split in ("train2017", "val2017"):
        edit(
            coco / "annotations" / f"instances_{split}.json",
            lambda content: content["categories"].append({"id": 99, "name": "zebra"}),
        )
    with pytest.raises(ValueError, match="learned 10 classes, the data have 11; class 10 was None and is 'zebra'"):
        detect.Detect.evaluate_checkpoint(
            config(data=coco_data(coco)), str(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}.pt"), None
        )


def test_classes_in_another_order_neither_resume_a_run_nor_evaluate_its_state(coco: Path, tmp_path: Path) -> None:
    cfg = config(data=coco_data(coco), epochs=2.0, run=RUN | {"save_every": 1, "keep_last": 9, "pictures": 0})
    detect.Detect.launch(cfg, tmp_path / "run")
    first, *later = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))
    for path in later:
        path.unlink()

    def swap(content: Values) -> None:
        one, other = content["categories"][:2]
        one["name"], other["name"] = other["name"], one["name"]

    for split in ("train2017", "val2017"):
        edit(coco / "annotations" / f"instances_{split}.json", swap)
    with pytest.raises(ValueError, match=r"made with '10 classes \w+', this run has '10 classes \w+'"):
        detect.Detect.launch(cfg, tmp_path / "run", resume=True)
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt")) == [first]
    with pytest.raises(ValueError, match="learned 10 classes, the data have 10; class 0 was"):
        detect.Detect.evaluate_checkpoint(cfg, str(first), None)


def opened(cfg: detect.DetectConfig) -> detect.Detect:
    task = detect.Detect(cfg, Dist(torch.device("cpu")))
    task.open()
    return task


def test_an_image_without_objects_and_one_of_a_single_pixel_are_evaluated(coco: Path, tmp_path: Path) -> None:
    folder, file = coco / "val2017", coco / "annotations" / "instances_val2017.json"
    Image.fromarray(np.zeros((1, 1, 3), dtype=np.uint8)).save(folder / "dot.png")

    def add(content: Values) -> None:
        content["images"].append({"id": 77, "file_name": "dot.png", "height": 1, "width": 1})

    edit(file, add)
    cfg = config(data=coco_data(coco))
    task = opened(cfg)
    task.detector.eval()
    with torch.no_grad():
        figures = task.figures(task.detector, "val", WorkDir(tmp_path))
    assert not math.isnan(figures["bbox/AP"])  # every image must have been predicted


def test_classic_resizing_and_boxes_alone_train(coco: Path, tmp_path: Path) -> None:
    classic = {"name": "shortest_edge", "lengths": (48, 64), "longest": 80}
    data = coco_data(coco, augmentation=classic, view=classic | {"lengths": (64,), "flip": 0.0}, square=None)
    cfg = config(data=data, heads=values()["heads"] | {"masks": False}, epochs=4.0)
    assert opened(cfg).train_set.objects(0).masks is None
    assert {r.metric.split("/")[0] for r in detect.Detect.launch(cfg, tmp_path / "run")} == {"bbox"}


def test_an_evaluation_needs_no_training_set(coco: Path, tmp_path: Path) -> None:
    cfg = config(data=coco_data(coco), epochs=4.0)
    written = detect.Detect.launch(cfg, tmp_path / "run")
    (coco / "annotations" / "instances_train2017.json").unlink()
    again = detect.Detect.evaluate_checkpoint(cfg, str(next((tmp_path / "run" / "checkpoints").iterdir())), None)
    assert [r.value for r in again] == [r.value for r in written]


def test_an_unreadable_validation_image_is_left_out_with_its_objects_and_counted(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = sorted((coco / "val2017").iterdir())[1]
    broken.write_bytes(b"no image")
    written = detect.Detect.launch(config(data=coco_data(coco, on_error="skip"), epochs=4.0), tmp_path / "run")
    assert {r.unreadable for r in written} == {1}
    assert broken.name in caplog.text
    entries = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} <= {1, 3}


def test_what_training_leaves_out_evaluation_leaves_out_too(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(content: Values) -> None:
        content["annotations"][0].update(segmentation=[[5, 5]])
        content["annotations"][1].pop("segmentation")
        content["annotations"][2].update(bbox=[5, 5, 0, 4])

    for split in ("train2017", "val2017"):
        edit(coco / "annotations" / f"instances_{split}.json", spoil)
    cfg = config(data=coco_data(coco))
    task = detect.Detect(cfg, Dist(torch.device("cpu")))
    task.open_sets("train", "val")
    source, val, metric = task.train_set, task.val_set, task.metrics["val"]
    for split in ("train2017", "val2017"):
        for line in (
            "no valid outline (left out): object 1",
            "no outline (left out): object 2",
            "box without area (left out): object 3 ",
        ):
            assert f"instances_{split}.json: 1 x {line}" in caplog.text
    for opened in (source, val):
        listed = sum(len(opened.objects(index).labels) for index in range(len(opened)))
        assert (
            listed
            == len(
                json.loads((coco / "annotations" / f"instances_{opened.folder.name}.json").read_text())["annotations"]
            )
            - 3
        )
    assert len(metric.truth["annotations"]) == sum(len(val.objects(index).labels) for index in range(len(val)))

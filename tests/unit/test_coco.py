"""data/coco.py and data/checks.py: annotations equal pycocotools', and all defects are reported at once."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.core.runs import rasterize
from mae_transfer.data import UnreadableImage
from mae_transfer.data.checks import check_coco
from mae_transfer.data.coco import CocoConfig
from mae_transfer.metrics.coco import CocoMetric

EVERYWHERE = {"size": [40, 60], "counts": [0, 2400]}
SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
CONTENT: dict[str, Any] = {
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in (9, 4, 30)],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
            "segmentation": SQUARE},
        {"id": 2, "image_id": 4, "category_id": 2, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1,
            "segmentation": EVERYWHERE},
        {"id": 5, "image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12,
            "segmentation": [[1, 2, 4, 2, 4, 6], [1, 2, 3, 4]]},
    ],
}  # fmt: skip


def boxed(number: int, image: int) -> dict[str, Any]:
    """An object of any image."""
    return CONTENT["annotations"][0] | {"id": 1000 + number, "image_id": image}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """written(change) -> root of a data set in COCO's layout, with a json modified by `change`."""

    def write(change: Callable[[dict[str, Any]], object] = lambda content: None) -> Path:
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
        (tmp_path / "train2017").mkdir()
        for image in CONTENT["images"]:
            Image.new("RGB", (60, 40), (255, 0, 0)).save(tmp_path / "train2017" / image["file_name"])
        return tmp_path

    return write


def test_images_come_by_id_and_labels_by_rank_of_the_category_id(
    written: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    coco = CocoConfig(root=str(written())).open()
    assert coco.classes == ("cat", "dog")
    assert coco.category_ids.tolist() == [2, 7]
    assert coco.image_ids.tolist() == [4, 9, 30]
    first, second, empty = (coco.read(index) for index in range(3))
    assert first.image_id == 4
    assert first.image[:, 0, 0].tolist() == [255, 0, 0]
    assert first.objects.crowd.tolist() == [True]
    assert first.objects.masks is not None
    assert rasterize(first.objects.masks, (40, 60)).all()
    assert len(first.objects.masks) == 1
    assert second.objects.labels.tolist() == [1, 0]
    assert second.objects.boxes.tolist() == [[10, 10, 30, 30], [1, 2, 4, 6]]
    assert empty.objects.boxes.shape == (0, 4)
    assert empty.objects.masks is not None
    assert len(empty.objects.masks) == 0
    assert [record.getMessage().split("json: ")[1] for record in caplog.records] == [
        "1 x polygon with fewer than three points or an odd number of coordinates (left out): object 5"
    ]


def test_an_invalid_polygon_is_dropped_and_an_object_without_any_is_counted(
    written: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """pycocotools reads a polygon of two points as a box x, y, width, height."""
    root = written(lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5]]))
    with caplog.at_level(logging.WARNING):
        coco = CocoConfig(root=str(root)).open()
    assert "1 x no valid outline (left out): object 1" in caplog.text
    assert coco.outlines(1) == [[[1, 2, 4, 2, 4, 6]]]
    assert coco.objects(1).labels.tolist() == [0]
    boxes = CocoConfig(root=str(root), masks=False).open()
    assert boxes.objects(1).labels.tolist() == [1, 0]
    assert boxes.objects(1).masks is None
    with pytest.raises(ValueError, match="masks=True"):
        boxes.outlines(1)


def test_training_leaves_out_images_with_only_crowd_regions(written: Callable[..., Path]) -> None:
    coco = CocoConfig(root=str(written()), skip_empty=True).open()
    assert coco.image_ids.tolist() == [9]
    assert coco.objects(0).labels.tolist() == [1, 0]
    truth = coco.ground_truth()
    assert [image["id"] for image in truth["images"]] == [9]
    assert [one["id"] for one in truth["annotations"]] == [1, 5]


def test_two_parts_are_disjoint_and_each_has_its_own_ground_truth(written: Callable[..., Path]) -> None:
    root = str(written(lambda content: content["annotations"].extend(boxed(k, k) for k in (4, 30))))
    parts = [CocoConfig(root=str(root), part=part).open() for part in ((0.0, 0.5), (0.5, 1.0))]
    assert (
        sorted(np.concatenate([part.image_ids for part in parts]).tolist())
        == CocoConfig(root=str(root)).open().image_ids.tolist()
    )
    for part in parts:
        assert [image["id"] for image in part.ground_truth()["images"]] == part.image_ids.tolist()


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.0, 1.1), (-0.1, 1.0), (0.9, 0.1)])
def test_invalid_parts_are_refused(part: tuple[float, float], written: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="part"):
        CocoConfig(root=str(written()), part=part).open()


def test_any_json_and_folder_can_be_used_and_a_pickled_copy_reads_the_same(written: Callable[..., Path]) -> None:
    root = written()
    (root / "annotations" / "instances_train2017.json").rename(root / "mine.json")
    (root / "train2017").rename(root / "photos")
    coco = CocoConfig(root=str(root), annotations="mine.json", images="photos").open()
    again = pickle.loads(pickle.dumps(coco))
    assert torch.equal(again.read(1).image, coco.read(1).image)
    assert again.where(1) == str(root / "photos" / "9.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "not in COCO's format"),
        (lambda c: c["images"].clear() or c["annotations"].clear(), "no image is listed"),
        (lambda c: c["annotations"][0].update(category_id=3), r"1 x unknown category id: object 1 \(category 3\)"),
        (lambda c: c["annotations"][0].update(image_id=3), r"1 x unknown image id: object 1 \(image 3\)"),
        (lambda c: c["images"][0].update(id=4), "1 x image id that occurs more than once: 4; give"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            "1 x object without bbox: object 1; add the keys.*lists every defect",
        ),
        (
            lambda c: [one.pop("segmentation") for one in c["annotations"]],
            "no object has an outline: to use boxes only, set masks=False",
        ),
        (
            lambda c: [one.update(iscrowd=1) for one in c["annotations"]],
            "no object to train on or to evaluate: 3 objects: 3 crowd",
        ),
    ],
)
def test_a_json_that_contradicts_itself_is_refused(
    written: Callable[..., Path], change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CocoConfig(root=str(written(change)), skip_empty=True).open()


def test_missing_files_are_named(written: Callable[..., Path]) -> None:
    root = written()
    with pytest.raises(
        ValueError, match=r"no annotations .*val2017.json'; its folder contains: instances_train2017.json"
    ):
        CocoConfig(root=str(root), split="val2017").open()
    with pytest.raises(ValueError, match=r"no image folder .*photos"):
        CocoConfig(root=str(root), images="photos").open()
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="broken json"):
        CocoConfig(root=str(root)).open()


def test_reading_a_broken_or_mis_sized_image_names_the_file(written: Callable[..., Path]) -> None:
    root = written()
    coco = CocoConfig(root=str(root)).open()
    Image.new("RGB", (30, 40)).save(root / "train2017" / "9.png")
    with pytest.raises(UnreadableImage, match=r"9.png has 30 x 40 pixels, but .* states 60 x 40"):
        coco.read(1)
    (root / "train2017" / "9.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"9.png"):
        coco.read(1)


@pytest.mark.data
def test_real_annotations_are_read_as_pycocotools_reads_them(real_data: Callable[[str], Path]) -> None:
    from pycocotools.coco import COCO

    coco = CocoConfig(root=str(real_data("coco")), split="val2017").open()
    theirs = COCO(str(coco.json))
    assert len(coco.classes) == 80
    for index, image_id in enumerate(coco.image_ids.tolist()):
        objects, entries = coco.objects(index), theirs.loadAnns(theirs.getAnnIds(image_id))
        assert objects.masks is not None
        assert [coco.category_ids[k] for k in objects.labels] == [entry["category_id"] for entry in entries]
        assert objects.crowd.tolist() == [bool(entry["iscrowd"]) for entry in entries]
        corners = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(objects.boxes.numpy(), corners, rtol=1e-6)
        masks = rasterize(objects.masks, coco.size(index)).numpy()
        assert all((theirs.annToMask(entry) == mask).all() for entry, mask in zip(entries, masks, strict=True))
    assert coco.read(0).image.shape[1:] == coco.size(0)


@pytest.mark.data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_data_has_no_defect(real_data: Callable[[str], Path], split: str) -> None:
    assert check_coco(CocoConfig(root=str(real_data("coco")), split=split)) == []


def break_everything(content: dict[str, Any]) -> None:
    good = content["annotations"][0]
    changes: list[dict[str, Any]] = [
        {"image_id": 77}, {"category_id": 77}, {"bbox": [25, 10, 50, 20]}, {"bbox": [5, 5, 0, 3]}, {"bbox": [1, 2]},
        {"area": 0},
        {"segmentation": [[1, 2, 3, 4]]}, {"bbox": [-70, 5, 20, 20]}, {"segmentation": []},
        {"segmentation": {"size": [40, 60]}},
        {"segmentation": {"size": [60, 40], "counts": [0, 2400]}}, {"segmentation": [[1, 2, 3, 4, "x", 6]]},
        {"image_id": "9"},
    ]  # fmt: skip
    content["annotations"] = [
        good,
        *({**good, "id": k, **change} for k, change in enumerate(changes, start=100)),
        {**good, "id": 101},
        {"id": 3},
        5,
    ]
    content["images"] += [
        {"id": 4, "file_name": "again.png", "height": 40, "width": 60},
        {"id": 31, "file_name": "9.png"},
        {"id": 32},
    ]
    content["images"] += [{"id": 33, "file_name": "9.png", "height": 40, "width": 60}]
    content["categories"] += [{"id": 2, "name": "dog"}]


def test_every_defect_is_found_at_once(written: Callable[..., Path]) -> None:
    root = written(break_everything)
    Image.new("RGB", (30, 40)).save(root / "train2017" / "4.png")
    (root / "train2017" / "30.png").write_bytes(b"no image")
    found = {
        defect.kind: (defect.number, defect.examples[0], defect.policy)
        for defect in check_coco(CocoConfig(root=str(root)))
    }
    assert found == {
        "image without height, width": (1, "image 31", ""),
        "image without file_name, height, width": (1, "image 32", ""),
        "image id that occurs more than once": (1, "4", ""),
        "file name that occurs more than once": (1, "9.png", ""),
        "category id that occurs more than once": (1, "2", ""),
        "category name that occurs more than once": (1, "dog", ""),
        "image whose size differs from the json": (1, "4.png (30 x 40, json: 60 x 40)", ""),
        "unreadable image": (1, "30.png", ""),
        "missing image": (1, "again.png", ""),
        "object whose image_id is not a whole number of at least 0": (1, "object 112 ('9')", ""),
        "object without image_id, category_id, bbox": (1, "object 3", ""),
        "object without id, image_id, category_id, bbox": (1, "entry 16", ""),
        "object id that occurs more than once": (1, "101", ""),
        "unknown image id": (1, "object 100 (image 77)", ""),
        "unknown category id": (1, "object 101 (category 77)", ""),
        "box that exceeds its image": (
            1,
            "object 102 (box [25, 10, 50, 20])",
            "clipped to the image",
        ),
        "box without area": (1, "object 103 (box [5, 5, 0, 3])", "left out"),
        "box that is not four finite numbers": (1, "object 104 (box [1, 2])", ""),
        "area of zero": (1, "object 105", "computed from outline or box"),
        "polygon with fewer than three points or an odd number of coordinates": (1, "object 106", "left out"),
        "no valid outline": (1, "object 106", "left out"),
        "box outside its image": (1, "object 107 (box [-70, 5, 20, 20])", ""),
        "no outline": (1, "object 108", "left out"),
        "run-length code without size or counts": (1, "object 109", ""),
        "run-length code whose size differs from the image": (1, "object 110 ([60, 40], image [40, 60])", ""),
        "polygon with a coordinate that is not a finite number": (1, "object 111", ""),
    }


def test_an_unusable_file_is_reported_as_a_defect(written: Callable[..., Path]) -> None:
    root = written()
    (root / "annotations" / "instances_train2017.json").write_text("[]")
    for split, message in (("train2017", "not in COCO's format"), ("val2017", "no annotations")):
        (defect,) = check_coco(CocoConfig(root=str(root), split=split))
        assert defect.kind == "unusable data set"
        assert message in defect.examples[0]


def test_a_set_without_outlines_is_valid_with_boxes_only(written: Callable[..., Path]) -> None:
    root = str(written(lambda content: [one.pop("segmentation") for one in content["annotations"]]))
    assert check_coco(CocoConfig(root=str(root), masks=False)) == []
    assert "check: --boxes" in str(check_coco(CocoConfig(root=str(root)))[0])


def test_a_part_of_a_set_is_checked_like_the_whole_set(written: Callable[..., Path]) -> None:
    """A single box outside its image would look like corners."""

    def change(content: dict[str, Any]) -> None:
        for one, other in zip(
            content["annotations"],
            ({"image_id": 4, "bbox": [10, 10, 55, 35]}, {"image_id": 9}, {"bbox": [10, 2, 3, 4]}),
            strict=True,
        ):
            one.update(other)

    part = CocoConfig(root=str(written(change)), masks=False, first=1).open()
    assert part.objects(0).boxes.tolist() == [[10, 10, 60, 40]]
    assert [one["bbox"] for one in CocoMetric(part.ground_truth(), kinds=("bbox",)).truth["annotations"]] == [
        [10, 10, 50, 30]
    ]

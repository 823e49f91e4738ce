"""data/coco_rules.py: defects that stop a run, defects with a policy, run-length codes."""

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools.mask import decode, encode, toBbox

from mae_transfer.core.runs import run_lengths
from mae_transfer.data.coco_rules import Json, examine
from mae_transfer.data.dense_shapes import ShapesObjectsConfig

SQUARE = [[110, 50, 150, 50, 150, 90, 110, 90]]
BOX = [110, 50, 40, 40]


def content(*objects: Json, size: tuple[int, int] = (240, 320)) -> Json:
    good = {"image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": SQUARE}
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": k, **good, **one} for k, one in enumerate(objects)],
    }


def said(found: Json, *, masks: bool = True) -> list[str]:
    return [str(defect) for defect in examine(found, masks=masks).defects]


def code(mask: np.ndarray) -> Json:
    """A run-length code by pycocotools, in the form of a json."""
    encoded = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def random_masks(number: int, height: int = 13, width: int = 17) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([rng.random((height, width)) < rng.random() ** 3 for _ in range(number)])


def test_run_lengths_are_those_of_pycocotools() -> None:
    masks = [*random_masks(300), *random_masks(20, 700, 900), np.ones((5, 5), dtype=bool), np.zeros((5, 5), dtype=bool)]
    for mask, runs in zip(masks, run_lengths([code(mask)["counts"] for mask in masks]), strict=True):
        assert runs is not None
        drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape[::-1]).T
        assert np.array_equal(drawn, mask)


def test_the_extent_of_a_run_length_code_is_that_of_pycocotools() -> None:
    from mae_transfer.data.coco_rules import check_outlines
    from mae_transfer.data.reports import Defects

    masks = [mask for mask in random_masks(300) if mask.any()]
    objects = [{"id": k, "segmentation": code(mask)} for k, mask in enumerate(masks)]
    _, _, extents = check_outlines(objects, np.array([[13, 17]] * len(masks)), Defects())
    expected = np.array([toBbox(one["segmentation"]) for one in objects])
    np.testing.assert_array_equal(extents, np.concatenate([expected[:, :2], expected[:, :2] + expected[:, 2:]], axis=1))


def test_damaged_run_length_codes_are_detected_without_pycocotools() -> None:
    """One character is changed or removed: pycocotools would read past the code, or write past the mask."""
    good = code(max(random_masks(9), key=lambda mask: len(code(mask)["counts"])))["counts"]
    changed = [good[:k] + new + good[k + 1 :] for k in range(len(good)) for new in ("", "o", "0", "\0", "é", "~")]
    found = content(
        *({"segmentation": {"size": [13, 17], "counts": one}, "bbox": [0, 0, 17, 13]} for one in (good, *changed)),
        size=(13, 17),
    )
    examined = examine(found, masks=True)
    assert examined.objects[0]["segmentation"]["counts"] == good
    assert all(code(decode(one["segmentation"])) == one["segmentation"] for one in examined.objects), (
        "what is left is sound"
    )
    (defect,) = examined.defects
    assert defect.kind == "broken run-length code"
    assert defect.number > 0.9 * len(changed), "but one of the same sum"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": [[110, 50, None, 50, 150, 90]]},
            "1 x polygon with a coordinate that is not a finite number: object 1; correct",
        ),
        (
            {"segmentation": [[110, 50, float("nan"), 50, 150, 90]]},
            "1 x polygon with a coordinate that is not a finite number: object 1",
        ),
        ({"segmentation": [[110, 50, 1e9, 50, 150, 90]]}, "1 x polygon outside its image: object 1"),
        (
            {"segmentation": [[110, 50, 10**400, 50, 150, 90]]},
            "1 x polygon with a coordinate that is not a finite number: object 1",
        ),
        (
            {"segmentation": [[110, 50, True, 50, 150, 90]]},
            "1 x polygon with a coordinate that is not a finite number: object 1",
        ),
        (
            {"segmentation": [[[110, 50], [150, 50], [150, 90]]]},
            "1 x polygon of [x, y] pairs: object 1; write each polygon as one list [x0, y0",
        ),
        ({"segmentation": [[110, 50], [150, 50], [150, 90]]}, "1 x polygon of [x, y] pairs: object 1; write each"),
        (
            {"segmentation": [110, 50, 150, 50, 150, 90]},
            "1 x polygon that is not a list of numbers: object 1; write each",
        ),
        ({"segmentation": "110 50"}, "1 x outline that is neither polygons nor a run-length code: object 1"),
        (
            {"segmentation": {"size": [240, 320], "counts": [240 * 320 - 1]}},
            "1 x broken run-length code: object 1; encode the mask again",
        ),
        ({"segmentation": {"size": [240, 320], "counts": "é"}}, "1 x broken run-length code: object 1"),
        (
            {"segmentation": {"size": [320, 240], "counts": "0"}},
            "1 x run-length code whose size differs from the image: object 1 ([320, 240]",
        ),
        (
            {"bbox": [110, 50, float("inf"), 40]},
            "1 x box that is not four finite numbers: object 1 (box [110, 50, inf, 40]); write [x, y",
        ),
        ({"bbox": [110, 50, "40", 40]}, "1 x box that is not four finite numbers: object 1"),
        ({"bbox": [110, 50, -40, 40]}, "1 x box of negative width or height: object 1"),
        ({"bbox": [400, 50, 40, 40]}, "1 x box outside its image: object 1"),
        ({"bbox": [10, 150, 40, 40]}, "1 x box that does not touch its outline: object 1"),
        (
            {"bbox": [110, 50, 150, 90]},
            "1 x box written as x0, y0, x1, y1: object 1 (box [110, 50, 150, 90]); write [x, y, width, height]",
        ),
        ({"iscrowd": "0"}, "1 x iscrowd that is neither 0 nor 1: object 1 ('0'); write the number 0 or 1"),
        ({"iscrowd": None}, "1 x iscrowd that is neither 0 nor 1: object 1"),
        ({"iscrowd": 2}, "1 x iscrowd that is neither 0 nor 1: object 1"),
        (
            {"area": None},
            "1 x area that is not a number of at least 0: object 1 (None); write the area in pixels, or remove the key",
        ),
        ({"area": float("nan")}, "1 x area that is not a number of at least 0: object 1"),
        ({"area": "12"}, "1 x area that is not a number of at least 0: object 1"),
        ({"id": "a"}, "1 x object whose id is not a whole number of at least 0: entry 1 ('a')"),
        ({"id": 0}, "1 x object id that occurs more than once: 0"),
        ({"id": -1}, "1 x object whose id is not a whole number of at least 0: entry 1"),
        ({"image_id": "1"}, "1 x object whose image_id is not a whole number of at least 0: object 1 ('1')"),
        ({"image_id": 1.0}, "1 x object whose image_id is not a whole number of at least 0: object 1"),
        ({"category_id": 2**70}, "1 x object whose category_id is not a whole number of at least 0: object 1"),
    ],
)
def test_each_defect_is_one_line_with_the_object_and_a_remedy(change: Json, message: str) -> None:
    (line,) = said(content({}, change))
    assert line.startswith(message)
    assert "\n" not in line
    assert "; " in line


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"segmentation": [[5, 5]]}, "no valid outline (left out)"),
        ({"segmentation": []}, "no outline (left out)"),
        ({"segmentation": None}, "no outline (left out)"),
        ({"segmentation": [[110, 50, 110, 60, 110, 70]]}, "polygon without area (left out)"),
        ({"segmentation": {"size": [240, 320], "counts": [240 * 320]}}, "run-length code without a pixel (left out)"),
        ({"bbox": [110, 50, 0, 40]}, "box without area (left out)"),
    ],
)
def test_what_is_left_out_is_counted(change: Json, kind: str) -> None:
    examined = examine(content({}, change), masks=True)
    assert [one["id"] for one in examined.objects] == [0]
    assert any(str(defect).startswith(f"1 x {kind}: object 1") for defect in examined.defects)
    assert all(defect.policy for defect in examined.defects)


def test_a_box_over_the_edge_is_clipped_and_an_area_of_zero_computed() -> None:
    examined = examine(content({"bbox": [100, 40, 300, 60]}, {"area": 0}, {"bbox": [99.5, 40, 221, 60]}), masks=True)
    assert [one["bbox"] for one in examined.objects] == [[100, 40, 220, 60], BOX, [99.5, 40, 221, 60]], (
        "half a pixel is rounding"
    )
    assert not any("area" in one for one in examined.objects)
    assert {defect.policy for defect in examined.defects} == {"clipped to the image", "computed from outline or box"}


def test_corner_boxes_without_outlines_are_detected_by_boxes_outside_their_image() -> None:
    corners = [[10, 10, 60, 90], [200, 20, 310, 100], [150, 100, 200, 235]]
    (line,) = said(content(*({"bbox": box} for box in corners)), masks=False)
    assert line.startswith("2 x box written as x0, y0, x1, y1: object 1 (box [200, 20, 310, 100]), object 2")
    beside = [{"bbox": box} for box in (*corners[:2], [200, 100, 30, 20])]  # one that is no pair of corners
    assert said(content(*beside), masks=False) == [
        "1 x box that exceeds its image (clipped to the image): object 1 (box [200, 20, 310, 100])"
    ]


def test_a_single_fault_among_thousands_is_found_and_changes_nothing_else() -> None:
    objects: list[dict[str, Any]] = [{} for _ in range(9000)]
    assert said(content(*objects)) == []
    objects[5000] = {"segmentation": [[1, 2, 3, 4], *SQUARE]}
    objects[8999] = {"segmentation": [[1, 2, "3", 4, 5, 6]]}
    found = content(*objects)
    before = copy.deepcopy(found)
    examined = examine(found, masks=True)
    assert found == before, "what was read is not written to"
    assert [len(examined.objects), examined.objects[5000]["segmentation"]] == [8999, SQUARE]
    assert [defect.number for defect in examined.defects] == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(images=[], annotations=[]), "no image is listed"),
        (lambda c: c.update(annotations=[]), "no object to train on or to evaluate: 0 objects"),
        (
            lambda c: c["annotations"][0].update(iscrowd=1),
            "no object to train on or to evaluate: 1 objects: 1 crowd regions",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation=[[5, 5]]),
            "no object to train on or to evaluate: 1 objects: 0 crowd",
        ),
        (
            lambda c: c["annotations"][0].pop("segmentation"),
            "no object has an outline: to use boxes only, set masks=False and heads.masks=False",
        ),
        (
            lambda c: c["categories"].append({"id": 2, "name": "dog"}),
            "1 x category name that occurs more than once: dog; merge",
        ),
        (
            lambda c: c["images"][0].update(height=0),
            "1 x image with no pixels, or with too many to decode: image 1 (320 x 0)",
        ),
        (lambda c: c["images"][0].update(height=10**9), "1 x image with no pixels, or with too many to decode"),
        (
            lambda c: c["images"][0].update(width="320"),
            "1 x image whose width is not a whole number of at least 0: image 1 ('320')",
        ),
        (lambda c: c["images"][0].update(file_name="a\0b"), "1 x image whose file_name is not a path: image 1"),
    ],
)
def test_a_set_without_usable_objects_is_refused(change: Any, message: str) -> None:
    found = content({})
    change(found)
    assert message in said(found)[0]


def test_generated_scenes_have_no_defect() -> None:
    assert said(ShapesObjectsConfig(size=48, length=30, objects=(4, 8)).open().ground_truth()) == []

"""metrics/coco.py against pycocotools' own path from a results file, and faster-coco-eval against pycocotools."""

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae_transfer.core.runs import from_masks, select_pixels
from mae_transfer.data.coco import CocoConfig, encode_runs
from mae_transfer.data.dense_shapes import ShapesObjectsConfig
from mae_transfer.metrics.coco import FIGURES, CocoMetric, Detections


def guesses(source: Any, index: int, *, noise: float = 3.0) -> Detections:
    """The ground truth with shifted, cropped, mislabelled, missing and repeated objects."""
    rng = np.random.default_rng(index)
    objects = source.objects(index)
    kept = torch.from_numpy(
        rng.permutation(np.repeat(np.arange(len(objects.labels)), 2))[: round(1.5 * len(objects.labels))]
    )
    boxes = objects.boxes[kept] + torch.from_numpy(rng.normal(0, noise, (len(kept), 4))).float()
    labels = torch.where(torch.from_numpy(rng.random(len(kept)) < 0.1), 0, objects.labels[kept])
    size = height, width = source.size(index)
    shifts = [np.roll(np.arange(width), rng.integers(-3, 4)) for _ in kept]
    moved = [
        select_pixels(objects.masks[k, None], size, np.arange(height), columns)[0]
        for k, columns in zip(kept, shifts, strict=True)
    ]
    masks = [encode_runs(runs, size) for runs in moved]
    return Detections(boxes, torch.from_numpy(rng.random(len(kept))).float(), labels, masks)


def filled(source: Any, *, backend: Any = "pycocotools", kinds: Any = ("bbox", "segm")) -> CocoMetric:
    metric = CocoMetric(source.ground_truth(), backend=backend, kinds=kinds)
    for index, image_id in enumerate(source.image_ids.tolist()):
        metric.update([image_id], [guesses(source, index)])
    return metric


def reference(truth: Path, results: Path, kind: str) -> tuple[np.ndarray, dict[int, float]]:
    """The twelve metrics of pycocotools from files, and AP per category id."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entries = json.loads(results.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(truth))
        for entry in entries:
            entry.pop("bbox" if kind == "segm" else "segmentation")
        judge = COCOeval(theirs, theirs.loadRes(entries), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][..., 0, 2]
    each = {c: precision[:, :, k][precision[:, :, k] > -1] for k, c in enumerate(judge.params.catIds)}
    return judge.stats, {c: values.mean() if len(values) else np.nan for c, values in each.items()}


@pytest.mark.data
def test_all_figures_equal_pycocotools_from_the_saved_results(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    coco = CocoConfig(root=str(real_data("coco")), split="val2017").open()
    figures = filled(coco).compute(save=tmp_path / "predictions" / "results.json", per_class=True)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["results.json"]
    for kind in ("bbox", "segm"):
        stats, each = reference(coco.json, tmp_path / "predictions" / "results.json", kind)
        ours = [figures[f"{kind}/{name}"] for name in FIGURES]
        np.testing.assert_allclose(ours, np.where(stats < 0, np.nan, stats), rtol=0, atol=1e-12)
        assert 0.05 < stats[0] < 0.95, "the guesses should be neither perfect nor hopeless"
        names = dict(zip(coco.category_ids.tolist(), coco.classes, strict=True))
        np.testing.assert_allclose(
            [figures[f"{kind}/AP[{names[c]}]"] for c in each], list(each.values()), rtol=0, atol=1e-12
        )


@pytest.mark.data
def test_faster_coco_eval_gives_the_same_figures(real_data: Callable[[str], Path]) -> None:
    coco = CocoConfig(root=str(real_data("coco")), split="val2017").open()
    slow, fast = (
        filled(coco, backend=backend).compute(per_class=True) for backend in ("pycocotools", "faster-coco-eval")
    )
    assert slow.keys() == fast.keys()
    np.testing.assert_allclose(list(fast.values()), list(slow.values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_the_ground_truth_scores_1_and_no_predictions_score_0(backend: Any) -> None:
    source = ShapesObjectsConfig(size=64, length=6).open()
    perfect, nothing = (CocoMetric(source.ground_truth(), backend=backend) for _ in range(2))
    for index, image_id in enumerate(source.image_ids.tolist()):
        objects = source.objects(index)
        boxes, labels = objects.boxes, objects.labels
        codes = [encode_runs(runs, source.size(index)) for runs in objects.masks]
        perfect.update([image_id], [Detections(boxes, torch.ones(len(labels)), labels, codes)])
        nothing.update([image_id], [Detections(boxes[:0], torch.ones(0), labels[:0], [])])
    figures, none = perfect.compute(), nothing.compute()
    for kind in ("bbox", "segm"):
        assert figures[f"{kind}/AP"] == pytest.approx(1)
        assert figures[f"{kind}/APs"] == pytest.approx(1)
        assert np.isnan(figures[f"{kind}/APl"]), "no object of 64 px scenes is large"
        assert none[f"{kind}/AP"] == 0
        assert none[f"{kind}/AR100"] == 0


def test_detections_in_an_image_without_objects_are_false_positives() -> None:
    source = ShapesObjectsConfig(size=64, length=2).open()
    truth = source.ground_truth()
    truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] == 1]
    boxes, labels = source.objects(0).boxes, source.objects(0).labels

    def ap(*, invented: bool) -> float:
        metric = CocoMetric(truth, kinds=("bbox",))
        metric.update([1], [Detections(boxes, torch.full((len(labels),), 0.5), labels)])
        found = Detections(boxes[:1], torch.full((1,), 0.9), labels[:1])
        metric.update([2], [found if invented else Detections(boxes[:0], torch.ones(0), labels[:0])])
        return metric.compute()["bbox/AP"]

    assert ap(invented=False) == pytest.approx(1)
    assert ap(invented=True) < 0.9


def test_an_image_that_a_sampler_repeats_counts_once() -> None:
    source = ShapesObjectsConfig(size=64, length=4).open()
    metric = filled(source)
    once = metric.compute()
    metric.update([1, 2], [guesses(source, 3), guesses(source, 3)])
    assert metric.compute() == pytest.approx(once, nan_ok=True)


def test_missing_and_unknown_images_are_refused() -> None:
    source = ShapesObjectsConfig(size=32, length=3).open()
    metric = CocoMetric(source.ground_truth())
    metric.update([1, 9], [guesses(source, 0), guesses(source, 1)])
    with pytest.raises(ValueError, match=r"2 images, 3 in the ground truth: 2 not predicted \[2, 3\], 1 unknown \[9\]"):
        metric.compute()


def test_ids_with_gaps_and_missing_optional_keys_are_accepted() -> None:
    """COCOeval reads an object id of 0 as "no match", and requires area, iscrowd and info."""
    source = ShapesObjectsConfig(size=64, length=3).open()
    truth = source.ground_truth()
    expected = filled(source, kinds=("bbox",)).compute()
    del truth["info"]
    for one in truth["annotations"]:
        one["id"] -= 1
        one["category_id"] *= 10
        del one["iscrowd"], one["segmentation"]
    for category in truth["categories"]:
        category["id"] *= 10
    metric = CocoMetric(truth, kinds=("bbox",), backend="pycocotools")
    for index in range(3):
        metric.update([index + 1], [guesses(source, index)])
    assert metric.compute() == pytest.approx(expected, nan_ok=True)
    with pytest.raises(ValueError, match="no object to train on or to evaluate.*no object has an outline"):
        CocoMetric(truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, "predictions have no masks"),
        (
            {"masks": [{"size": [16, 32], "counts": "P`0"}]},
            r"masks have the size \(16, 32\), but the image has \(32, 32\)",
        ),
        ({"scores": torch.tensor([np.nan])}, "not finite"),
        ({"boxes": torch.tensor([[0, 0, np.inf, 1]])}, "not finite"),
    ],
)
def test_invalid_predictions_are_refused(change: dict[str, Any], message: str) -> None:
    good = Detections(
        torch.tensor([[0.0, 0, 4, 4]]),
        torch.ones(1),
        torch.zeros(1, dtype=torch.long),
        [{"size": [32, 32], "counts": "0PP1"}],
    )
    metric = CocoMetric(ShapesObjectsConfig(size=32, length=1).open().ground_truth())
    with pytest.raises(ValueError, match=message):
        metric.update([1], [good._replace(**change)])
    metric.update(np.array([1]), [good])


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    truth = ShapesObjectsConfig(size=32, length=1).open().ground_truth()
    assert CocoMetric(truth).backend == "pycocotools"
    with pytest.raises(ValueError, match="not installed: pip install"):
        CocoMetric(truth, backend="faster-coco-eval")


BACKENDS = ("pycocotools", "faster-coco-eval")


def dots(number: int) -> tuple[dict[str, Any], Detections]:
    """Squares of 4 x 4 pixels on a grid, their truth and its perfect prediction."""
    places = [(8 * (k % 20), 8 * (k // 20)) for k in range(number)]
    shared = {"image_id": 1, "category_id": 1, "area": 16, "iscrowd": 0}
    entries = [
        {"id": k, "bbox": [x, y, 4, 4], "segmentation": [[x, y, x + 4, y, x + 4, y + 4, x, y + 4]]} | shared
        for k, (x, y) in enumerate(places)
    ]
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 160, "width": 160}],
        "categories": [{"id": 1, "name": "dot"}],
        "annotations": entries,
    }
    boxes, masks = torch.zeros(number, 4), torch.zeros(number, 160, 160, dtype=torch.uint8)
    for k, (x, y) in enumerate(places):
        boxes[k], masks[k, y : y + 4, x : x + 4] = torch.tensor([x, y, x + 4, y + 4]), 1
    return truth, Detections(
        boxes,
        torch.linspace(0.9, 0.1, number),
        torch.zeros(number, dtype=torch.long),
        [encode_runs(one, (160, 160)) for one in from_masks(masks)],
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_100_detections_count_if_configured(backend: Any) -> None:
    truth, found = dots(200)
    figures = {}
    for most in (50, 100, 300):
        metric = CocoMetric(truth, backend=backend, detections=most)
        metric.update([1], [found])
        figures[most] = metric.compute(per_class=True)
    assert figures[50] == pytest.approx(figures[100], nan_ok=True)
    for kind in ("bbox", "segm"):
        assert figures[100][f"{kind}/AR100"] == pytest.approx(0.5)
        assert figures[100][f"{kind}/AP"] == pytest.approx(51 / 101)  # recalls 0, 0.01 ... 0.5 of 101
        assert figures[300][f"{kind}/AR300"] == pytest.approx(1)
        assert figures[300][f"{kind}/AP"] == figures[300][f"{kind}/AP[dot]"] == pytest.approx(1)
        assert (figures[300][f"{kind}/AR1"], figures[300][f"{kind}/AR10"]) == pytest.approx((1 / 200, 10 / 200))
        assert f"{kind}/AR100" not in figures[300]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_area_is_computed_from_the_mask_if_masks_are_evaluated(backend: Any) -> None:
    """A triangle in a box of 40 x 40 pixels has 800 pixels: small as a mask, medium as a box."""
    truth, _ = dots(1)
    triangle = {"bbox": [10, 10, 40, 40], "segmentation": [[10, 10, 50, 10, 10, 50]]}
    truth["annotations"][0].update(triangle)
    for masks, small in ((True, True), (False, False)):
        for area in ({}, {"area": 0}):
            truth["annotations"] = [
                {key: value for key, value in truth["annotations"][0].items() if key != "area"} | area
            ]
            metric = CocoMetric(truth, backend=backend, kinds=("bbox", "segm") if masks else ("bbox",))
            y, x = np.mgrid[:160, :160]
            mask = torch.from_numpy((x >= 10) & (y >= 10) & (x + y < 60))[None]
            codes = [encode_runs(one, (160, 160)) for one in from_masks(mask)]
            metric.update(
                [1],
                [
                    Detections(
                        torch.tensor([[10.0, 10, 50, 50]]), torch.ones(1), torch.zeros(1, dtype=torch.long), codes
                    )
                ],
            )
            figures = metric.compute()
            for kind in ("bbox", "segm") if masks else ("bbox",):
                assert np.isnan(figures[f"{kind}/APs"]) != small
                assert np.isnan(figures[f"{kind}/APm"]) == small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [np.nan, 0, 4, 4]}, "box that is not four finite numbers: object 3"),
        ({"area": None}, "area that is not a number of at least 0: object 3"),
        ({"iscrowd": "0"}, "iscrowd that is neither 0 nor 1: object 3"),
        ({"image_id": "1"}, "object whose image_id is not a whole number of at least 0: object 3"),
        ({"segmentation": {"size": [160, 160], "counts": "x"}}, "broken run-length code: object 3"),
    ],
)
def test_both_backends_refuse_the_same_truth(change: dict[str, Any], message: str) -> None:
    truth, _ = dots(5)
    truth["annotations"][3].update(change)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=f"the ground truth: 1 x {message}"):
            CocoMetric(truth, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_iscrowd_may_be_a_boolean_and_unknown_keys_are_ignored(backend: Any) -> None:
    truth, found = dots(4)
    expected = CocoMetric(truth, backend=backend)
    expected.update([1], [found])
    for one in truth["annotations"]:
        one.update(iscrowd=False, ignore=1, score=0.1, attributes={"occluded": None})
    metric = CocoMetric(truth, backend=backend)
    metric.update([1], [found])
    assert metric.compute() == pytest.approx(expected.compute(), nan_ok=True)


@pytest.mark.parametrize("change", [{"annotations": []}, {"images": [], "annotations": []}])
def test_a_ground_truth_without_objects_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="the ground truth: 1 x (no object to train on or to evaluate|no image is listed)"
    ):
        CocoMetric(dots(1)[0] | change)

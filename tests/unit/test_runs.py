"""core/runs.py and its users: masks equal those that pycocotools rasterises, and take little memory."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as theirs
from torchvision.ops import masks_to_boxes

from mae_transfer.core.runs import (
    extents,
    from_counts,
    from_mask,
    from_masks,
    has_pixels,
    paste_masks,
    rasterize,
    select_pixels,
    to_counts,
)
from mae_transfer.data.coco import decode_outlines, encode_runs
from mae_transfer.data.dense_shapes import ShapesObjectsConfig
from mae_transfer.data.objects import LargeScaleJitter, Scene, SceneTransform, ShortestEdge, mirror
from mae_transfer.draw.detections import DetectionPicture, choose_detections, save_detections
from mae_transfer.interfaces import Objects
from mae_transfer.metrics.coco import Detections
from mae_transfer.seeding import seeded

SIZE = (37, 53)
ROOT = Path(__file__).parents[2]


def blobs(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Return masks of many kinds: noise, noise within a box, full, empty, single columns and rows, the corners."""
    masks = np.zeros((9, *size), dtype=np.uint8)
    masks[0] = rng.random(size) < 0.5
    masks[1, 5:20, 9:30] = rng.random((15, 21)) < 0.9
    masks[2] = 1
    masks[4, :, 7] = masks[5, 3] = masks[6, 10:, 4:] = 1
    masks[7, [0, 0, -1, -1], [0, -1, 0, -1]] = 1
    masks[8, 2:, 3] = masks[8, :9, 4] = 1
    return torch.from_numpy(masks)


def coded(masks: torch.Tensor) -> list[dict[str, Any]]:
    return theirs.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))  # type: ignore[no-any-return]


def polygons(rng: np.random.Generator, count: int, size: tuple[int, int], radius: float) -> list[list[list[float]]]:
    """Return outlines of one or two stars each, some beyond the border."""
    found = []
    for k in range(count):
        stars = []
        for _ in range(1 + k % 2):
            angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
            far = radius * rng.uniform(0.4, 1, 12)
            centre = rng.uniform(-0.1, 1.1, 2) * size[::-1]
            stars.append((centre + np.stack([np.cos(angles), np.sin(angles)], 1) * far[:, None]).ravel().tolist())
        found.append(stars)
    return found


def test_masks_codes_and_runs_are_equivalent() -> None:
    masks = blobs(np.random.default_rng(0))
    runs, codes = from_masks(masks), coded(masks)
    assert torch.equal(rasterize(runs, SIZE), masks)
    assert has_pixels(runs).tolist() == masks.flatten(1).any(1).tolist()
    assert [encode_runs(one, SIZE) for one in runs] == [
        {"size": list(SIZE), "counts": code["counts"].decode()} for code in codes
    ]
    assert torch.equal(decode_outlines([encode_runs(one, SIZE) for one in runs], SIZE), runs)
    assert torch.equal(decode_outlines([{"size": SIZE, "counts": to_counts(one, SIZE)} for one in runs], SIZE), runs)
    there = has_pixels(runs)
    assert torch.equal(extents(runs, SIZE)[there], masks_to_boxes(masks[there]) + torch.tensor([0.0, 0, 1, 1]))
    assert not extents(runs, SIZE)[~there].any()
    assert rasterize(runs[:0], SIZE).shape == (0, *SIZE)
    assert extents(decode_outlines([], SIZE), SIZE).shape == (0, 4)


def test_counts_with_empty_runs_are_their_pixels() -> None:
    runs = from_counts([[3, 0, 2, 4, 0, 5, 7]], (5, 8))
    assert runs.tolist() == [[5, 14]]
    assert torch.equal(rasterize(runs, (5, 8))[0].T.flatten().nonzero()[:, 0], torch.arange(5, 14))


@pytest.mark.parametrize("counts", [[30, 30], [-1, 5], [], "PP", "0~"])
def test_a_code_of_the_wrong_size_is_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="write its outline again"):
        from_counts([counts], (5, 8))


@pytest.mark.parametrize("seed", range(5))
def test_rows_and_columns_are_those_of_the_drawn_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = blobs(rng)
    rows = np.sort(rng.integers(0, SIZE[0], rng.integers(1, 80)))
    for columns in (rng.integers(0, SIZE[1], rng.integers(1, 90)), np.arange(SIZE[1])[::-1], np.arange(20, 30)):
        part = select_pixels(from_masks(masks), SIZE, rows, columns)
        assert torch.equal(rasterize(part, (len(rows), len(columns))), masks[:, rows][:, :, columns.copy()])
        assert torch.equal(part, from_masks(masks[:, rows][:, :, columns.copy()])), "runs are as few as can be"


def test_polygons_equal_pycocotools() -> None:
    size = (60, 90)
    drawn = polygons(np.random.default_rng(0), 30, size, 25)
    expected = [theirs.decode(theirs.merge(theirs.frPyObjects(one, *size))) for one in drawn]
    assert torch.equal(rasterize(decode_outlines(drawn, size), size), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize(
    "transform",
    [LargeScaleJitter(size=64), ShortestEdge(lengths=(40, 90), longest=120)],
    ids=lambda t: type(t).__name__,
)
def test_masks_of_a_training_sample_equal_rasterised_masks(transform: SceneTransform) -> None:
    """The reference rasterises every mask of the stored image, flips it, and samples the window (nearest)."""
    size, rng = (60, 90), np.random.default_rng(1)
    outlined = [*polygons(rng, 12, size, 30), *coded(blobs(rng, size))]
    masks = torch.from_numpy(
        np.stack(
            [theirs.decode(theirs.merge(theirs.frPyObjects(o, *size)) if isinstance(o, list) else o) for o in outlined]
        )
    )
    boxes = torch.tensor([[0.0, 0, 90, 60]]).repeat(len(masks), 1)  # none is left out for its box
    runs = from_masks(masks)
    numbered = (torch.arange(size[0] * size[1]).view(1, *size) % 251).expand(3, -1, -1).to(torch.uint8)
    seen: list[np.ndarray] = []
    for seed in range(12):
        objects = Objects(boxes, torch.arange(len(masks)), torch.zeros(len(masks), dtype=torch.bool), runs)
        with seeded(seed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "mae_transfer.data.objects.select_pixels",
                lambda *given: seen.append(given[2:]) or select_pixels(*given),
            )  # type: ignore[func-returns-value]
            out = transform(Scene(numbered, objects))
        full = masks
        for rows, columns in seen:
            full = full[:, rows.copy()][:, :, columns.copy()]
        seen.clear()
        kept = full.flatten(1).any(1).bool()
        assert out.objects.labels.tolist() == torch.arange(len(masks))[kept].tolist()
        assert torch.equal(rasterize(out.objects.masks, out.image.shape[1:]), full[kept])


def test_generated_scenes_have_the_masks_of_their_solids() -> None:
    source = ShapesObjectsConfig(size=48, length=3).open()
    for index in range(3):
        scene, objects = source.shapes.scene(index), source.objects(index)
        found = rasterize(objects.masks, (48, 48))
        for k in range(len(found)):
            numbers = np.unique(scene.instances[found[k].numpy() != 0])
            assert len(numbers) == 1
            assert torch.equal(found[k], torch.from_numpy((scene.instances == numbers[0]).astype(np.uint8)))


def test_a_mask_within_its_box_is_that_of_the_image() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        top, left, height, width = (int(rng.integers(0, n)) for n in (20, 30, 18, 24))
        part, whole = rng.random((height, width)) < 0.7, np.zeros(SIZE, dtype=np.uint8)
        whole[top : top + height, left : left + width] = part
        assert np.array_equal(from_mask(part, SIZE, top=top, left=left), from_mask(whole, SIZE))


def test_twenty_objects_of_a_large_image_take_little_memory() -> None:
    """Rasterised masks take 400 MB, and twice that in the transform."""
    size = (4000, 5000)
    drawn = polygons(np.random.default_rng(0), 20, size, 300)
    boxes, image = torch.tensor([[0.0, 0, 5000, 4000]]).repeat(20, 1), torch.zeros(3, *size, dtype=torch.uint8)
    tracemalloc.start()
    runs = decode_outlines(drawn, size)
    scene = mirror(Scene(image, Objects(boxes, torch.arange(20), torch.zeros(20, dtype=torch.bool), runs)))
    masks = paste_masks(torch.ones(20, 28, 28), boxes / 50, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert sum(tensor.nbytes for tensor in (runs, scene.objects.masks, masks)) < 2e6  # type: ignore[union-attr]


def test_a_picture_of_a_large_image_is_drawn_within_its_own_resolution(tmp_path: Path) -> None:
    """At full resolution the canvas alone takes 288 MB, and matplotlib several times that."""
    size = (3000, 4000)
    drawn = decode_outlines(polygons(np.random.default_rng(0), 3, size, 300), size)
    boxes = extents(drawn, size)
    objects = Objects(boxes, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool), drawn)
    found = Detections(boxes, torch.ones(3), objects.labels, [encode_runs(runs, size) for runs in drawn])
    tracemalloc.start()
    save_detections(
        tmp_path / "0.png", DetectionPicture(torch.zeros(3, *size, dtype=torch.uint8), objects, found, "0"), ("star",)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6
    picture = np.asarray(Image.open(tmp_path / "0.png").convert("RGB")).astype(int)
    coloured = (
        picture.max(axis=2) - picture.min(axis=2)
    ) > 20  # on both panels, about as much of the image as the stars are
    shares = [half.mean() for half in np.array_split(coloured, 2, axis=1)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
    assert shares[0] == pytest.approx(float(rasterize(drawn, size).any(0).float().mean()), rel=0.5)


@pytest.mark.slow
def test_a_thousand_objects_of_a_large_image_are_trained_on_and_evaluated_within_3_gib(tmp_path: Path) -> None:
    """Peak memory of the process in the benchmark `masks`. Rasterised, 200 objects need over 14 GiB."""
    subprocess.run(
        [sys.executable, ROOT / "tools" / "benchmark.py", "masks", "--objects", "1000", "--rounds", "1", "--json",
            tmp_path / "out.json"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    records = json.loads((tmp_path / "out.json").read_text())["records"]
    assert [record["name"].split(",")[0] for record in records] == [
        "training sample",
        "training sample",
        "evaluation of an image",
    ]
    assert max(record["peak_gib"] for record in records) < 3


@pytest.mark.parametrize(("scores", "kept", "title"), [
    ([0.1, 0.9, 0.4], [1, 2], "found: 2 with a score of at least 0.3"),
    ([0.1, 0.2], [1], "found: none with a score of at least 0.3; the best one is shown"),
    ([], [], "found: 0 with a score of at least 0.3"),
])  # fmt: skip
def test_the_best_detection_is_drawn_if_none_is_sure(scores: list[float], kept: list[int], title: str) -> None:
    assert choose_detections(torch.tensor(scores)) == (kept, title)

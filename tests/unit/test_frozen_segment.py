"""Segmentation by frozen patches: against independent loops, on features that say everything or nothing, bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mae_transfer.config import validate
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.data.ade import MappedImage
from mae_transfer.data.dense_shapes import write_ade
from mae_transfer.engine.dist import Dist
from mae_transfer.interfaces import IGNORED, Backbone, Features, Maps
from mae_transfer.tasks import evaluation, frozen_segment
from mae_transfer.tasks.backbones import LoadedBackbone
from mae_transfer.tasks.frozen_segment import (
    FrozenKnnConfig,
    FrozenLogRegConfig,
    FrozenSegment,
    Patches,
    choose_value,
    draw_patches,
    patch_labels,
)

CPU = Dist(torch.device("cpu"))
CLASSES = ("a", "b", "c", "d")
PLAIN = Statistics((0.0,) * 3, (1.0,) * 3)


class Silent:
    """A log that keeps nothing."""

    def tick(self, step: int) -> None: ...
    def say(self, text: str) -> None: ...


class Drawn:
    """Images of the given maps: the red channel of a pixel is its class."""

    classes = CLASSES

    def __init__(self, maps: Sequence[Tensor], *, shown: Sequence[Tensor] | None = None) -> None:
        self.maps, self.shown = maps, shown or maps

    def __len__(self) -> int:
        return len(self.maps)

    def read(self, index: int) -> MappedImage:
        image = self.shown[index].expand(3, -1, -1)
        return MappedImage(image.contiguous(), self.maps[index])

    def where(self, index: int) -> str:
        return f"{index}.png"


class Cells(Backbone):
    """The one-hot class of the first pixel of each 4 x 4 cell, mixed by `mix` (4, D)."""

    dim, depth, patch = 4, 1, 4

    def __init__(self, mix: Tensor | None = None) -> None:
        super().__init__()
        self.mix = torch.eye(4) if mix is None else mix

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        red = (images[:, 0, ::4, ::4] * 255).round().long().clamp(max=3)
        return Features((self.mix[red].permute(0, 3, 1, 2),), None)


class Noise(Cells):
    """Random filters of each cell."""

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        weight = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(3))
        return Features((torch.nn.functional.conv2d(255 * images, weight, stride=4).sin(),), None)


def cells(count: int, *, high: int = 4, wide: int = 5, seed: int = 0) -> list[Tensor]:
    """Return maps of random bands that are four pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    bands = [torch.randint(0, 4, (wide,), generator=generator) for _ in range(count)]
    return [band.repeat_interleave(4).expand(4 * high, -1).to(torch.uint8).contiguous() for band in bands]


def noise(count: int, *, high: int = 16, wide: int = 20, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 4, (high, wide), generator=generator, dtype=torch.uint8) for _ in range(count)]


Build = Callable[..., FrozenSegment]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return an opened evaluation of a stub backbone on stub sets."""

    def opened(schema: Any, train: Any, val: Any, backbone: Backbone | None = None, **options: Any) -> FrozenSegment:
        loaded = LoadedBackbone(backbone or Cells(), {}, "stub", "none", None, PLAIN)
        monkeypatch.setattr(evaluation, "open_backbone", lambda *_, **__: loaded)
        monkeypatch.setattr(frozen_segment, "open_map_set", lambda part, root: {"training": train}.get(part.split, val))
        values = {"scale": "mini", "precision": "float32", "data": {"size": (16, 20)}, "bank": 1000}
        run = {"run": {"device": "cpu", "workers": 0}}
        dist = options.pop("dist", CPU)
        cfg = validate(values | run | options, schema, where="test")
        task = FrozenSegment(cfg, dist)
        task.open()
        return task

    return opened


def evaluate(task: FrozenSegment) -> dict[str, float]:
    log: Any = Silent()
    with torch.no_grad():
        return task.evaluate(log)[0]


@pytest.mark.parametrize("schema", [FrozenKnnConfig, FrozenLogRegConfig])
def test_features_that_say_the_class_segment_without_error(build: Build, schema: Any) -> None:
    task = build(schema, Drawn(cells(8)), Drawn(cells(3, seed=1)))
    figures = evaluate(task)
    assert [figures[name] for name in ("mIoU", "mAcc", "aAcc", "holdout/patch-mIoU")] == [1.0] * 4


@pytest.mark.parametrize("schema", [FrozenKnnConfig, FrozenLogRegConfig])
def test_labels_of_other_images_leave_chance(build: Build, schema: Any) -> None:
    """Every patch is one of four classes with equal shares, so a guess is right in one of four."""
    shuffled = Drawn(cells(40, seed=5), shown=cells(40, seed=6))
    figures = evaluate(build(schema, shuffled, Drawn(cells(40, seed=1))))
    assert figures["aAcc"] < 0.45
    assert figures["holdout/patch-mIoU"] < 0.45


def test_votes_are_those_of_an_independent_loop(build: Build) -> None:
    train, val = Drawn(noise(6)), Drawn(noise(2, high=23, wide=31, seed=1))
    task = build(FrozenKnnConfig, train, val, Noise(), ks=(5,), temperature=0.2)
    found = evaluate(task)
    rows, labels = [], []
    for index in range(6):
        image, truth = train.read(index)
        rows.append(tokens(image))
        for y in range(4):
            for x in range(5):
                cell = truth[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten().tolist()
                labels.append(max(range(4), key=lambda value, cell=cell: (cell.count(value), -value)))  # type: ignore[misc]
    bank = np.concatenate(rows)
    mean, std = bank.mean(axis=0), bank.std(axis=0)
    bank = (bank - mean) / std
    right = pixels = 0
    for index in range(2):
        image, truth = val.read(index)
        resized = frozen_segment.resized_view(image, size=(16, 20))[0]
        scores = np.zeros((4, 20))
        for query, features in enumerate((tokens(resized) - mean) / std):
            cosines = bank @ features / np.linalg.norm(bank, axis=1) / np.linalg.norm(features)
            for neighbour in np.argsort(-cosines)[:5]:
                scores[labels[neighbour], query] += np.exp(cosines[neighbour] / 0.2)
        shares = torch.from_numpy(scores / scores.sum(axis=0)).view(1, 4, 4, 5)
        maps = torch.nn.functional.interpolate(shares, size=truth.shape, mode="bilinear", align_corners=False)
        right, pixels = right + int((maps.argmax(dim=1)[0] == truth).sum()), pixels + truth.numel()
    assert found["aAcc"] == right / pixels


def tokens(image: Tensor) -> np.ndarray:
    maps = Noise()(normalize(image[None], PLAIN)).maps[-1]
    return maps[0].flatten(1).T.double().numpy()


def test_logistic_regression_is_scikit_learns_on_the_gathered_patches(build: Build) -> None:
    train, val = Drawn(noise(6)), Drawn(noise(2, seed=1))
    task = build(FrozenLogRegConfig, train, val, Noise(), cs=(0.1,))
    found = evaluate(task)
    features = torch.from_numpy(np.concatenate([tokens(train.read(index).image) for index in range(6)]))
    labels = torch.cat([patch_labels(truth[None], (4, 5), (16, 20), classes=4) for truth in train.maps])
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(
        ((features - mean) / std).numpy(), labels.numpy()
    )
    right = []
    for index in range(2):
        image, truth = val.read(index)
        logits = reference.decision_function((tokens(image) - mean.numpy()) / std.numpy())
        maps = torch.from_numpy(logits).T.reshape(1, 4, 4, 5)
        maps = torch.nn.functional.interpolate(maps, size=truth.shape, mode="bilinear", align_corners=False)
        right.append((maps.argmax(dim=1)[0] == truth).float().mean().item())
    assert found["aAcc"] == pytest.approx(np.mean(right), abs=0.005)


def test_a_patch_has_the_most_frequent_value_of_its_pixels() -> None:
    labels = torch.tensor([
        [1, 1, 2, IGNORED], [1, 2, 2, IGNORED], [0, 3, IGNORED, IGNORED], [3, 0, 2, IGNORED],
    ], dtype=torch.uint8)  # fmt: skip
    assert patch_labels(labels[None], (2, 2), (4, 4), classes=4).tolist() == [1, 2, 0, IGNORED]
    doubled = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert patch_labels(doubled[None], (2, 2), (4, 4), classes=4).tolist() == [1, 2, 0, IGNORED]


def test_patches_are_drawn_from_those_with_a_class_by_the_image_alone() -> None:
    labels = torch.arange(10).where(torch.arange(10) % 2 == 0, IGNORED)
    drawn = draw_patches(labels, 3, seed=1)
    assert len(set(drawn.tolist())) == 3
    assert (labels[drawn] != IGNORED).all()
    assert drawn.equal(draw_patches(labels, 3, seed=1))
    assert sorted(draw_patches(labels, 100, seed=2).tolist()) == [0, 2, 4, 6, 8]


def test_the_bank_has_as_many_patches_of_every_image(build: Build) -> None:
    task = build(FrozenKnnConfig, Drawn(cells(4)), Drawn(cells(1)), bank=30)
    bank = task.collect(task.cfg.data.unreadable(), lambda: None)
    assert bank.images.bincount().tolist() == [7] * 4
    assert len(bank.features) == len(bank.labels) == 28


def test_an_image_has_no_more_patches_than_its_grid(build: Build) -> None:
    """A row of kept features has room for as many patches as are drawn: 500,000 of one image would not fit."""
    assert build(FrozenKnnConfig, Drawn(cells(1)), Drawn(cells(1)), bank=500_000).per_image == 20


def test_a_constant_is_selected_on_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], set[int]]] = []
    generator = torch.Generator().manual_seed(0)
    bank = Patches(torch.randn(60, 3, generator=generator), torch.arange(60) % 3, torch.arange(60) // 6)
    fit = FrozenKnnConfig.fit

    def watched(self: Any, fitted: Patches, values: Any, classes: int) -> Any:
        scores = fit(self, fitted, values, classes)
        images = set(fitted.images.tolist())
        seen.append((images, set(range(10)) - images))
        return scores

    monkeypatch.setattr(FrozenKnnConfig, "fit", watched)
    cfg = validate({"scale": "mini", "ks": (1, 5), "selection_fraction": 0.3}, FrozenKnnConfig, where="test")
    value, miou = choose_value(cfg, bank, ("a", "b", "c"))
    ((fitted, held),) = seen
    assert (len(fitted), len(held)) == (7, 3)
    assert value in (1, 5)
    assert 0 <= miou <= 1
    single = Patches(bank.features, bank.labels, torch.zeros_like(bank.labels))
    with pytest.raises(ValueError, match="no training image can be held out to select k: give one value"):
        choose_value(cfg, single, ("a", "b", "c"))


def test_a_constant_channel_does_no_harm(build: Build) -> None:
    mix = torch.cat([torch.eye(4), torch.full((4, 1), 7.3)], dim=1)
    assert evaluate(build(FrozenKnnConfig, Drawn(cells(8)), Drawn(cells(3, seed=1)), Cells(mix)))["mIoU"] == 1.0


def test_a_class_without_training_pixels_is_never_found(build: Build) -> None:
    train = [labels.clamp(max=2) for labels in cells(8)]
    for schema in (FrozenKnnConfig, FrozenLogRegConfig):
        figures = evaluate(build(schema, Drawn(train), Drawn(cells(4, seed=1))))
        assert 0.4 < figures["mIoU"] < 0.75


def test_bad_input_is_named_with_its_remedy(build: Build) -> None:
    good, void = Drawn(cells(4)), Drawn([torch.full((16, 20), IGNORED, dtype=torch.uint8)] * 2)
    with pytest.raises(ValueError, match="most pixels of every training patch have no class"):
        evaluate(build(FrozenKnnConfig, void, good))
    with pytest.raises(ValueError, match="no pixel of the validation set has a class"):
        evaluate(build(FrozenKnnConfig, good, void))
    with pytest.raises(ValueError, match=r"ks = \(1, 100\): only 60 training patches can vote.*lower ks, or raise"):
        evaluate(build(FrozenKnnConfig, good, good, ks=(1, 100)))
    with pytest.raises(ValueError, match="80 of 80 training patch features contain NaN"):
        evaluate(build(FrozenKnnConfig, good, good, Cells(torch.full((4, 4), torch.nan))))
    with pytest.raises(ValueError, match="bank = 3 is less than a patch of each of 4 training images: raise it"):
        build(FrozenKnnConfig, good, good, bank=3)
    with pytest.raises(ValueError, match="a set has 2 images for 3 processes: start fewer processes"):
        build(FrozenKnnConfig, good, Drawn(cells(2)), dist=Dist(CPU.device, 0, 3))
    with pytest.raises(ValueError, match=r"multiples of patch = 4"):
        build(FrozenKnnConfig, good, good, data={"size": 18})
    other = Drawn(cells(2))
    other.classes = ("a", "b", "c", "e")
    with pytest.raises(ValueError, match="use the same list of classes"):
        build(FrozenKnnConfig, good, other)


def test_a_backbone_without_the_grid_is_refused(build: Build) -> None:
    class Coarse(Cells):
        def maps(self) -> Maps:
            return Maps((4,), (2,))

    task = build(FrozenKnnConfig, Drawn(cells(4)), Drawn(cells(1)), Coarse())
    with pytest.raises(ValueError, match="a grid of 8x10 patches is needed: use another backbone"):
        evaluate(task)


def test_broken_sets_are_refused_before_a_run(tmp_path: Path) -> None:
    write_ade(tmp_path, train=3, val=1, size=32)
    sets = {
        name: {"name": "ade", "split": split, "allow_absent": True}
        for name, split in (("train", "training"), ("val", "validation"))
    }
    encoder = {"size": None, "dim": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 32}
    values = {"scale": "mini", "data": {"root": str(tmp_path), "size": 32, **sets}, "backbone": {"encoder": encoder}}
    cfg = validate(values, FrozenKnnConfig, where="test")
    first = next((tmp_path / "annotations" / "training").iterdir())
    with Image.open(first) as label_map:
        label_map.crop((0, 0, 20, 32)).save(first)
    with pytest.raises(ValueError, match="map whose size differs from its image"):
        FrozenSegment(cfg, CPU).open()
    for path in (tmp_path / "images" / "training").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no image"):
        FrozenSegment(cfg, CPU).open()

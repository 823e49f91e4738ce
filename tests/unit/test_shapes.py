"""Shapes: generated scenes are deterministic, and their masks match their pixels."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from mae_transfer.data import Shapes, ShapesConfig
from mae_transfer.data.shapes import SOLIDS


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, again, other = (
        ShapesConfig(size=32).open(),
        ShapesConfig(size=32, length=7).open(),
        ShapesConfig(size=32, seed=1).open(),
    )
    assert np.array_equal(first.scene(3).image, again.scene(3).image)
    assert not np.array_equal(first.scene(3).image, first.scene(4).image)
    assert not np.array_equal(first.scene(3).image, other.scene(3).image)


def test_a_sample_is_the_picture_and_its_largest_object() -> None:
    shapes = ShapesConfig(size=48).open()
    for index in range(20):
        sample, scene = shapes.read(index), shapes.scene(index)
        assert sample.image.shape == (3, 48, 48)
        areas = [(scene.instances == k + 1).sum() for k in range(len(scene.kinds))]
        assert sample.label == scene.label == scene.kinds[int(np.argmax(areas))]


def test_boxes_are_tight_around_the_visible_pixels() -> None:
    for index in range(20):
        scene = ShapesConfig(size=64).open().scene(index)
        for k, (x0, y0, x1, y1) in enumerate(scene.boxes, start=1):
            mask = scene.instances == k
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            if mask.any():
                assert mask[y0].any()
                assert mask[y1 - 1].any()
                assert mask[:, x0].any()
                assert mask[:, x1 - 1].any()


def test_a_hidden_object_has_an_empty_box() -> None:
    scene = ShapesConfig(size=16).open().scene(0)
    hidden = scene._replace(instances=np.where(scene.instances == 1, 0, scene.instances))
    assert hidden.boxes[0].tolist() == [0, 0, 0, 0]


def test_the_class_mask_follows_the_instances() -> None:
    scene = ShapesConfig(size=64).open().scene(5)
    assert np.array_equal(scene.classes == 0, scene.instances == 0)
    for k, kind in enumerate(scene.kinds, start=1):
        assert set(scene.classes[scene.instances == k].tolist()) <= {kind + 1}


def test_objects_hide_each_other_in_some_scenes() -> None:
    def touching(instances: np.ndarray) -> bool:
        pairs = np.stack([instances[:, :-1], instances[:, 1:]])
        return bool(((pairs[0] != pairs[1]) & (pairs > 0).all(axis=0)).any())

    assert sum(touching(ShapesConfig(size=64).open().scene(i).instances) for i in range(30)) >= 10


def test_a_mask_marks_where_the_picture_changes() -> None:
    """Without the top object, the scene differs only inside its mask and its shadow."""
    alone, crowded = ShapesConfig(size=64, objects=(1, 1)).open(), ShapesConfig(size=64, objects=(4, 4)).open()
    assert np.mean([(alone.scene(i).instances > 0).mean() for i in range(20)]) < np.mean(
        [(crowded.scene(i).instances > 0).mean() for i in range(20)]
    )
    scene = alone.scene(0)
    inside, ground = scene.image[scene.instances > 0].astype(float), scene.image[scene.instances == 0].astype(float)
    assert np.abs(inside.mean(axis=0) - ground.mean(axis=0)).max() > 10


def test_every_class_is_the_label_of_some_scene() -> None:
    counts = np.bincount([ShapesConfig(size=24).open().read(i).label for i in range(400)], minlength=len(SOLIDS))
    assert counts.min() >= 15


@pytest.mark.parametrize("name", SOLIDS)
def test_every_solid_fits_the_unit_circle_and_is_a_distance(name: str) -> None:
    v, u = np.meshgrid(*[np.linspace(-1.3, 1.3, 261, dtype=np.float32)] * 2, indexing="ij")
    distance = SOLIDS[name](u, v)
    assert np.hypot(u, v)[distance < 0].max() <= 1.0
    assert 0.2 < (distance < 0).sum() / (np.hypot(u, v) <= 1).sum() < 0.95
    if name != "flower":  # its petals are no exact distance
        assert max(np.abs(np.diff(distance, axis=axis)).max() for axis in (0, 1)) < 0.0101


def test_the_same_scene_at_another_size_is_the_same_scene() -> None:
    small, large = ShapesConfig(size=32).open().scene(2), ShapesConfig(size=128).open().scene(2)
    shrunk = large.image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 8


@pytest.mark.parametrize("options", [{"size": 4}, {"length": 0}, {"objects": (3, 2)}, {"objects": (0, 2)}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ShapesConfig(**options).open()


def test_a_set_is_drawn_once_and_then_read_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ShapesConfig(size=16, length=300, seed=77, objects=(1, 3)).open()
    image = first.scene(280).image
    monkeypatch.setattr(Shapes, "draw", lambda self, index: pytest.fail("drawn again"))
    for other in (ShapesConfig(size=16, length=300, seed=77, objects=(1, 3)).open(), pickle.loads(pickle.dumps(first))):
        assert np.array_equal(other.scene(280).image, image)


def test_a_damaged_file_or_a_missing_folder_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path))
    image = ShapesConfig(size=16, length=5).open().scene(2).image
    (file,) = (tmp_path / "shapes").rglob("*.npy")
    for content in (b"", b"no array", file.read_bytes()[:-100]):
        file.write_bytes(content)
        assert np.array_equal(ShapesConfig(size=16, length=5).open().scene(2).image, image)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path / "file"))
    assert np.array_equal(ShapesConfig(size=16, length=5).open().scene(2).image, image)


def test_a_set_too_large_to_keep_is_drawn_scene_by_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path))
    scene = ShapesConfig(size=16, length=10**9).open().scene(2)
    assert np.array_equal(scene.image, ShapesConfig(size=16, length=5).open().draw(2).image)
    assert not list(tmp_path.iterdir())


def test_the_number_of_kinds_is_an_option() -> None:
    few = ShapesConfig(size=16, length=50, objects=(1, 1), kinds=3).open()
    assert few.classes == tuple(SOLIDS)[:3]
    assert set(few.labels()) == {0, 1, 2}
    with pytest.raises(ValueError, match="kinds"):
        ShapesConfig(kinds=11).open()

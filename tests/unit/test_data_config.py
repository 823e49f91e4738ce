"""DataConfig and what is opened from it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mae_transfer.config import validate
from mae_transfer.data import (
    DataConfig,
    Folder,
    LabelledDataConfig,
    Shapes,
    ShapesConfig,
    evaluation_views,
    open_labelled,
    open_sources,
    training_views,
)
from mae_transfer.interfaces import ViewSpec


def config(**values: Any) -> DataConfig:
    return validate(values, DataConfig, where="test")


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_the_root_fills_in_for_sources_that_take_one(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/2.png")
    train, val = open_sources(config(root=str(tmp_path), val={"name": "folder", "split": "val"}))
    assert isinstance(train, Folder)
    assert val is not None
    assert len(train) == len(val) == 2
    shapes, none = open_sources(config(root=str(tmp_path), train={"name": "shapes", "size": 16, "length": 3}))
    assert isinstance(shapes, Shapes)
    assert none is None


@pytest.mark.parametrize(("inside", "root"), [("set", "."), ("set/train", ".."), (".", "set"), (".", "set.zip")])
def test_a_data_set_has_one_name_and_digest_however_its_folder_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, root: str
) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / inside)
    assert config(root=root).name == "set"
    assert config(root=root).digest() == config(root="/elsewhere/set").digest()


def test_a_missing_root_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set data\.root"):
        open_sources(config())


def test_classes_that_differ_between_splits_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/2.png")
    sets = {
        "root": str(tmp_path),
        "train": {"name": "folder", "split": "train"},
        "val": {"name": "folder", "split": "val"},
    }
    with pytest.raises(ValueError, match=r"\['b', 'c'\]"):
        open_labelled(validate(sets, LabelledDataConfig, where="test"))
    assert [len(source) for source in open_sources(config(**sets))] == [2, 2]  # pretraining reads no label


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"name": "shape"}}, "did you mean 'shapes'"),
        ({"train": {"name": "shapes", "lenght": 5}}, "did you mean 'length'"),
        ({"train": {"name": "folder", "splitt": "train"}}, "did you mean 'split'"),
        ({"augmentation": {"name": "random_crop", "jiter": 0.4}}, "did you mean 'jitter'"),
        ({"crops_per_imag": 2}, "did you mean 'crops_per_image'"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_misspelt_keys_propose_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_views_have_the_configured_size_and_what_the_target_adds() -> None:
    cfg = config(size=32, augmentation={"name": "random_crop", "scale": (0.5, 1.0), "jitter": 0.4})
    image = ShapesConfig(size=40).open().read(0).image
    for augmentation in (
        training_views(cfg, [ViewSpec(16, "lanczos")]),
        evaluation_views(cfg, [ViewSpec(16, "lanczos")]),
    ):
        assert [view.shape[-1] for view in augmentation(image)] == [32, 16]


def test_the_policy_follows_on_error() -> None:
    assert config(on_error="skip", max_unreadable=7).unreadable().limit == 7
    assert config().unreadable().limit == 0

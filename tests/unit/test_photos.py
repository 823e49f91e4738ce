"""Photos: every organisation of an image folder gives a training part and a held-out part."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from mae_transfer.config import load
from mae_transfer.data import open_sources
from mae_transfer.data.folders import Photos, PhotosConfig
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.workdir import open_work_dir

CONFIG = Path(__file__).parents[2] / "configs/pretrain/own_photos_one_gpu.py"
SPLIT = [f"{split}/{name}" for split in ("train", "val") for name in ("cat/a.jpg", "cat/b.jpg", "dog/c.png")]
CLASSES = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(30)]
FLAT = [f"{i}.jpg" for i in range(60)]
NESTED = [f"{i % 3}/{i % 5}/{i}.jpg" for i in range(60)]


def fill(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(root / name)
    return root


def paths(photos: Photos) -> list[str]:
    return [photos.where(i) for i in range(len(photos))]


@pytest.mark.parametrize("names", [CLASSES, FLAT, NESTED, [f"train/{name}" for name in CLASSES]])
def test_without_a_validation_folder_a_fixed_part_is_held_out(tmp_path: Path, names: list[str]) -> None:
    root = str(fill(tmp_path, names))
    train, val = (
        PhotosConfig(root=root, split="train", held_out=0.1).open(),
        PhotosConfig(root=root, split="val", held_out=0.1).open(),
    )
    assert (len(train), len(val)) == (54, 6)
    assert sorted(paths(train) + paths(val)) == sorted(str(tmp_path / name) for name in names)
    assert paths(val) == paths(PhotosConfig(root=root, split="val", held_out=0.1).open())
    assert train.read(0).label == -1


def test_a_split_is_read_as_it_is(tmp_path: Path) -> None:
    root = str(fill(tmp_path, SPLIT))
    for split in ("train", "val"):
        assert paths(PhotosConfig(root=root, split=split).open()) == [
            str(tmp_path / name) for name in SPLIT if name.startswith(split)
        ]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 10, 11])
def test_a_few_images_give_two_non_empty_parts(tmp_path: Path, count: int) -> None:
    root = str(fill(tmp_path, FLAT[:count]))
    parts = [
        len(PhotosConfig(root=root, split=split, held_out=share).open())
        for share in (0.02, 0.99)
        for split in ("train", "val")
    ]  # type: ignore[arg-type]
    assert parts == [count - 1, 1, 1, count - 1]


def test_folders_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"contains one image"):
        PhotosConfig(root=str(fill(tmp_path, FLAT[:1]))).open()
    with pytest.raises(ValueError, match=r"data\.root"):
        PhotosConfig(root=str(tmp_path / "nowhere")).open()


def test_it_can_be_sent_to_workers(tmp_path: Path) -> None:
    photos = PhotosConfig(root=str(fill(tmp_path, FLAT))).open()
    assert paths(pickle.loads(pickle.dumps(photos))) == paths(photos)


def test_the_recipe_takes_a_folder_and_nothing_else(tmp_path: Path) -> None:
    cfg = load(CONFIG, PretrainConfig, overrides=[f"data.root={fill(tmp_path, NESTED)}"])
    train, val = open_sources(cfg.data)
    assert val is not None
    assert (len(train), len(val)) == (59, 1)


@pytest.mark.parametrize(("names", "inside", "outside"), [
    (FLAT, "runs/a", "../runs/a"),
    ([f"train/{name}" for name in CLASSES], "train/runs/a", "runs/a"),
    (SPLIT, "val/a", "runs/a"),
])  # fmt: skip
def test_pictures_of_a_run_cannot_become_its_images(
    tmp_path: Path, names: list[str], inside: str, outside: str
) -> None:
    root = fill(tmp_path / "photos", names)
    cfg = load(CONFIG, PretrainConfig, overrides=[f"data.root={root}"])
    with pytest.raises(ValueError, match=r"--work-dir \S+ lies in \S+, the folder of data\.(train|val): "):
        open_work_dir(root / inside, cfg, resume=False)
    open_work_dir(root / outside, cfg, resume=False)
    assert not (root / inside).exists()

"""Folder: what is read, in which order, and what is said about folders that do not fit."""

import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mae_transfer.data import Folder, UnreadableImage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(["train/cat/b.jpg", "train/cat/a.JPEG", "train/ant/deep/er/x.png", "train/dog/é.png", "val/cat/1.jpg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + index, 3), "red").save(tmp_path / name)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._b.jpg").write_text("a Mac's twin")
    return tmp_path


def test_classes_and_files_are_sorted_and_labelled(root: Path) -> None:
    folder = Folder(root=str(root), split="train")
    assert folder.classes == ("ant", "cat", "dog")
    assert [Path(folder.where(i)).name for i in range(len(folder))] == ["x.png", "a.JPEG", "b.jpg", "é.png"]
    assert [folder.read(i).label for i in range(len(folder))] == [0, 1, 1, 2]
    assert folder.read(2).image.shape == (3, 3, 4)


def test_unlabelled_images_are_found_at_any_depth(root: Path) -> None:
    folder = Folder(root=str(root), labelled=False)
    assert len(folder) == 5
    assert folder.classes == ()
    assert {folder.read(i).label for i in range(5)} == {-1}


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/train").symlink_to(root / "train")
    assert len(Folder(root=str(tmp_path / "linked"), split="train")) == 4


def test_a_missing_root_names_it_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*data\.root"):
        Folder(root=str(tmp_path / "nowhere"))


def test_a_missing_split_lists_those_there_are(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'.*train, val"):
        Folder(root=str(root), split="test")


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "train/emu").mkdir()
    with pytest.raises(ValueError, match=r"train/emu holds no image"):
        Folder(root=str(root), split="train")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        Folder(root=str(tmp_path), labelled=False)


def test_a_flat_folder_read_as_classes_tells_the_option(root: Path) -> None:
    with pytest.raises(ValueError, match="labelled=False"):
        Folder(root=str(root / "val/cat"))


def test_a_broken_file_is_named(root: Path) -> None:
    (root / "val/cat/0.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UnreadableImage, match=r"val/cat/0\.jpg"):
        Folder(root=str(root), split="val").read(0)


def test_it_travels_to_a_worker_small(root: Path) -> None:
    folder = Folder(root=str(root), split="train")
    before = len(pickle.dumps(folder))
    for i in range(100):
        shutil.copy(root / "train/cat/b.jpg", root / f"train/cat/copy{i}.jpg")
    more = Folder(root=str(root), split="train")
    path_length = len(more.where(5))
    assert len(pickle.dumps(more)) - before < 100 * (path_length + 20)
    assert pickle.loads(pickle.dumps(more)).where(60) == more.where(60)

"""Folder: which files are read, in which order, and the errors for unsuitable folders."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mae_transfer.data import Crops, EvalKeys, FolderConfig, RandomCrop, Unreadable, UnreadableImage, batches
from mae_transfer.data.reports import report
from mae_transfer.interfaces import ViewSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(
        ["train/cat/b.jpg", "train/cat/a.JPEG", "train/ant/deep/er/x.png", "train/dog/é.png", "val/cat/1.jpg"]
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + index, 3), "red").save(tmp_path / name)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._b.jpg").write_text("a Mac's twin")
    return tmp_path


def test_classes_and_files_are_sorted_and_labelled(root: Path) -> None:
    folder = FolderConfig(root=str(root), split="train").open()
    assert folder.classes == ("ant", "cat", "dog")
    assert [Path(folder.where(i)).name for i in range(len(folder))] == ["x.png", "a.JPEG", "b.jpg", "é.png"]
    assert [folder.read(i).label for i in range(len(folder))] == [0, 1, 1, 2]
    assert folder.read(2).image.shape == (3, 3, 4)


def test_unlabelled_images_are_found_at_any_depth(root: Path) -> None:
    folder = FolderConfig(root=str(root), labelled=False).open()
    assert len(folder) == 5
    assert folder.classes == ()
    assert {folder.read(i).label for i in range(5)} == {-1}


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/train").symlink_to(root / "train")
    assert len(FolderConfig(root=str(tmp_path / "linked"), split="train").open()) == 4


def test_a_missing_root_names_it_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*data\.root"):
        FolderConfig(root=str(tmp_path / "nowhere")).open()


def test_a_missing_split_lists_the_existing_ones(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'.*train, val"):
        FolderConfig(root=str(root), split="test").open()


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "train/emu").mkdir()
    with pytest.raises(ValueError, match=r"train/emu contains no decodable image"):
        FolderConfig(root=str(root), split="train").open()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no decodable image"):
        FolderConfig(root=str(tmp_path), labelled=False).open()


def test_a_flat_folder_read_as_classes_names_the_option(root: Path) -> None:
    with pytest.raises(ValueError, match="labelled=False"):
        FolderConfig(root=str(root / "val/cat")).open()


def test_a_broken_file_is_named(root: Path) -> None:
    (root / "val/cat/0.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UnreadableImage, match=r"val/cat/0\.jpg"):
        FolderConfig(root=str(root), split="val").open().read(0)


def test_its_pickle_is_small(root: Path) -> None:
    folder = FolderConfig(root=str(root), split="train").open()
    before = len(pickle.dumps(folder))
    for i in range(100):
        shutil.copy(root / "train/cat/b.jpg", root / f"train/cat/copy{i}.jpg")
    more = FolderConfig(root=str(root), split="train").open()
    path_length = len(more.where(5))
    assert len(pickle.dumps(more)) - before < 100 * (path_length + 20)
    assert pickle.loads(pickle.dumps(more)).where(60) == more.where(60)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPE", "tga", "jpx", "pnm"])
def test_every_suffix_that_the_decoder_reads_is_found(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
    assert len(FolderConfig(root=str(tmp_path), labelled=False).open()) == 1
    assert FolderConfig(root=str(tmp_path), labelled=False).open().read(0).image.shape == (3, 4, 4)


def test_ignored_files_are_counted_and_reported_once(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.cache_clear()
    for name in ("train/cat/1.heic", "train/dog/2.HEIC", "train/stray.jpg"):
        (root / name).write_bytes(b"?")
    os.mkfifo(root / "train/cat/pipe.jpg")
    monkeypatch.setenv("RANK", "1")
    FolderConfig(root=str(root), split="train").open()
    assert not caplog.records, "only the first rank reports"
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        assert len(FolderConfig(root=str(root), split="train").open()) == 4
    (message,) = caplog.messages
    assert message == (
        f"{root / 'train'}: ignored 5 files (2 x .heic, 1.heic; 1 x .jpg outside class folders, stray.jpg; "
        "1 x .txt, notes.txt; 1 x .jpg that is not a regular file, pipe.jpg)"
    )


def test_a_folder_without_images_is_refused_with_its_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"?")
    with pytest.raises(
        ValueError, match=r"contains no decodable image, only 1 files \(1 x \.heic, a\.heic\): add images"
    ):
        FolderConfig(root=str(tmp_path), labelled=False).open()


def test_folders_named_like_images_are_read_and_dead_links_are_reported(tmp_path: Path) -> None:
    (tmp_path / "set.jpg").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "set.jpg" / "a.png")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    folder = FolderConfig(root=str(tmp_path), labelled=False).open()
    assert [Path(folder.where(k)).name for k in range(len(folder))] == ["dead.jpg", "a.png"]
    with pytest.raises(FileNotFoundError, match=r"dead\.jpg"):
        folder.read(0)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/a.png")
    assert len(FolderConfig(root="~/photos", labelled=False).open()) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_files_are_reported_from_the_workers_once_each(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """PIL cannot read the EXIF of 20 images: all are used, the first 10 and the 16th are reported."""
    report.cache_clear()
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:02d}.png", exif=b"\0\x08\0\x02\x01\x12\0\x03")
    caplog.set_level(logging.WARNING)
    source, policy = FolderConfig(root=str(tmp_path), labelled=False).open(), Unreadable()
    crops = Crops(source=source, seed=0, augmentation=RandomCrop().build((ViewSpec(8, "bicubic"),)))
    for _ in range(2):
        sweep = EvalKeys(images=20, batch=4, rank=0, world=1)
        assert sum(len(batch.image) for batch in batches(crops, sweep, workers=workers, unreadable=policy)) == 20
    assert len(policy.odd) == 20
    assert not policy.files
    named = [message for message in caplog.messages if message.endswith("(its pixels are used)")]
    assert len(named) == len(set(named)) == 11
    assert sum(message.startswith("16 unusual files are used anyway") for message in caplog.messages) == 1


def test_a_root_of_none_is_that_of_the_group() -> None:
    assert FolderConfig(root=None).completed({"root": "/data/x"}).root == "/data/x"
    assert FolderConfig(root="/mine").completed({"root": "/data/x"}).root == "/mine"

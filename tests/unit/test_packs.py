"""Packs of images: the same samples as the folder, files of other tools, and errors that name what is wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.cli.main import main
from mae_transfer.data import (
    Crops,
    DataConfig,
    EvalKeys,
    Folder,
    FolderConfig,
    Order,
    PhotosConfig,
    RandomCrop,
    TrainKeys,
    Unreadable,
    UnreadableImage,
    batches,
    packs,
)
from mae_transfer.data.decode import read_file
from mae_transfer.data.packs import index_of, open_pack, write_index, write_pack
from mae_transfer.data.sources import digest_of_times, fingerprint, listing_of
from mae_transfer.interfaces import ViewSpec
from mae_transfer.suite.store.data import DataSets
from mae_transfer.tasks.robustness import class_names

NAMES = (
    "train/cat/b.jpg", "train/cat/a.JPEG", "train/cat.x/1.png", "train/ant/deep/er/x.png", "train/dog/é 雪.png",
    "train/dog/line\nbreak.png", "train/dog/back\\slash.png", "train/dog-2/~$'\".png", "train/Emu/..x.png/1.png",
    "train/Emu/2.png", "val/cat/1.jpg", "val/dog/2.jpg", "val/ant/3.jpg",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for index, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (9 + index, 8, 3), np.uint8)).save(root / name)
    (root / "train/cat/notes.txt").write_text("not an image")
    (root / "train/.hidden").mkdir()
    shutil.copy(root / "val/cat/1.jpg", root / "train/.hidden/1.jpg")
    return root


@pytest.fixture
def pack(root: Path) -> Path:
    path = root.with_name("set.zip")
    write_pack(root, path)
    return path


def samples(source: Any) -> list[tuple[bytes, int, str]]:
    return [
        (sample.image.numpy().tobytes(), sample.label, source.where(index).partition("set")[2].removeprefix(".zip"))
        for index in range(len(source))
        for sample in [source.read(index)]
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"split": "train"}, {"split": "val"}, {"labelled": False}, {"split": "train", "labelled": False}, {},
        {"split": "train/ant"}, {"split": "train/cat", "labelled": False},
    ],
)  # fmt: skip
def test_a_pack_is_the_folder(root: Path, pack: Path, options: dict[str, Any]) -> None:
    folder, packed = (FolderConfig(root=str(path), **options).open() for path in (root, pack))
    assert samples(folder) == samples(packed)
    assert folder.classes == packed.classes
    assert folder.labels().tolist() == packed.labels().tolist()
    assert folder.labels().dtype == packed.labels().dtype
    assert fingerprint(folder).saved().keys() == fingerprint(packed).saved().keys()
    assert fingerprint(folder)[:-1] == fingerprint(packed)[:-1]
    assert torch.equal(fingerprint(folder).listing, fingerprint(packed).listing)
    assert samples(pickle.loads(pickle.dumps(packed))) == samples(folder)


def test_images_outside_the_classes_are_left_out_of_the_fingerprint(root: Path, pack: Path) -> None:
    shutil.copy(root / "val/cat/1.jpg", root / "train/stray.jpg")
    pack.unlink()
    write_pack(root, pack)
    for options, count in (({"labelled": False}, 10), ({}, 9)):
        folder, packed = (FolderConfig(root=str(path), split="train", **options).open() for path in (root, pack))
        assert len(packed) == count
        assert fingerprint(folder)[:-1] == fingerprint(packed)[:-1]


@pytest.mark.parametrize("listed", [True, False])
def test_the_listing_of_the_index_saves_making_one(
    root: Path, pack: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    packed = FolderConfig(root=str(pack), split="train" if listed else "train/cat", labelled=False).open()
    made = []
    monkeypatch.setattr(packs, "listing_of", lambda *files: made.append(files) or listing_of(*files))
    fingerprint(packed)
    assert len(made) == (not listed)


def drop_listings(index: Path) -> None:
    arrays = dict(np.load(index))
    del arrays["listings"]
    with index.open("wb") as file:
        np.savez(file, **arrays)


def damage_listings(index: Path) -> None:
    listings = np.load(index)["listings"].tobytes()
    content = bytearray(index.read_bytes())
    content[content.index(listings) + 3] ^= 1
    index.write_bytes(content)


@pytest.mark.parametrize("spoil", [drop_listings, damage_listings])
def test_damaged_listings_are_named(pack: Path, spoil: Any) -> None:
    packed = FolderConfig(root=str(pack), split="train").open()
    spoil(index_of(pack))
    with pytest.raises(ValueError, match=r"set\.zip\.index cannot be used .*: write its index with"):
        fingerprint(packed)


def test_an_index_that_is_rewritten_while_a_run_starts_is_noticed(root: Path, pack: Path) -> None:
    packed = FolderConfig(root=str(pack), split="train").open()
    pack.unlink()
    (root / "val/cat/1.jpg").unlink()
    write_pack(root, pack)
    with pytest.raises(ValueError, match=r"set\.zip\.index has changed since it was opened: start again"):
        fingerprint(packed)


@pytest.mark.parametrize("split", ["train", "val"])
def test_photos_are_split_alike(root: Path, pack: Path, split: Any) -> None:
    for missing in (False, True):
        if missing:  # a small part is held out
            shutil.rmtree(root / "val")
            pack.unlink()
            write_pack(root, pack)
        folder, packed = (PhotosConfig(root=str(path), split=split).open() for path in (root, pack))
        assert samples(folder) == samples(packed)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_those_of_the_folder(root: Path, pack: Path, workers: int) -> None:
    def three(path: Path, workers: int) -> list[Any]:
        source = FolderConfig(root=str(path), split="train").open()
        source.read(0)  # opens the file in this process
        crops = Crops(source=source, seed=3, augmentation=RandomCrop().build((ViewSpec(8, "bicubic"),)))
        feed = batches(crops, TrainKeys(order=Order(images=len(source), batch=4, seed=3)), workers=workers)
        found = [next(feed) for _ in range(3)]
        feed.close()
        return found

    for one, other in zip(three(root, 0), three(pack, workers), strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.index, other.index)


def test_each_process_opens_the_file_itself(pack: Path) -> None:
    source = FolderConfig(root=str(pack), split="train").open()
    source.read(0)
    here = source._pack._file()  # type: ignore[attr-defined]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put((source._pack._file(), source.read(1).label)))  # type: ignore[attr-defined]
    child.start()
    there, label = queue.get()
    child.join()
    assert (there != here, label) == (True, source.read(1).label)


def test_other_tools_read_a_pack_and_make_one(root: Path, pack: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out/set")
    unpacked = FolderConfig(root=str(tmp_path / "out/set"), split="train").open()
    assert samples(unpacked) == samples(FolderConfig(root=str(pack), split="train").open())
    made = shutil.make_archive(str(tmp_path / "made/set"), "zip", root)  # compresses
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(tmp_path / "stored.zip", "w") as stored:
        for name in reversed(archive.namelist()):
            with stored.open(name, "w", force_zip64=True) as member:
                member.write(archive.read(name))
    write_index(tmp_path / "stored.zip")
    packed = FolderConfig(root=str(tmp_path / "stored.zip"), split="train").open()
    assert [sample[:2] for sample in samples(packed)] == [sample[:2] for sample in samples(unpacked)]


def test_the_kept_features_of_a_pack_follow_its_content(root: Path, pack: Path) -> None:
    before = digest_of_times(FolderConfig(root=str(pack), split="val").open())
    pack.unlink()
    write_pack(root, pack)
    assert digest_of_times(FolderConfig(root=str(pack), split="val").open()) == before
    data = bytearray((root / "val/cat/1.jpg").read_bytes())
    data[-3] ^= 1
    (root / "val/cat/1.jpg").write_bytes(data)
    pack.unlink()
    write_pack(root, pack)
    assert digest_of_times(FolderConfig(root=str(pack), split="val").open()) != before


def without_flag(path: Path) -> Path:
    """Remove the flag of UTF-8 names from a zip, as Info-ZIP writes one."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            data[member.header_offset + 7] &= ~8
        at = archive.start_dir
        for member in archive.infolist():
            data[at + 9] &= ~8
            at += 46 + len(member.filename.encode()) + len(member.extra) + len(member.comment)
    path.write_bytes(data)
    return path


def test_names_of_info_zip_are_those_of_the_folder(tmp_path: Path) -> None:
    for index, name in enumerate(("zebra", "ärger", "日本", "écran")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "set" / name / "é.png")
    write_pack(tmp_path / "set", tmp_path / "set.zip")
    write_index(without_flag(tmp_path / "set.zip"))
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert "ärger/é.png" not in archive.namelist()
    folder, packed = (FolderConfig(root=str(tmp_path / name)).open() for name in ("set", "set.zip"))
    assert samples(folder) == samples(packed)
    assert folder.classes == packed.classes
    assert fingerprint(folder).digest == fingerprint(packed).digest


def test_a_name_of_another_encoding_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = without_flag(members(tmp_path / "x.zip", "ü/1.jpg"))
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"u\x81"))
    with pytest.raises(ValueError, match=r"x\.zip: the name b'u\\x81/1\.jpg' is not UTF-8: unpack the zip, and pack"):
        write_index(path)


def test_the_zip_is_written_beside_its_folder_however_the_folder_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.with_name("link").symlink_to(root / "train", target_is_directory=True)
    for inside, name in ((root, "."), (root / "train", ".."), (root.parent, "link/.."), (root.parent, "set/train/..")):
        monkeypatch.chdir(inside)
        assert main(["data", "pack", "--root", name]) == 0
        assert f"--set data.root={root}.zip " in capsys.readouterr().out
        assert sorted(left(root.parent)) == ["set.zip", "set.zip.index"]
        assert not list(left(inside)) or inside == root.parent
        root.with_name("set.zip").unlink()


def test_the_set_keeps_its_name_and_the_command_prints_the_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "pack", "--root", str(root)])
    assert f"ready: --set data.root={root}.zip   (12 images)" in capsys.readouterr().out
    assert DataConfig(root=f"{root}.zip").name == "set"
    index_of(root.with_name("set.zip")).unlink()
    main(["data", "pack", "--root", f"{root}.zip"])
    assert len(FolderConfig(root=f"{root}.zip", split="val").open()) == 3


def test_a_damaged_member_is_named_and_follows_the_policy(pack: Path) -> None:
    source = FolderConfig(root=str(pack), split="val").open()
    assert isinstance(source, Folder)
    with pack.open("r+b") as file:
        for member, at in ((9, 0), (10, 60)):  # a member's header, another's pixels
            file.seek(int(source._pack.offsets[member]) + at)  # type: ignore[attr-defined]
            file.write(b"\0" * 40)
    with pytest.raises(UnreadableImage, match=r"set\.zip/val/ant/3\.jpg is damaged"):
        source.read(0)
    with pytest.raises(UnreadableImage, match=r"set\.zip/val/cat/1\.jpg"):
        source.read(1)
    crops = Crops(source=source, seed=0, augmentation=RandomCrop().build((ViewSpec(8, "bicubic"),)))
    policy = Unreadable(limit=2)
    found = list(batches(crops, EvalKeys(images=3, batch=3), unreadable=policy))
    assert [batch.index.tolist() for batch in found] == [[2]]
    assert set(policy.files) == {0, 1}


def test_damaged_pixels_that_a_decoder_would_accept_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for index in range(3):
        Image.new("RGB", (100, 100)).save(tmp_path / f"set/{index}.bmp")
    write_pack(tmp_path / "set", tmp_path / "set.zip")
    source: Any = FolderConfig(root=str(tmp_path / "set.zip"), labelled=False).open()
    with (tmp_path / "set.zip").open("r+b") as file:
        file.seek(int(source._pack.offsets[0]) + 1000)
        file.write(b"\7" * 20_000)
    with pytest.raises(UnreadableImage, match=r"set\.zip/0\.bmp is damaged: its 30054 bytes, .* its checksum"):
        source.read(0)
    assert not source.read(1).image.any()


def truncate(pack: Path) -> None:
    pack.write_bytes(pack.read_bytes()[:-100])


def replace(pack: Path) -> None:
    """Put another pack of the same size in the pack's place."""
    data = pack.read_bytes()
    pack.write_bytes(data.replace(b"val/ant", b"val/bat"))


def lose(pack: Path) -> None:
    index_of(pack).unlink()


def break_index(pack: Path) -> None:
    index_of(pack).write_bytes(index_of(pack).read_bytes()[:-200])


def keep_arrays(*kept: str, version: int | None = None) -> Any:
    """Return a function that removes all other arrays from an index, and may change its version."""

    def spoil(pack: Path) -> None:
        arrays = dict(np.load(index_of(pack)))
        arrays = {key: arrays[key] for key in kept or arrays} | ({} if version is None else {"version": version})
        with index_of(pack).open("wb") as file:
            np.savez(file, **arrays)

    return spoil


def one_array(pack: Path) -> None:
    with index_of(pack).open("wb") as file:
        np.save(file, np.arange(3))


def set_in_directory(path: Path, at: int, value: bytes) -> None:
    """Change bytes of the first entry in a zip's directory."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + at : entry + at + len(value)] = value
    path.write_bytes(content)


def unknown_version(pack: Path) -> None:
    set_in_directory(index_of(pack), 6, bytes([90, 0]))


def encrypted(pack: Path) -> None:
    set_in_directory(index_of(pack), 8, bytes([1, 0]))


def not_a_zip(pack: Path) -> None:
    pack.write_bytes(b"text")
    lose(pack)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"is not the pack of its index .*truncated or was replaced: copy it again"),
        (replace, r"is not the pack of its index"),
        (lose, r"no index set\.zip\.index beside it: write its index with .*pack --root"),
        (break_index, r"set\.zip\.index cannot be used .*: write its index with"),
        (keep_arrays("version"), r"set\.zip\.index cannot be used \(.*size.*\): write its index with"),
        (keep_arrays(version=3), r"set\.zip\.index cannot be used \(version 3, not 4\): write its index with"),
        (one_array, r"set\.zip\.index cannot be used .*: write its index with"),
        (unknown_version, r"set\.zip\.index cannot be used \(zip file version 9\.0\): write its index with"),
        (encrypted, r"set\.zip\.index cannot be used \(.*encrypted.*\): write its index with"),
        (not_a_zip, r"has no index"),
    ],
)
def test_a_pack_that_is_not_whole_is_refused(pack: Path, spoil: Any, message: str) -> None:
    spoil(pack)
    with pytest.raises(ValueError, match=message):
        FolderConfig(root=str(pack), split="val").open()


def test_a_zip_of_an_unknown_version_is_refused(pack: Path) -> None:
    set_in_directory(pack, 6, bytes([90, 0]))
    with pytest.raises(ValueError, match=r"set\.zip is not a zip, or it is truncated \(zip file version 9\.0\)"):
        write_index(pack)


def test_an_index_of_another_pack_is_refused(root: Path, pack: Path, tmp_path: Path) -> None:
    (root / "val/cat/new.jpg").write_bytes((root / "val/cat/1.jpg").read_bytes())
    write_pack(root, tmp_path / "other.zip")
    shutil.copy(index_of(tmp_path / "other.zip"), index_of(pack))
    with pytest.raises(ValueError, match="is not the pack of its index"):
        FolderConfig(root=str(pack), split="val").open()


def members(path: Path, *names: str, method: int = zipfile.ZIP_STORED, first: bytes = b"image" * 20) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            member = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))  # two calls, one time
            archive.writestr(member, first if name == names[0] else b"image" * 20, method)
    return path


def test_a_member_that_was_replaced_in_place_is_noticed_in_a_large_pack(tmp_path: Path) -> None:
    path, names = tmp_path / "x.zip", [f"{index:0100}.jpg" for index in range(600)]
    write_index(members(path, *names))
    before = path.read_bytes()
    members(path, *names, first=b"other" * 20)
    assert path.read_bytes()[-(1 << 16) :] == before[-(1 << 16) :]
    with pytest.raises(ValueError, match=r"x\.zip .* is not the pack of its index"):
        open_pack(path)


def test_names_of_members_are_relative_and_ignored_ones_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = members(tmp_path / "x.zip", "./", "./a/", "./a/1.jpg", "b/1.jpg", "b/._1.jpg", "b/./2.jpg", "b/notes.txt")
    assert write_index(path) == 2
    assert "x.zip: ignored 3 files (2 x .jpg that is hidden, b/._1.jpg; 1 x .txt, b/notes.txt)" in caplog.text
    pack = open_pack(path)
    assert [pack.name(member) for member in range(len(pack))] == ["a/1.jpg", "b/1.jpg"]
    assert pack.subfolders("") == ["a", "b"]
    assert pack.read(0) == b"image" * 20
    with pytest.raises(ValueError, match=r"y\.zip: the name /train/b/1\.jpg starts with /: make the zip with"):
        write_index(members(tmp_path / "y.zip", "a/1.jpg", "/train/b/1.jpg"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_cannot_be_a_pack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    cases = [
        (lambda: members(path, "a/1.jpg", method=zipfile.ZIP_DEFLATED), r"a/1\.jpg is compressed.*zip -0"),
        (lambda: members(path, "a/1.jpg", "b/1.jpg", "a/1.jpg"), r"contains a/1\.jpg twice"),
        (lambda: members(path, "a/1.txt"), "contains no decodable image"),
        (lambda: path.write_bytes(members(path, "a/1.jpg").read_bytes()[:-30]), "not a zip, or it is truncated"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(ValueError, match=message):
            write_index(path)
        assert not index_of(path).exists()


def test_an_empty_class_is_named_as_in_the_folder(root: Path, tmp_path: Path) -> None:
    (root / "train/bee").mkdir()
    write_pack(root, tmp_path / "set.zip")
    for path in (root, tmp_path / "set.zip"):
        with pytest.raises(ValueError, match=r"train/bee contains no decodable image: add images or remove it"):
            FolderConfig(root=str(path), split="train").open()


def test_missing_splits_and_classes_are_named(pack: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'; its subfolders: train, val"):
        FolderConfig(root=str(pack), split="test").open()
    with pytest.raises(ValueError, match="set labelled=False"):
        FolderConfig(root=str(pack), split="val/cat").open()


def left(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if ".zip" in path.name)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "set.zip was not written .*free some space"),
        (KeyboardInterrupt(), "^$"),
    ],
)
def test_a_stopped_packing_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: str
) -> None:
    written = []

    def write(self: zipfile.ZipFile, *member: Any) -> None:
        written.append(member)
        if len(written) == 15:
            raise error
        original(self, *member)

    original = zipfile.ZipFile.writestr
    monkeypatch.setattr(zipfile.ZipFile, "writestr", write)
    with pytest.raises(type(error), match=expected):
        write_pack(root, root.with_name("set.zip"))
    assert len(written) == 15
    assert not list(left(root.parent))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_image_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A failed read, unlike a failed open, has no name of the file."""

    def failing(path: Path) -> bytes:
        if path.name == "3.jpg":
            raise OSError(number, os.strerror(number))
        return read_file(path)

    monkeypatch.setattr(packs, "read_file", failing)
    with pytest.raises(ValueError, match=rf"val/ant/3\.jpg cannot be read \({os.strerror(number)}\): repair or remove"):
        write_pack(root, root.with_name("set.zip"))
    assert not list(left(root.parent))


def test_a_pack_whose_index_cannot_be_written_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **arrays: Any) -> None:
        assert "checksums" in arrays
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match=r"set\.zip\.index was not written .*free some space"):
        write_pack(root, root.with_name("set.zip"))
    assert not list(left(root.parent))


def test_roots_of_the_command_that_do_not_fit_are_refused(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ([f"{pack}", "--to", "other.zip"], "--to other.zip is for a folder; "),
        ([f"{pack}x"], "set.zipx is neither a folder nor a zip"),
    ):
        assert main(["data", "pack", "--root", *options]) == 1
        assert message in capsys.readouterr().err


def test_unsuitable_folders_are_not_packed(root: Path, pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set\.zip already exists: remove it, or .*--to"):
        write_pack(root, pack)
    to = tmp_path / "new.zip"
    with pytest.raises(ValueError, match="is neither a folder nor a zip"):
        write_pack(tmp_path / "nowhere", to)
    (root / "train/cat/dead.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match=r"dead\.jpg cannot be read .*: repair or remove it"):
        write_pack(root, to)
    (root / "train/cat/dead.jpg").unlink()
    (Path(str(root)) / "train/cat" / "\udcff.jpg").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"not UTF-8, which a zip needs: rename it"):
        write_pack(root, to)
    assert not to.exists()
    assert not index_of(to).exists()


def test_a_suite_sees_the_same_data_in_a_pack_until_it_changes(root: Path, pack: Path, tmp_path: Path) -> None:
    sets = DataSets(tmp_path)
    of_folder, of_pack = (sets.fingerprints(DataConfig(root=str(path))) for path in (root, pack))
    assert of_folder == of_pack
    assert DataSets(tmp_path).fingerprints(DataConfig(root=str(pack))) == of_pack
    pack.unlink()
    assert DataSets(tmp_path).fingerprints(DataConfig(root=str(pack))) is None
    (root / "train/cat/b.jpg").unlink()
    write_pack(root, pack)
    assert DataSets(tmp_path).fingerprints(DataConfig(root=str(pack))) not in (None, of_pack)


def test_robustness_takes_the_order_of_the_classes_from_a_pack(root: Path, pack: Path) -> None:
    cfgs: list[Any] = [SimpleNamespace(classes=None, data=SimpleNamespace(root=str(path))) for path in (root, pack)]
    assert class_names(cfgs[0]) == class_names(cfgs[1]) == ["Emu", "ant", "cat", "cat.x", "dog", "dog-2"]


def test_one_pack_serves_both_sets_until_it_changes(root: Path, pack: Path) -> None:
    first = open_pack(pack)
    assert open_pack(pack) is first
    pack.unlink()
    (root / "val/cat/1.jpg").unlink()
    write_pack(root, pack)
    assert len(open_pack(pack)) == len(first) - 1

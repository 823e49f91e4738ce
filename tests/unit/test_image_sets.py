"""data/image_sets.py and tools/prepare_data.py on tiny sets in torchvision's layouts."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from mae_transfer.cli.data import LABELLED
from mae_transfer.cli.main import main
from mae_transfer.data.folders import FolderConfig
from mae_transfer.data.image_sets import SETS, lay_out
from mae_transfer.interfaces import MEAN_PER_CLASS


def jpeg(path: Path) -> str:
    """Write a small image whose bytes depend on its name; return the name without suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (sum(path.name.encode()) % 256, 0, 0)).save(path)
    return path.stem


def lines(path: Path, *text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")


def flowers102(root: Path) -> None:
    base = root / "flowers-102"
    for number in range(1, 7):
        jpeg(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2]})
    savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        names = [jpeg(base / "images" / f"{breed}_{i}.jpg") for breed in ("Abyssinian", "pug_dog") for i in numbers]
        lines(base / "annotations" / f"{split}.txt", *(f"{name} {1 + (name[0] == 'p')} 1 1" for name in names))


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    lines(data / "variants.txt", "707-320", "F/A-18")
    for split, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        named = [(jpeg(data / "images" / f"{i:07}.jpg"), ("707-320", "F/A-18")[i % 2]) for i in numbers]
        lines(data / f"images_variant_{split}.txt", *(f"{name} {label}" for name, label in named))


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi R8", "Ram C/V Van"], dtype=object)})
    lists = (
        ("train", 4, base / "devkit" / "cars_train_annos.mat"),
        ("test", 2, base / "cars_test_annos_withlabels.mat"),
    )
    for split, count, file in lists:
        names = [f"{jpeg(base / f'cars_{split}' / f'{i:05}.jpg')}.jpg" for i in range(1, count + 1)]
        rows = [(1 + i % 2, name) for i, name in enumerate(names)]
        savemat(file, {"annotations": np.array(rows, dtype=[("class", "O"), ("fname", "O")])})


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{jpeg(base / 'images' / kind / f'{kind}_{number}.jpg')}.jpg" for kind in ("banded", "dotted")]
        lines(base / "labels" / f"{split}1.txt", *names)


def cifar(root: Path, base: str, files: list[str], meta: str, prefix: str, names: str) -> None:
    (root / base).mkdir(parents=True)
    for number, name in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3072), dtype=np.uint8)
        (root / base / name).write_bytes(pickle.dumps({"data": pixels, prefix: [0, 1]}))
    (root / base / meta).write_bytes(pickle.dumps({names: ["cat", "dog"]}))


def cifar10(root: Path) -> None:
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    cifar(root, "cifar-10-batches-py", files, "batches.meta", "labels", "label_names")


def cifar100(root: Path) -> None:
    cifar(root, "cifar-100-python", ["train", "test"], "meta", "fine_labels", "fine_label_names")


def food101(root: Path) -> None:
    base = root / "food-101"
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        listed = {dish: [f"{dish}/{i}" for i in numbers] for dish in ("pizza", "ramen")}
        lines(base / "meta" / f"{split}.json", json.dumps(listed))
        for name in (name for names in listed.values() for name in names):
            jpeg(base / "images" / f"{name}.jpg")


def sun397(root: Path) -> None:
    base = root / "SUN397"
    lines(base / "ClassName.txt", "/a/abbey", "/c/church/indoor")
    for place in ("a/abbey", "c/church/indoor"):
        for number in range(101):
            jpeg(base / place / f"sun_{number:03}.jpg")


def eurosat(root: Path) -> None:
    for kind in ("Forest", "River"):
        for number in range(10):
            jpeg(root / "eurosat" / "2750" / kind / f"{kind}_{number}.jpg")


def caltech101(root: Path) -> None:
    for kind, count in (("BACKGROUND_Google", 1), ("ant", 32), ("yin_yang", 33)):
        for number in range(1, count + 1):
            jpeg(root / "caltech101" / "101_ObjectCategories" / kind / f"image_{number:04}.jpg")


# fixture, training and validation images, names of the two classes
FIXTURES: dict[str, tuple[Callable[[Path], None], int, int, tuple[str, str]]] = {
    "aircraft": (aircraft, 4, 2, ("707-320", "F-A-18")),
    "caltech101": (caltech101, 60, 5, ("ant", "yin_yang")),
    "cars": (cars, 4, 2, ("Audi R8", "Ram C-V Van")),
    "cifar10": (cifar10, 10, 2, ("cat", "dog")),
    "cifar100": (cifar100, 2, 2, ("cat", "dog")),
    "dtd": (dtd, 4, 2, ("banded", "dotted")),
    "eurosat": (eurosat, 16, 4, ("Forest", "River")),
    "flowers102": (flowers102, 4, 2, ("001", "002")),
    "food101": (food101, 4, 2, ("pizza", "ramen")),
    "pets": (pets, 4, 2, ("Abyssinian", "Pug Dog")),
    "sun397": (sun397, 100, 100, ("abbey", "church-indoor")),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the tiny sets, and skip checksums."""
    for name, (_, train, val, _) in FIXTURES.items():
        monkeypatch.setitem(SETS, name, SETS[name]._replace(classes=2, train=train, val=val))
    for module in ("flowers102", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5: Path(path).is_file())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", FIXTURES)
def test_a_set_becomes_folders_that_a_run_reads(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, train, val, classes = FIXTURES[name]
    make(tmp_path / "source")
    assert main(["data", name, "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{name}: {train} training and {val} validation images of 2 classes\n{SETS[name].rule}\n" in said
    assert f"customary metric: {SETS[name].metric}\n" in said
    assert f"ready: --set data.root={tmp_path} " in said
    assert said.startswith((tmp_path / "split.txt").read_text())
    sources = [FolderConfig(root=str(tmp_path), split=split).open() for split in ("train", "val")]
    assert [(source.classes, len(source)) for source in sources] == [(classes, train), (classes, val)]
    files = [Path(source.where(i)) for source in sources for i in range(len(source))]
    if "cifar" in name:
        assert {file.suffix for file in files} == {".png"}
        data = getattr(datasets, SETS[name].source)(tmp_path / "source", train=False)
        assert all(
            np.array_equal(data.data[i], sources[1].read(label).image.permute(1, 2, 0))
            for i, label in enumerate((0, 1))
        )
    else:
        assert all(file.stat().st_nlink == 2 for file in files), "links, not copies"
        assert len({file.stat().st_ino for file in files}) == train + val, "no image is in both parts"
    assert not (tmp_path / ".preparing").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["caltech101", "eurosat", "sun397"])
def test_a_drawn_split_is_fixed_and_balanced(name: str, tmp_path: Path) -> None:
    FIXTURES[name][0](tmp_path / "source")
    for root in ("one", "two"):
        lay_out(name, source=tmp_path / "source", root=tmp_path / root)
    one, two = (
        sorted(path.relative_to(tmp_path / root) for path in (tmp_path / root).rglob("*.jpg"))
        for root in ("one", "two")
    )
    assert one == two
    per_class = Counter(path.parts[1] for path in one if path.parts[0] == "train")
    assert set(per_class.values()) == {FIXTURES[name][1] // 2}
    trained = {path.relative_to("train") for path in one if path.parts[0] == "train"}
    whole = sorted(path.relative_to(path.parts[0]) for path in one)
    firsts = {
        path for kind in per_class for path in [one for one in whole if one.parts[0] == kind][: len(trained) // 2]
    }
    assert trained != firsts, "drawn, not the first ones"


def test_the_table_is_that_of_the_command_line_and_of_the_publications() -> None:
    assert tuple(SETS) == LABELLED == tuple(FIXTURES)
    assert {name for name, one in SETS.items() if one.metric == MEAN_PER_CLASS} == {
        "aircraft", "caltech101", "flowers102", "pets",
    }  # fmt: skip
    assert {name: one.train + one.val for name, one in SETS.items()} == {
        "aircraft": 10_000, "caltech101": 8_677, "cars": 16_185, "cifar10": 60_000, "cifar100": 60_000, "dtd": 5_640,
        "eurosat": 27_000, "flowers102": 8_189, "food101": 101_000, "pets": 7_349, "sun397": 2 * 50 * 397,
    }  # fmt: skip
    assert all(hasattr(datasets, one.source) for one in SETS.values())


def refused(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of an error, which leaves no folder."""
    before = {path.name for path in root.iterdir()}
    assert main(["data", name, "--root", str(root)]) == 1
    assert {path.name for path in root.iterdir()} <= before | {"source"}
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 2
    return said[0]


@pytest.mark.usefixtures("small")
def test_missing_and_half_sets_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    assert re.search(
        r"pets in .* cannot be opened \(Dataset not found\.\): add .* --download", refused("pets", tmp_path, capsys)
    )
    assert "torchvision cannot download it" in refused("cars", tmp_path, capsys)
    dtd(source)
    gone = source / "dtd" / "dtd" / "images" / "dotted" / "dotted_1.jpg"
    gone.unlink()
    assert f"dtd in {source}: 1 of 6 images are missing or empty, the first is {gone}" in refused(
        "dtd", tmp_path, capsys
    )
    (source / "dtd" / "dtd" / "labels" / "val1.txt").unlink()
    assert "val1.txt" in refused("dtd", tmp_path, capsys)
    aircraft(source)
    lines(source / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt", "0000004 Concorde")
    assert "aircraft in" in refused("aircraft", tmp_path, capsys)
    caltech101(source)
    (source / "caltech101" / "101_ObjectCategories" / "ant" / "image_0032.jpg").unlink()
    assert "60 training and 4 validation images of 2 classes instead of 60, 5 and 2" in refused(
        "caltech101", tmp_path, capsys
    )


@pytest.mark.usefixtures("small")
def test_what_is_there_is_kept_and_a_full_disk_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    food101(tmp_path / "source")

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", no_link)
        patched.setattr(shutil, "copyfile", full)
        assert re.search(
            r"\.jpg was not written \(No space left.*free some space", refused("food101", tmp_path, capsys)
        )
        patched.undo()
        patched.setattr(os, "link", no_link)
        lay_out("food101", source=tmp_path / "source", root=tmp_path)
    assert (tmp_path / "val" / "pizza" / "3.jpg").stat().st_nlink == 1
    assert f"{tmp_path / 'train'} already exists: remove it" in refused("food101", tmp_path, capsys)

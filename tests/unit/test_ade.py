"""data/ade.py and data/ade_check.py: class maps, their values and every defect of a data set in ADE20K's layout."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.config import Spec, build
from mae_transfer.data import MAP_SETS, Ade, UnreadableImage
from mae_transfer.data.ade import class_names, reduced
from mae_transfer.data.ade_check import check_ade

CAMVID = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
VALUES = np.array([[0, 1, 2], [2, 3, 255]], dtype=np.uint8)


def save(root: Path, name: str, values: np.ndarray, *, split: str = "training", mode: str | None = None) -> None:
    for folder in ("images", "annotations"):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", values.shape[::-1], (0, 0, 255)).save(root / "images" / split / f"{name}.jpg")
    drawn = Image.fromarray(values)
    (drawn.convert(mode) if mode else drawn).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path, "b", VALUES)
    save(tmp_path, "a", VALUES[::-1])
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    return tmp_path


def test_a_void_zero_is_ignored_and_one_becomes_the_first_class(root: Path) -> None:
    ade = Ade(root=str(root))
    assert ade.classes == ("sky", "road", "car")
    assert [os.path.basename(ade.where(index)) for index in range(len(ade))] == ["a.jpg", "b.jpg"]  # noqa: PTH119
    assert ade.read(1).labels.tolist() == [[255, 0, 1], [1, 2, 255]]
    assert ade.read(1).image.shape == (3, 2, 3)
    again = pickle.loads(pickle.dumps(ade))
    assert torch.equal(again.read(0).labels, ade.read(0).labels)


def test_a_zero_that_is_a_class_stays(root: Path) -> None:
    spec = Spec.model_validate({"name": "ade", "root": str(root), "classes": list("abcd"), "reduce_zero_label": False})
    ade = build(MAP_SETS, spec)
    assert ade.classes == ("a", "b", "c", "d")
    assert ade.read(1).labels.tolist() == VALUES.tolist()


def test_reduction_equals_mmsegs_rule_for_every_value() -> None:
    """0 -> 255, minus one, 254 -> 255 (mmseg, LoadAnnotations)."""
    values = np.arange(256, dtype=np.uint8)
    theirs = values.copy()
    theirs[theirs == 0] = 255
    theirs = theirs - 1
    theirs[theirs == 254] = 255
    assert np.array_equal(reduced(values, reduce_zero_label=True), theirs)


def test_a_palette_map_is_read_by_index(root: Path) -> None:
    drawn = Image.fromarray(VALUES)
    drawn.putpalette([k for value in range(256) for k in (255 - value, 7, value)])
    drawn.save(root / "annotations" / "training" / "b.png")
    assert Ade(root=str(root)).read(1).labels.tolist() == [[255, 0, 1], [1, 2, 255]]


def test_class_names_of_the_official_archive(tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice\n"
    )
    assert class_names(tmp_path) == ("wall", "building, edifice")
    assert class_names(tmp_path, ["this", "that"]) == ("this", "that")


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*images/validation.*data.root"):
        Ade(root=str(root), split="validation")
    (root / "annotations" / "training" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"annotations/training: 1 images have no map, a for instance"):
        Ade(root=str(root))
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no class list: set `classes`"):
        Ade(root=str(root))
    for count in (0, 1, 256):
        with pytest.raises(ValueError, match=f"{count} classes"):
            class_names(root, [str(k) for k in range(count)])
    with pytest.raises(ValueError, match=r"same name: \['a'\]"):
        class_names(root, ["a", "b", "a"])


def test_a_map_is_found_whatever_the_case_of_its_suffix(root: Path) -> None:
    maps = root / "annotations" / "training"
    (maps / "a.png").rename(maps / "a.PNG")
    assert Ade(root=str(root)).read(0).labels.tolist() == [[1, 2, 255], [255, 0, 1]]


@pytest.mark.parametrize("twin", ["images/training/b.png", "annotations/training/b.PNG"])
def test_two_files_of_one_name_are_no_pair_by_chance(root: Path, twin: str) -> None:
    """Which of them the folder listed last used to win, on this machine."""
    Image.fromarray(VALUES).save(root / twin)
    with pytest.raises(ValueError, match=r"1 names stand for several files, b\..*, b\..* for instance"):
        Ade(root=str(root))


@pytest.mark.parametrize("first", [0, -1])
def test_no_image_at_all_cannot_be_asked_for(root: Path, first: int) -> None:
    assert len(Ade(root=str(root), first=1)) == 1
    with pytest.raises(ValueError, match=f"first={first}"):
        Ade(root=str(root), first=first)


def test_two_parts_share_no_image_and_leave_none_out(root: Path) -> None:
    whole = Ade(root=str(root))
    parts = [Ade(root=str(root), part=part) for part in ((0.0, 0.5), (0.5, 1.0))]
    names = [[part.where(index) for index in range(len(part))] for part in parts]
    assert sorted(names[0] + names[1]) == [whole.where(index) for index in range(len(whole))]
    assert names[0]
    assert names[1]


def test_what_is_wrong_with_a_pair_is_named_when_it_is_read(root: Path) -> None:
    ade, drawn = Ade(root=str(root)), root / "annotations" / "training" / "a.png"
    with pytest.raises(UnreadableImage, match=r"a.png holds class 2, but there are 2"):
        Ade(root=str(root), classes=["x", "y"]).read(0)
    for change, message in (
        (Image.fromarray(VALUES).convert("RGB"), "has mode RGB"),
        (Image.fromarray(VALUES.astype(np.uint16)), "has mode I;16"),
        (Image.fromarray(VALUES.T.copy()), "is 2 x 3, its image 3 x 2"),
    ):
        change.save(drawn)
        with pytest.raises(UnreadableImage, match=message):
            ade.read(0)
    drawn.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        ade.read(0)


@pytest.mark.data
def test_the_real_labels_have_no_defect_and_eleven_classes(real_data: Callable[[str], Path]) -> None:
    root = str(real_data("camvid"))
    assert check_ade(root, split="validation", classes=CAMVID) == []
    ade = Ade(root=root, split="validation", classes=CAMVID)
    assert len(ade) == 101
    seen = torch.cat([ade.read(index).labels.unique() for index in range(0, len(ade), 10)]).unique()
    assert seen.tolist() == [*range(11), 255]


def test_every_defect_is_found_at_once(root: Path) -> None:
    save(root, "beyond", VALUES + 1)
    save(root, "colours", VALUES, mode="RGB")
    save(root, "deep", VALUES.astype(np.uint16))
    save(root, "empty", VALUES * 0)
    for name in ("lone", "other", "size", "torn", "unread"):
        save(root, name, VALUES)
    images, maps = root / "images" / "training", root / "annotations" / "training"
    (maps / "lone.png").unlink()
    (images / "other.jpg").unlink()
    Image.fromarray(VALUES.T.copy()).save(maps / "size.png")
    (maps / "torn.png").write_bytes((maps / "torn.png").read_bytes()[:40])
    (images / "unread.jpg").write_bytes(b"no image")
    Image.new("RGB", VALUES.shape[::-1]).save(images / "b.png")
    assert {defect.kind: (defect.number, defect.examples) for defect in check_ade(str(root))} == {
        "image without a map": (1, ("lone.jpg",)),
        "map without an image": (1, ("other.png",)),
        "label beyond the 3 classes": (1, ("beyond.png (class 3)",)),
        "map with colours instead of classes, or of more than 8 bits": (2, ("colours.png", "deep.png")),
        "empty map: no pixel has a class": (1, ("empty.png",)),
        "map of another size than its image": (1, ("size.png (2 x 3, image 3 x 2)",)),
        "unreadable map": (1, ("torn.png",)),
        "unreadable image": (1, ("unread.jpg",)),
        "files that differ in their suffix alone": (1, ("b.jpg, b.png",)),
    }


def test_a_folder_that_cannot_be_used_at_all_is_a_defect_too(root: Path) -> None:
    (defect,) = check_ade(str(root), split="validation")
    assert defect.kind == "unusable data set"
    assert "images/validation" in defect.examples[0]

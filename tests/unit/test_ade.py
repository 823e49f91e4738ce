"""data/ade.py and data/checks.py: class maps, their values and every defect of a data set in ADE20K's layout."""

import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.data import UnreadableImage
from mae_transfer.data.ade import AdeConfig, Coding, class_names, read_map
from mae_transfer.data.checks import check_ade, check_maps

CAMVID = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
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
    ade = AdeConfig(root=str(root)).open()
    assert ade.classes == ("sky", "road", "car")
    assert [os.path.basename(ade.where(index)) for index in range(len(ade))] == ["a.jpg", "b.jpg"]  # noqa: PTH119
    assert ade.read(1).labels.tolist() == [[255, 0, 1], [1, 2, 255]]
    assert ade.read(1).image.shape == (3, 2, 3)
    again = pickle.loads(pickle.dumps(ade))
    assert torch.equal(again.read(0).labels, ade.read(0).labels)


def test_a_zero_that_is_a_class_stays(root: Path) -> None:
    ade = AdeConfig(root=str(root), classes=list("abcd"), reduce_zero_label=False).open()
    assert ade.classes == ("a", "b", "c", "d")
    assert ade.read(1).labels.tolist() == VALUES.tolist()


def test_reduction_equals_mmsegs_rule_for_every_value() -> None:
    """0 -> 255, minus one, 254 -> 255 (mmseg, LoadAnnotations)."""
    values = np.arange(256, dtype=np.uint8)
    theirs = values.copy()
    theirs[theirs == 0] = 255
    theirs = theirs - 1
    theirs[theirs == 254] = 255
    assert np.array_equal(Coding(255).labels(values, Path()), theirs)


def test_a_palette_map_is_read_by_index(root: Path) -> None:
    drawn = Image.fromarray(VALUES)
    drawn.putpalette([k for value in range(256) for k in (255 - value, 7, value)])
    drawn.save(root / "annotations" / "training" / "b.png")
    assert AdeConfig(root=str(root)).open().read(1).labels.tolist() == [[255, 0, 1], [1, 2, 255]]


def test_class_names_of_the_official_archive(tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice\n"
    )
    assert class_names(tmp_path) == ("wall", "building, edifice")
    assert class_names(tmp_path, ["this", "that"]) == ("this", "that")


def test_missing_parts_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*images/validation.*data.root"):
        AdeConfig(root=str(root), split="validation").open()
    (root / "annotations" / "training" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"annotations/training: 1 x image without a map: a.jpg"):
        AdeConfig(root=str(root)).open()
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no class list: set `classes`"):
        AdeConfig(root=str(root)).open()
    for count in (0, 1, 256):
        with pytest.raises(ValueError, match=f"{count} classes"):
            class_names(root, [str(k) for k in range(count)])
    with pytest.raises(ValueError, match=r"class names occur more than once: \['a'\]"):
        class_names(root, ["a", "b", "a"])


def test_a_map_is_found_whatever_the_case_of_its_suffix(root: Path) -> None:
    maps = root / "annotations" / "training"
    (maps / "a.png").rename(maps / "a.PNG")
    assert AdeConfig(root=str(root)).open().read(0).labels.tolist() == [[1, 2, 255], [255, 0, 1]]


@pytest.mark.parametrize("twin", ["images/training/b.png", "annotations/training/b.PNG"])
def test_files_that_differ_only_in_their_suffix_are_refused(root: Path, twin: str) -> None:
    """The pair used to depend on the order in which the file system lists files."""
    Image.fromarray(VALUES).save(root / twin)
    with pytest.raises(ValueError, match=r"1 x files that differ only in their suffix: b\..*, b\..*"):
        AdeConfig(root=str(root)).open()


@pytest.mark.parametrize("first", [0, -1])
def test_first_must_be_at_least_one(root: Path, first: int) -> None:
    assert len(AdeConfig(root=str(root), first=1).open()) == 1
    with pytest.raises(ValueError, match=f"(?s)first.*input_value={first}"):
        AdeConfig(root=str(root), first=first).open()


def test_two_parts_are_disjoint_and_complete(root: Path) -> None:
    whole = AdeConfig(root=str(root)).open()
    parts = [AdeConfig(root=str(root), part=part).open() for part in ((0.0, 0.5), (0.5, 1.0))]
    names = [[part.where(index) for index in range(len(part))] for part in parts]
    assert sorted(names[0] + names[1]) == [whole.where(index) for index in range(len(whole))]
    assert names[0]
    assert names[1]


def test_reading_a_broken_pair_names_the_file_and_its_defect(root: Path) -> None:
    ade, drawn = AdeConfig(root=str(root)).open(), root / "annotations" / "training" / "a.png"
    with pytest.raises(
        UnreadableImage, match=r"a.png: value beyond the 2 classes \(value 3\); 0 is void .*reduce_zero_label=True"
    ):
        AdeConfig(root=str(root), classes=["x", "y"]).open().read(0)
    for change, message in (
        (Image.fromarray(VALUES).convert("RGB"), r"map with colours instead of classes \(mode RGB\)"),
        (Image.fromarray(VALUES.T.copy()), r"map whose size differs from its image \(2 x 3, image 3 x 2\)"),
    ):
        change.save(drawn)
        with pytest.raises(UnreadableImage, match=message):
            ade.read(0)
    drawn.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"a.png: unreadable map \(its 8 bytes are not in a known image format"):
        ade.read(0)


@pytest.mark.data
def test_the_real_labels_have_no_defect_and_eleven_classes(real_data: Callable[[str], Path]) -> None:
    root = str(real_data("camvid"))
    assert check_ade(AdeConfig(root=str(root), split="validation", classes=CAMVID)) == []
    ade = AdeConfig(root=str(root), split="validation", classes=CAMVID).open()
    assert len(ade) == 101
    seen = torch.cat([ade.read(index).labels.unique() for index in range(0, len(ade), 10)]).unique()
    assert seen.tolist() == [*range(11), 255]


def test_every_defect_is_found_at_once(root: Path) -> None:
    save(root, "beyond", VALUES + 1)
    save(root, "colours", VALUES, mode="RGB")
    save(root, "deep", VALUES.astype(np.uint16) + 300)
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
    assert {
        defect.kind: (defect.number, tuple(re.sub(r" \(its .*", "", one) for one in defect.examples))
        for defect in check_ade(AdeConfig(root=str(root)))
    } == {
        "image without a map": (1, ("lone.jpg",)),
        "map without an image": (1, ("other.png",)),
        "value beyond the 3 classes": (2, ("beyond.png (value 4)", "deep.png (value 555)")),
        "map with colours instead of classes": (1, ("colours.png (mode RGB)",)),
        "empty map: no pixel has a class": (1, ("empty.png",)),
        "map whose size differs from its image": (1, ("size.png (2 x 3, image 3 x 2)",)),
        "unreadable map": (1, ("torn.png",)),
        "unreadable image": (1, ("unread.jpg",)),
        "files that differ only in their suffix": (1, ("b.jpg, b.png",)),
    }


def test_no_class_is_reported_absent_if_no_map_can_be_read(root: Path) -> None:
    for drawn in (root / "annotations" / "training").iterdir():
        Image.open(drawn).convert("RGB").save(drawn)
    assert [defect.kind for defect in check_ade(AdeConfig(root=str(root)))] == ["map with colours instead of classes"]


def test_an_unusable_folder_is_reported_as_a_defect(root: Path) -> None:
    (defect,) = check_ade(AdeConfig(root=str(root), split="validation"))
    assert defect.kind == "unusable data set"
    assert "images/validation" in defect.examples[0]


def few_bits(path: Path, values: np.ndarray, *, bits: int, colour: int = 0) -> None:
    """Write a PNG whose values have 1, 2 or 4 bits: grey (0) or palette (3)."""
    drawn = Image.fromarray(values)
    if colour == 3:
        drawn.putpalette([k for value in range(1 << bits) for k in (value, 255 - value, 7)])
        drawn.save(path, bits=bits)
        return
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values
    )
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_read_as_they_are_stored(tmp_path: Path, bits: int, colour: int) -> None:
    """PIL scales 4-bit grey values to 0..255: 3 was read as 51."""
    values = np.arange(24, dtype=np.uint8).reshape(4, 6) % (1 << bits)
    few_bits(tmp_path / "a.png", values, bits=bits, colour=colour)
    assert np.array_equal(read_map(tmp_path / "a.png", size=(4, 6)), values)


@pytest.mark.parametrize("interpretation", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_tiff_of_any_bits_is_read_as_it_is_stored(tmp_path: Path, bits: int, interpretation: int) -> None:
    """With interpretation 0, white is zero, and PIL inverts the values."""
    values = np.arange(24).reshape(4, 6) * (1 if bits < 16 else 999) % (1 << bits)
    if bits == 16:
        rows = values.astype("<u2").tobytes()
    else:
        rows = b"".join(
            np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
            for row in values
        )
    tags = {256: 6, 257: 4, 258: bits, 259: 1, 262: interpretation, 273: 8, 277: 1, 278: 4, 279: len(rows)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    at = 8 + len(rows) + len(rows) % 2
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", at) + rows.ljust(at - 8, b"\0") + directory)
    assert np.array_equal(read_map(tmp_path / "a.tif"), values)


@pytest.mark.parametrize(
    "options", [{"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}, {}]
)
def test_tiffs_of_16_bits_and_masks_of_one_are_maps(tmp_path: Path, options: dict[str, str]) -> None:
    deep = VALUES.astype(np.uint16)
    deep[0, 0] = 65535
    Image.fromarray(deep).save(tmp_path / "deep.tif", **options)
    assert np.array_equal(read_map(tmp_path / "deep.tif"), deep)
    assert Coding(3).labels(read_map(tmp_path / "deep.tif"), tmp_path).tolist() == [[255, 0, 1], [1, 2, 255]]
    Image.fromarray(VALUES > 1).save(tmp_path / "mask.tif", **options)
    assert read_map(tmp_path / "mask.tif").tolist() == (VALUES > 1).astype(int).tolist()


def test_a_map_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "tif"):
        Image.fromarray(VALUES).save(tmp_path / f"a.{suffix}", exif=exif)
        assert read_map(tmp_path / f"a.{suffix}").tolist() == np.rot90(VALUES, -1).tolist()


def test_a_lossy_map_is_refused(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(
        UnreadableImage, match=r"a.png: map in another format than PNG, TIFF, BMP, GIF \(JPEG\); save it"
    ):
        read_map(tmp_path / "a.png")


def test_masks_of_0_and_255_need_their_values(tmp_path: Path) -> None:
    save(tmp_path, "a", np.array([[0, 255], [255, 0]], dtype=np.uint8))
    options = {"classes": ("ground", "crack"), "reduce_zero_label": False}
    (defect,) = check_ade(AdeConfig(root=str(tmp_path), **options))
    assert str(defect) == (
        "1 x class without a pixel in any map: 'crack' (value 1); the maps contain the values 0, 255 (void); "
        "if 255 is a class here, give the value of each class: values=(0, 255); "
        "allow_absent=True accepts this (check: --allow-absent)"
    )
    assert [one.policy for one in check_ade(AdeConfig(root=str(tmp_path), allow_absent=True, **options))] == [
        "left out of the means"
    ]
    assert not check_ade(AdeConfig(root=str(tmp_path), values=(0, 255), **options))
    assert AdeConfig(root=str(tmp_path), values=(0, 255), **options).open().read(0).labels.tolist() == [[0, 1], [1, 0]]
    for values, message in (
        ((0,), "its own value"),
        ((3, 3), "its own value"),
        ((0, 65536), "from 0 to 65535"),
    ):
        with pytest.raises(ValueError, match=message):
            AdeConfig(root=str(tmp_path), values=values, **options).open()
        assert message in check_ade(AdeConfig(root=str(tmp_path), values=values, **options))[0].examples[0]


def test_a_set_without_a_labelled_pixel_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "a", VALUES * 0)
    found = check_ade(AdeConfig(root=str(tmp_path), classes=("a", "b"), allow_absent=True))
    assert [(one.kind, bool(one.policy)) for one in found] == [
        ("map set in which no pixel has a class", False),
        ("empty map: no pixel has a class", True),
    ]


def test_nested_folders_and_a_map_suffix_are_supported(tmp_path: Path) -> None:
    for city, values in (("aachen", VALUES), ("bonn", VALUES[::-1])):
        save(tmp_path, "x", values, split=f"training/{city}")
        images, maps = (tmp_path / folder / "training" / city for folder in ("images", "annotations"))
        (images / "x.jpg").rename(images / "x_photo.jpg")
        (maps / "x.png").rename(maps / "x_mask.png")
        (maps / "x_color.png").write_bytes(b"of no interest")
    options = {"root": str(tmp_path), "classes": tuple("abc")}
    with pytest.raises(ValueError, match=r"2 x image without a map: aachen/x_photo.jpg, bonn/x_photo.jpg"):
        AdeConfig(**options).open()
    for map_suffix in ("_mask.png", "*_mask.png"):
        ade = AdeConfig(**options, image_suffix="_photo.jpg", map_suffix=map_suffix).open()
        assert [Path(ade.where(k)).parent.name for k in range(2)] == ["aachen", "bonn"]
        assert ade.read(1).labels.tolist() == [[1, 2, 255], [255, 0, 1]]
        assert not check_ade(AdeConfig(image_suffix="_photo.jpg", map_suffix=map_suffix, **options))


def test_a_missing_suffix_is_proposed(root: Path) -> None:
    maps = root / "annotations" / "training"
    for name in "ab":
        (maps / f"{name}.png").rename(maps / f"{name}_mask.png")
    with pytest.raises(ValueError, match=r"if map names end in '_mask\.png', set map_suffix='_mask\.png'"):
        AdeConfig(root=str(root)).open()


def test_class_lists_with_a_byte_order_mark_are_read(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\ncar\r\n")
    assert class_names(root) == ("sky", "road", "car")
    for text in ("sky\nroad".encode("utf-16"), "sky\nroad".encode("utf-16-le"), b"for\xeat\nroad"):
        (root / "classes.txt").write_bytes(text)
        with pytest.raises(ValueError, match=r"classes\.txt is not in UTF-8 .*save it"):
            class_names(root)


def test_a_pipe_among_the_maps_is_refused(root: Path) -> None:
    os.mkfifo(root / "annotations" / "training" / "c.png")
    os.mkfifo(root / "images" / "training" / "c.jpg")
    assert len(AdeConfig(root=str(root)).open()) == 2
    assert not check_ade(AdeConfig(root=str(root)))


def test_a_valid_set_is_cached_until_a_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path_factory.mktemp("own")))
    read: list[Path] = []
    monkeypatch.setattr(
        "mae_transfer.data.checks.read_map", lambda path, **given: read.append(path) or read_map(path, **given)
    )
    for _ in range(2):
        check_maps({"training": AdeConfig(root=str(root)).open()})
        assert len(read) == 2
    torn = root / "annotations" / "training" / "a.png"
    torn.write_bytes(torn.read_bytes()[:40])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 x unreadable map: a\.png"):
            check_maps({"training": AdeConfig(root=str(root)).open()})
    check_maps({"training": AdeConfig(root=str(root)).open()}, skip=1)
    assert len(read) == 8, "what is broken is looked at each time"

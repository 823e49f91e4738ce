"""Broken sets of label maps: the check and the start of a run agree on each of them, and neither gives a traceback."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_transfer.config import validate
from mae_transfer.data.ade import AdeConfig
from mae_transfer.data.checks import check_ade, check_maps
from mae_transfer.data.config import check_same_classes
from mae_transfer.data.maps import MapDataConfig, open_map_set
from mae_transfer.data.reports import Defect

SIZE = (6, 9)
NAMES = ("sky", "road", "car")
FAULTS = (
    *(
        "none",
        "none",
        "none",
        "no map",
        "no image",
        "torn map",
        "torn image",
        "empty file",
        "other size",
        "colours",
        "alpha",
        "jpeg",
        "float",
    ),
    *(
        "16 bits",
        "deep",
        "32 bits",
        "1 bit",
        "tif",
        "beyond",
        "255",
        "void",
        "zero",
        "turned",
        "bad exif",
        "twin",
        "nested",
        "suffix",
    ),
    *("pipe map", "pipe image", "folder map", "dead link", "text"),
)
LISTS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "twice", "one", "none", "more", "latin-1")
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "allow_absent": st.booleans(),
        "reduce_zero_label": st.booleans(),
        "values": st.sampled_from([(0, 1, 255), (1, 2, 3), (1, 2), (1, 1, 2), (0, 1, 65535), (0, 1, 70000)]),
        "map_suffix": st.sampled_from([".png", "_mask.png", "*.png"]),
    },
)
SETS = st.fixed_dictionaries(
    {split: st.lists(st.sampled_from(FAULTS), max_size=4) for split in ("training", "validation")}
    | {
        "list": st.sampled_from(LISTS),
        "missing": st.sampled_from([None] * 6 + ["images/validation", "annotations/validation"]),
        "options": OPTIONS,
    }
)
NUMBER = itertools.count()


def write(root: Path, case: dict[str, Any]) -> None:
    for split, kind in itertools.product(("training", "validation"), ("images", "annotations")):
        if case["missing"] != f"{kind}/{split}":
            (root / kind / split).mkdir(parents=True)
            for number, fault in enumerate(case[split]):
                pair(root, split, f"{number}", fault, kind)
    names = {
        "twice": [*NAMES, "sky"],
        "one": NAMES[:1],
        "more": [*NAMES, "tree"],
        "latin-1": [*NAMES[:2], "forêt"],
    }.get(case["list"], NAMES)
    if case["list"] != "none":
        encoding = case["list"] if case["list"] in ("utf-8-sig", "utf-16", "latin-1") else "utf-8"
        (root / "classes.txt").write_bytes("\n".join(names).encode(encoding))


def pair(root: Path, split: str, name: str, fault: str, kind: str) -> None:
    """Write one file of a pair, with a defect."""
    folder = root / kind / split / ("deep/er" if fault == "nested" else "")
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "images":
        image(folder / f"{name}.jpg", fault)
    else:
        label_map(folder / f"{name}{'_mask' if fault == 'suffix' else ''}{'.tif' if fault == 'tif' else '.png'}", fault)


def image(path: Path, fault: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if fault == "turned" else 1
    if fault == "no image":
        return
    if fault == "pipe image":
        os.mkfifo(path)
        return
    if fault == "bad exif":
        Image.new("RGB", SIZE).save(path, format="PNG", exif=b"\0\x08\0\x02\x01\x12\0\x03")
        return
    Image.new("RGB", SIZE).save(path, exif=exif)
    if fault == "torn image":
        path.write_bytes(path.read_bytes()[:-40])
    if fault == "twin":
        shutil.copy(path, path.with_suffix(".png"))


def label_map(path: Path, fault: str) -> None:
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE[::-1]) % 4
    changed = {
        "16 bits": values.astype(np.uint16), "deep": values.astype(np.uint16) * 999, "32 bits": values.astype(np.int32),
        "float": values.astype(np.float32), "1 bit": values > 1, "beyond": values * 9,
        "255": np.where(values > 1, 255, 0).astype(np.uint8),
        "void": np.full_like(values, 255), "zero": values * 0, "other size": values.T.copy(),
    }  # fmt: skip
    if fault == "no map":
        return
    if fault == "pipe map":
        os.mkfifo(path)
    elif fault == "folder map":
        path.mkdir()
    elif fault == "dead link":
        path.symlink_to("nowhere.png")
    elif fault in ("empty file", "text"):
        path.write_bytes(b"" if fault == "empty file" else b"<html>404</html>")
    else:
        drawn = Image.fromarray(changed.get(fault, values))
        drawn = drawn.convert({"colours": "RGB", "alpha": "LA"}[fault]) if fault in ("colours", "alpha") else drawn
        drawn.save(path, format={"jpeg": "JPEG", "tif": "TIFF", "float": "TIFF", "32 bits": "TIFF"}.get(fault, "PNG"))
    if fault == "torn map":
        path.write_bytes(path.read_bytes()[:50])


def found_by_check(root: Path, options: dict[str, Any]) -> list[Defect]:
    return [
        one
        for split in ("training", "validation")
        for one in check_ade(AdeConfig(root=str(root), split=split, **options))
        if not one.policy
    ]


def said_by_run(root: Path, options: dict[str, Any]) -> str | None:
    """The error of a run before its first step; None if it starts, and then every sample can be read."""
    specs = {
        name: {"name": "ade", "split": split, **options}
        for name, split in (("train", "training"), ("val", "validation"))
    }
    try:
        data = validate({"root": str(root), **specs}, MapDataConfig, where="test")
        train, val = (open_map_set(part, data.root) for part in (data.train, data.val))
        check_same_classes(train.classes, val.classes)
        check_maps({"training": train, "validation": val})
    except ValueError as error:
        return str(error)
    for source in (train, val):
        for index in range(len(source)):
            sample = source.read(index)
            assert sample.labels.shape == sample.image.shape[1:]
            assert set(sample.labels.unique().tolist()) <= {*range(len(source.classes)), 255}
    return None


def agree(folder: Path, case: dict[str, Any]) -> None:
    root = folder / str(next(NUMBER))
    write(root, case)
    defects, said = found_by_check(root, case["options"]), said_by_run(root, case["options"])
    shutil.rmtree(root)
    if said is None or not defects:
        assert said is None
        assert not defects
        return
    named = [one.examples[0] if one.kind in ("unusable data set",) else one.kind for one in defects]
    assert any(name in said for name in named), (said, named)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=SETS)
def test_check_and_run_agree(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    agree(tmp_path_factory.getbasetemp() / "label_maps", case)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=SETS)
def test_check_and_run_agree_on_two_thousand(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    agree(tmp_path_factory.getbasetemp() / "label_maps", case)

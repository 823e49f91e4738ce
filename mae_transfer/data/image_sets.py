"""Labelled image sets of torchvision, laid out as folders train/<class> and val/<class>.

torchvision knows addresses, checksums and annotations. The splits are the sets' own where there are any. Numbers of
images and classes are those of the publications; SUN397 and Caltech-101 after the splits below.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torchvision import datasets

from mae_transfer import disk
from mae_transfer.interfaces import MEAN_PER_CLASS
from mae_transfer.seeding import fold

PARTS = ("train", "val")
RECORD = "split.txt"  # beside train/ and val/
Member = tuple[Path | np.ndarray, str]  # an image file, or its pixels (H, W, 3) uint8; its class


class Drawn(NamedTuple):
    """Images of each class that are drawn for a split: a number, or a share."""

    train: float
    val: float | None = None  # None: all others


class ImageSet(NamedTuple):
    """One set: its class in torchvision, its splits, and what a whole set has."""

    source: str
    page: str  # with the terms of use
    classes: int
    train: int
    val: int
    splits: tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]] | None = None  # arguments of the source
    rule: str = "train: official train; val: official test"
    metric: str = "top1"
    drawn: Drawn | None = None
    paths: str = "_image_files"  # attributes of the source
    labels: str = "_labels"
    at_hand: bool = False  # torchvision can no longer download it

    def remedy(self) -> str:
        """Return what to do about missing or damaged files."""
        if self.at_hand:
            return "torchvision cannot download it; docs/data.md lists the files and where they belong"
        return (
            "add the missing files, or remove its folder and use --download; --source names the folder of "
            "torchvision's data sets"
        )


def _split(*train: str) -> Any:
    return tuple({"split": name} for name in train), ({"split": "test"},)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_CIFAR = ({"train": True},), ({"train": False},)
_TRAINVAL = "train: official train + val; val: official test"
SETS = {
    "aircraft": ImageSet(
        "FGVCAircraft", f"{_OXFORD}/fgvc-aircraft", 100, 6667, 3333, _split("trainval"), _TRAINVAL, MEAN_PER_CLASS
    ),
    "caltech101": ImageSet(
        "Caltech101", "https://data.caltech.edu/records/mzrjq-6wc02", 101, 3030, 5647, None,
        "train: 30 images of each class, drawn; val: all others; without BACKGROUND_Google", MEAN_PER_CLASS, Drawn(30),
    ),
    "cars": ImageSet(
        "StanfordCars", "https://ai.stanford.edu/~jkrause/cars/car_dataset.html", 196, 8144, 8041, _split("train"),
        paths="_samples", labels="", at_hand=True,
    ),
    "cifar10": ImageSet("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar.html", 10, 50000, 10000, _CIFAR),
    "cifar100": ImageSet("CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar.html", 100, 50000, 10000, _CIFAR),
    "dtd": ImageSet("DTD", f"{_OXFORD}/dtd", 47, 3760, 1880, _split("train", "val"), f"{_TRAINVAL}; partition 1 of 10"),
    "eurosat": ImageSet(
        "EuroSAT", "https://github.com/phelber/EuroSAT", 10, 21600, 5400, None,
        "train: 80 % of each class, drawn; val: all others", drawn=Drawn(0.8), paths="samples", labels="",
    ),
    "flowers102": ImageSet(
        "Flowers102", f"{_OXFORD}/flowers/102", 102, 2040, 6149, _split("train", "val"), _TRAINVAL, MEAN_PER_CLASS
    ),
    "food101": ImageSet(
        "Food101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101", 101, 75750, 25250, _split("train")
    ),
    "pets": ImageSet(
        "OxfordIIITPet", f"{_OXFORD}/pets", 37, 3680, 3669, _split("trainval"), _TRAINVAL, MEAN_PER_CLASS,
        paths="_images",
    ),
    "sun397": ImageSet(
        "SUN397", "https://vision.princeton.edu/projects/2010/SUN", 397, 19850, 19850, None,
        "train and val: 50 images of each class each, drawn; the numbers, not the images, of the official partitions",
        drawn=Drawn(50, 50),
    ),
}  # fmt: skip


def lay_out(name: str, *, source: Path, root: Path, download: bool = False) -> str:
    """Link the files of a set into root/train/<class> and root/val/<class>, and write its split to root/split.txt.

    Files are hard links, or copies where links are impossible; arrays become PNG. train/ and val/ get their names only
    when all files are there. Returns the text of split.txt.

    Args:
        source: the folder with torchvision's folders of the sets.
        download: download what is missing, with torchvision's checksums.
    Raises:
        ValueError: root already has a split, or files of the set are missing or damaged.
        OSError: a file could not be written.
    """
    found, new = [root / part for part in PARTS if (root / part).exists()], root / ".preparing"
    if found:
        raise ValueError(f"{found[0]} already exists: remove it, or name another folder with --root")
    chosen = SETS[name]
    parts = _members(name, source, download)
    shown = [f"{len(members):,}" for members in parts]
    classes = {label for members in parts for _, label in members}
    if (len(classes), *map(len, parts)) != (chosen.classes, chosen.train, chosen.val):
        raise ValueError(
            f"{name} in {source} gives {shown[0]} training and {shown[1]} validation images of {len(classes)} classes "
            f"instead of {chosen.train:,}, {chosen.val:,} and {chosen.classes}, so files are missing or of another "
            f"version: {chosen.remedy()}"
        )
    text = (
        f"{name}: {shown[0]} training and {shown[1]} validation images of {len(classes)} classes\n"
        f"{chosen.rule}\ncustomary metric: {chosen.metric}\nterms: {chosen.page}\n"
    )
    shutil.rmtree(new, ignore_errors=True)  # of an interrupted preparation
    try:
        for part, members in zip(PARTS, parts, strict=True):
            for index, (image, label) in enumerate(members):
                _write(image, new / part / label, index)
        for part in PARTS:
            (new / part).rename(root / part)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    disk.write_text(root / RECORD, text)
    return text


def draw(members: Iterable[Member], drawn: Drawn, name: str) -> tuple[list[Member], list[Member]]:
    """Split the members of each class; a pure function of the names of set, class and files."""
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: (member[1], str(member[0]))):
        groups.setdefault(member[1], []).append(member)
    train: list[Member] = []
    val: list[Member] = []
    for label, group in groups.items():
        order = np.random.default_rng(fold(0, name, label)).permutation(len(group)).tolist()
        first = round(drawn.train * len(group)) if drawn.train < 1 else int(drawn.train)
        last = None if drawn.val is None else first + int(drawn.val)
        train += [group[i] for i in order[:first]]
        val += [group[i] for i in order[first:last]]
    return train, val


def _members(name: str, source: Path, download: bool) -> tuple[list[Member], ...]:
    """Return the members of both parts; ValueError if torchvision cannot open the set, or a file is missing."""
    chosen = SETS[name]
    build: Callable[..., Any] = getattr(datasets, chosen.source)
    try:
        parts = tuple(
            [member for split in splits for member in _listed(build(source, download=download, **split), chosen)]
            for splits in chosen.splits or (({},),)
        )
    except (ImportError, KeyError, IndexError, OSError, RuntimeError, ValueError) as error:
        remedy = "pip install scipy" if "scipy" in str(error).lower() else chosen.remedy()
        reason = str(error).removesuffix(" You can use download=True to download it") or type(error).__name__
        raise ValueError(f"{name} in {source} cannot be opened ({reason}): {remedy}") from error
    files = [image for members in parts for image, _ in members if isinstance(image, Path)]
    if missing := [file for file in files if not (file.is_file() and file.stat().st_size)]:
        raise ValueError(
            f"{name} in {source}: {len(missing)} of {len(files)} images are missing or empty, the first is "
            f"{missing[0]}: {chosen.remedy()}"
        )
    return draw(parts[0], chosen.drawn, name) if chosen.drawn else parts


def _listed(data: Any, chosen: ImageSet) -> list[Member]:
    """Return the members of a torchvision set."""
    if isinstance(data, datasets.CIFAR10):
        images, labels = data.data, data.targets
    elif isinstance(data, datasets.Caltech101):
        folder, labels = Path(data.root, "101_ObjectCategories"), data.y
        images = [folder / data.categories[y] / f"image_{i:04d}.jpg" for i, y in zip(data.index, labels, strict=True)]
    elif chosen.labels:
        images, labels = getattr(data, chosen.paths), getattr(data, chosen.labels)
    else:
        images, labels = zip(*getattr(data, chosen.paths), strict=True)
    if isinstance(data, datasets.Flowers102):  # torchvision before 0.22 has no names
        names = [f"{number:03}" for number in range(1, chosen.classes + 1)]
    else:
        names = getattr(data, "categories", None) or data.classes
    return [
        (image if isinstance(image, np.ndarray) else Path(image), re.sub(r'[/\\:*?"<>|]', "-", names[label]))
        for image, label in zip(images, labels, strict=True)
    ]


def _write(image: Path | np.ndarray, folder: Path, index: int) -> None:
    """Link, copy or encode one image."""
    target = folder / (image.name if isinstance(image, Path) else f"{index:05}.png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            try:
                os.link(image.resolve(), target)
            except FileExistsError:
                raise
            except OSError:  # another file system, or one without links
                shutil.copyfile(image, target)
        else:
            Image.fromarray(image).save(target)
    except OSError as error:
        raise disk.explain_failure(error, target) from error

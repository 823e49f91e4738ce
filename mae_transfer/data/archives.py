"""Download addresses, terms of use and unpacked layouts of the public data sets.

Sources: cocodataset.org (download and terms of use); the ADE20K scene parsing benchmark (sceneparsing.csail.mit.edu)
and its data set page. Neither publishes checksums. A download is verified by the length that the server states, and
every unpacked file by its CRC.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mae_transfer.data.ade import AdeConfig
from mae_transfer.data.checks import check_ade, check_coco
from mae_transfer.data.coco import CocoConfig
from mae_transfer.data.reports import Defect
from mae_transfer.download import fetch, unpack


class Archive(NamedTuple):
    """One zip file."""

    url: str
    prefixes: tuple[str, ...] = ("",)  # of the files to unpack
    checksum: str | None = None  # "md5:...", if one is published


class PublicDataSet(NamedTuple):
    """One public data set."""

    archives: tuple[Archive, ...]
    folder: str  # data.root of the configs, relative to the root
    splits: tuple[str, ...]
    check: Callable[[str, str], list[Defect]]  # of a root and a split
    terms: str


_COCO = "http://images.cocodataset.org"
DATA_SETS = {
    "coco": PublicDataSet(
        (
            Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", ("annotations/instances_",)),
            Archive(f"{_COCO}/zips/val2017.zip"),
            Archive(f"{_COCO}/zips/train2017.zip"),
        ),
        "",
        ("train2017", "val2017"),
        lambda root, split: check_coco(CocoConfig(root=root, split=split)),
        "COCO 2017 (26 GB with its archives): annotations under CC BY 4.0. COCO does not own the images, "
        "which are under Flickr's terms of use. Terms: https://cocodataset.org/#termsofuse",
    ),
    "ade20k": PublicDataSet(
        (Archive("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"),),
        "ADEChallengeData2016",
        ("training", "validation"),
        lambda root, split: check_ade(AdeConfig(root=root, split=split)),
        "ADE20K, scene parsing benchmark (2 GB with its archive): images for non-commercial research and education "
        "only. Terms: https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
    ),
}


def prepare(data_set: PublicDataSet, root: Path) -> Path:
    """Download and unpack a data set into `root`, resuming a partial download; return the folder for data.root."""
    for archive in data_set.archives:
        unpack(fetch(archive.url, root, checksum=archive.checksum), root, prefixes=archive.prefixes)
    return root / data_set.folder

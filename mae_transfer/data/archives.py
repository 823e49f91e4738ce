"""Where the public data sets lie, on which terms, and how they are laid out once unpacked.

Sources: cocodataset.org (download and terms of use); the ADE20K scene parsing benchmark (sceneparsing.csail.mit.edu) and its data set page. Neither
publishes checksums, and none is made up here: a download is compared with the length that the server states, every unpacked file with its CRC.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mae_transfer.data.ade_check import check_ade
from mae_transfer.data.coco_check import check_coco
from mae_transfer.data.defects import Defect
from mae_transfer.download import fetch, unpack


class Archive(NamedTuple):
    """One zip file."""

    url: str
    prefixes: tuple[str, ...] = ("",)  # of the files in it that are wanted
    checksum: str | None = None  # "md5:...", where one was published


class DataSet(NamedTuple):
    """One public data set."""

    archives: tuple[Archive, ...]
    folder: str  # below the root, what configs call data.root
    splits: tuple[str, ...]
    check: Callable[..., list[Defect]]  # (root, split=...)
    terms: str


_COCO = "http://images.cocodataset.org"
DATA_SETS = {
    "coco": DataSet(
        (
            Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", ("annotations/instances_",)),
            Archive(f"{_COCO}/zips/val2017.zip"),
            Archive(f"{_COCO}/zips/train2017.zip"),
        ),
        "",
        ("train2017", "val2017"),
        check_coco,
        "COCO 2017 (26 GB with its archives): annotations under CC BY 4.0; the images are under Flickr's terms of use, COCO does not own them. "
        "Terms: https://cocodataset.org/#termsofuse",
    ),
    "ade20k": DataSet(
        (Archive("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"),),
        "ADEChallengeData2016",
        ("training", "validation"),
        check_ade,
        "ADE20K, scene parsing benchmark (2 GB with its archive): images for non-commercial research and education only. "
        "Terms: https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
    ),
}


def prepare(data_set: DataSet, root: Path) -> Path:
    """Fetch and unpack a data set into root, continuing what is there; return the folder that configs call data.root."""
    for archive in data_set.archives:
        unpack(fetch(archive.url, root, checksum=archive.checksum), root, prefixes=archive.prefixes)
    return root / data_set.folder

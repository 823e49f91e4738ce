"""The benchmark `open`: the start of a run on a folder of many images, and on a pack of them.

Opening means to list the images and to compute the fingerprint. Python's zipfile, which only reads the directory of the
same zip, is listed for comparison. The files have one byte each, and names like ImageNet's. They are in the folder of
temporary files: TMPDIR=/dev/shm keeps them in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mae_transfer.data.folders import FolderConfig
from mae_transfer.data.packs import write_pack
from mae_transfer.data.sources import fingerprint

CLASSES = 1000


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time them in turns; return a record of each. RuntimeError if folder and pack differ in their fingerprints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, pack = Path(temporary) / "images", Path(temporary) / "images.zip"
        write_images(folder / "train", args.images)
        write_pack(folder, pack)
        contestants: dict[str, Callable[[], str]] = {
            "a folder": partial(open_images, folder),
            "a pack": partial(open_images, pack),
            "zipfile, the directory alone": partial(read_directory, pack),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        processor: dict[str, list[float]] = {name: [] for name in contestants}
        found: dict[str, str] = {}
        for _ in range(args.rounds):
            for name, work in contestants.items():
                os.utime(pack)  # so that its index is read again
                start, started = time.perf_counter(), time.process_time()
                found[name] = work()
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - started)
        if found["a pack"] != found["a folder"]:
            raise RuntimeError(f"the fingerprints differ: {found}")
    return [
        {
            "name": name,
            "images": args.images,
            "seconds": statistics.median(seconds[name]),
            "seconds_range": [min(seconds[name]), max(seconds[name])],
            "processor_seconds": statistics.median(processor[name]),
            "ratio": statistics.median(a / b for a, b in zip(seconds["a folder"], seconds[name], strict=True)),
        }
        for name in contestants
    ]


def write_images(folder: Path, images: int) -> None:
    """Write files of one byte, in up to CLASSES folders."""
    for label in range(min(CLASSES, images)):
        name = f"n{label + 1_440_764:08}"
        (folder / name).mkdir(parents=True)
        for number in range(label, images, CLASSES):
            (folder / name / f"{name}_{number}.JPEG").write_bytes(b"x")


def open_images(root: Path) -> str:
    """Open the images as a run does; return the digest of their fingerprint."""
    return fingerprint(FolderConfig(root=str(root), split="train").open()).digest


def read_directory(pack: Path) -> str:
    """Read the directory of a zip; return the number of its members."""
    with zipfile.ZipFile(pack) as archive:
        return str(len(archive.infolist()))

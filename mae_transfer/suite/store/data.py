"""Fingerprints of the data sets of a suite's runs, and the folders that its user named, kept in WORK_DIR/data.json.

The identity of a run holds the fingerprints of its images, not the folder. A fingerprint of ImageNet takes a minute or
more to compute, so it is kept until a file or folder in the two upper levels of the data set changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mae_transfer.data import ImagesConfig, open_source
from mae_transfer.data.maps import MapsConfig, open_map_set
from mae_transfer.data.objects import ObjectDataConfig, open_object_set
from mae_transfer.data.sources import fingerprint
from mae_transfer.locks import locked
from mae_transfer.suite.store.records import write_whole

FILE = "data.json"
PARTS = ("train", "val", "holdout")


class Known(BaseModel):
    """The content of data.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    roots: dict[str, str] = {}
    """Folders of data sets by the suite's names, as --root gave them last."""
    fingerprints: dict[str, tuple[str, dict[str, str]]] = {}
    """Digest of a data config -> state of its folder, and fingerprint of each part."""


class DataSets:
    """What is known of a suite's data sets in its work dir."""

    def __init__(self, work_dir: Path) -> None:
        self._file = work_dir / FILE
        self._known = self._read()

    def _read(self) -> Known:
        if self._file.is_file():
            with suppress(ValidationError, UnicodeDecodeError):  # everything in it can be given or computed again
                return Known.model_validate_json(self._file.read_text(encoding="utf-8"))
        return Known()

    @property
    def roots(self) -> dict[str, str]:
        """The folders of the data sets by name, as earlier commands gave them."""
        return self._known.roots

    def remember(self, roots: Mapping[str, str]) -> None:
        """Keep the folders for later commands on this work dir."""
        named = {name: str(Path(path).absolute()) for name, path in roots.items()}
        self._write(Known(roots=named))

    def fingerprints(self, data: Any) -> dict[str, str] | None:
        """Return the fingerprint of each part of a data config; none for generated images.

        Return None if the folder or pack is not on this machine or cannot be read.
        """
        if data.root is None:
            return {}
        root = Path(data.root)
        if not root.exists():
            return None
        key = hashlib.sha256(f"{root.resolve()} {data.model_dump_json(exclude={'root'})}".encode()).hexdigest()[:16]
        state = _state(root)
        kept = self._known.fingerprints.get(key)
        if kept is not None and kept[0] == state:
            return kept[1]
        try:
            found = {part: fingerprint(source).digest for part, source in _sources(data).items()}
        except (ValueError, OSError):
            return None  # the run itself will report what is wrong
        self._write(Known(fingerprints={key: (state, found)}))
        return found

    def _write(self, new: Known) -> None:
        with locked(self._file.with_name(".data.lock")):  # the jobs of a suite write it, too
            kept = self._read()
            self._known = Known(
                roots={**kept.roots, **new.roots}, fingerprints={**kept.fingerprints, **new.fingerprints}
            )
            write_whole(self._file, json.dumps(self._known.model_dump(), indent=1) + "\n")


def _sources(data: Any) -> dict[str, Any]:
    """Return the data sets of a data config by part."""
    specs = {part: spec for part in PARTS if (spec := getattr(data, part, None)) is not None}
    if isinstance(data, ImagesConfig):
        return {part: open_source(spec, data.root) for part, spec in specs.items()}
    if isinstance(data, MapsConfig):
        return {part: open_map_set(spec, data.root) for part, spec in specs.items()}
    assert isinstance(data, ObjectDataConfig)
    return {part: open_object_set(spec, data.root, masks=True) for part, spec in specs.items()}


def _state(root: Path) -> str:
    """Return a digest of names and times in the two upper levels of a folder. It changes if files are added.

    Of a pack, it is a digest of its time and size.
    """
    lines = []
    if root.is_file():
        lines.append(f"{root.stat().st_mtime_ns} {root.stat().st_size}")
    for entry in sorted(os.scandir(root) if root.is_dir() else (), key=lambda entry: entry.name):
        about = entry.stat()
        lines.append(f"{entry.name} {about.st_mtime_ns} {about.st_size}")
        if entry.is_dir():
            lines += sorted(
                f"{entry.name}/{inner.name} {inner.stat().st_mtime_ns}"
                for inner in os.scandir(entry.path)
                if inner.is_dir() or inner.name.endswith(".json")
            )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]

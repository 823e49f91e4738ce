"""The origin of weights: a run of this suite with its record, a verified release, or a file of unknown origin."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mae_transfer.checkpoints import zoo
from mae_transfer.checkpoints.files import metadata, read
from mae_transfer.checkpoints.references import split
from mae_transfer.checkpoints.released import RELEASED
from mae_transfer.record import Record, Weights

RECORD = "record"  # key in the metadata of a file that this suite wrote
RANDOM = Weights(kind="random", name="none")


def origin(reference: str, layouts: Any, *, sha256: str | None) -> Weights:
    """Return the origin of the weights of a reference.

    A file in the layout of a release is "released" only if its checksum is the published one; its name is no proof.

    Args:
        reference: as in `checkpoints.load`.
        layouts: the known prefixes.
        sha256: digest of the file; None if there is none.
    """
    prefix, rest = split(reference, layouts)
    name, _, path = rest.partition("@") if prefix == "timm" else (rest, "", rest)
    if prefix == "random":
        return RANDOM
    if prefix == "released" or (prefix == "timm" and not path):
        return Weights(
            kind="released", name=name, layout=RELEASED[name].layout if prefix == "released" else prefix, sha256=sha256
        )
    if prefix in ("", "zoo"):
        return made_here(zoo.weight_path(rest) if prefix else Path(path), sha256=sha256)
    known = _released(Path(path), prefix, sha256)
    return Weights(kind="released" if known else "file", name=known or Path(path).name, layout=prefix, sha256=sha256)


def made_here(path: Path, *, sha256: str | None) -> Weights:
    """Return the origin of a file that this suite wrote; files of earlier versions have no record."""
    about = read(path) if path.suffix == ".pt" else metadata(path)  # a training state holds its record as JSON
    found = about.get(RECORD)
    try:
        record = (
            Record.model_validate_json(found)
            if isinstance(found, str)
            else Record.model_validate(found)
            if found
            else None
        )
    except ValidationError:  # a later version wrote the record
        record = None
    name = record.method if record else str(about.get("pretrain", path.name))
    return Weights(kind="run", name=name, sha256=sha256, record=record)


def _released(path: Path, layout: str, sha256: str | None) -> str | None:
    """Return the name of the release whose published checksum the file has."""
    candidates = {
        name: entry.checksum
        for name, entry in RELEASED.items()
        if entry.layout == layout and entry.checksum is not None
    }
    if not candidates or not path.is_file():
        return None
    digests = {"sha256": sha256 or ""}
    if any(checksum.startswith("md5:") for checksum in candidates.values()):
        with path.open("rb") as file:
            digests["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    for name, checksum in candidates.items():
        algorithm, _, digits = checksum.partition(":")
        if digests.get(algorithm, "").startswith(digits):
            return name
    return None

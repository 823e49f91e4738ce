"""Digests of the artifact and the results of a finished run, kept in its note to notice damage before they are used."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mae_transfer import results
from mae_transfer.checkpoints import sha256
from mae_transfer.checkpoints.files import read
from mae_transfer.suite.store.records import Note, edited, line_digests


def remembered(note: Note, artifact: Path | None, numbers: Path) -> Note:
    """Return the note of a run that is done, with what it left."""
    return note.model_copy(
        update={"artifact": digest(artifact) if artifact else None, "results": line_digests(numbers)}
    )


def damaged_artifact(note: Note, artifact: Path, numbers: Path) -> str | None:
    """Return what is wrong with the file that a done run left for others; None: it is the one that the run wrote."""
    if not artifact.is_file():
        return f"its {artifact.name} is gone"
    wanted = note.artifact or recorded(numbers)
    if wanted is not None and digest(artifact) != wanted:
        return f"its {artifact.name} is damaged: it is not the file that the run wrote"
    return None


def damaged_results(note: Note, numbers: Path) -> str | None:
    """Return what is wrong with the numbers of a done run."""
    change = edited(note, numbers)
    return f"its results are damaged: {change}" if change else None


def unreadable(artifact: Path) -> str | None:
    """Return why a file that a run has just left cannot be used; the weights' own digest is compared."""
    try:
        read(artifact)
    except ValueError as error:
        return str(error)
    return None


def recorded(numbers: Path) -> str | None:
    """Return the digest of its file that a pretraining's or a tokenizer's results name, for notes that have none."""
    found = results.load(numbers)[0] if numbers.is_file() else []
    return next(
        (r.checkpoint_sha256 for r in reversed(found) if r.task in ("pretrain", "tokenizer") and r.checkpoint_sha256),
        None,
    )


def digest(path: Path) -> str:
    """Return the sha256 of a file, computed again when the file has changed."""
    about = path.stat()
    return _digest(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1024)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    return sha256(path)

"""Results as the tables take them: each with its folder and with what the suite that made it calls its pretraining.

A suite leaves node.json beside every results.jsonl (class Note); folders of single runs have none and are read as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mae_transfer import results
from mae_transfer.disk import write_text
from mae_transfer.results import Result

FORMAT = 1
ABOUT = "suite.json"
Role = Literal["tokenizer", "basis", "pretrain", "transfer", "point"]
State = Literal["planned", "running", "done", "failed", "skipped", "stopped"]


class Note(BaseModel):
    """What a suite remembers of one of its runs: the content of node.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    suite: str
    name: str
    role: Role  # "point": of a sweep; no table shows it
    row: str  # the pretraining's name in the suite: the table's row
    identity: str  # digest of the resolved config, of the inputs' identities and of the seed
    parts: dict[str, str] = {}  # what the identity was made of, to say what changed
    command: list[str]
    state: State = "planned"
    reason: str | None = None
    chosen: str | None = None  # what a sweep chose for it, and from what
    seconds: float = 0.0  # that it ran for, over all its starts
    artifact: str | None = None  # sha256 of the file that it left for others, once it is done
    results: tuple[str, ...] = ()  # digests of the lines of its results.jsonl, likewise


class About(BaseModel):
    """What the tables need to know of a suite: the content of suite.json in its work dir."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tables: tuple[str, ...] = ()
    """The tables and figures that it is for."""
    rows: tuple[str, ...] = ()
    """The rows in its order."""
    chance: dict[str, float] = {}
    """What guessing scores, by column of the summary."""


class Record(NamedTuple):
    """One result, where it stands, and what the suite says of its run."""

    result: Result
    file: Path
    note: Note | None = None

    @property
    def label(self) -> str | None:
        """The suite's name of the pretraining."""
        return self.note.row if self.note else None


def load(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """Return the records under the given files and folders, and a sentence per line or note that could not be read.

    Of a run that failed and succeeded later only the success is a record.

    Raises:
        ValueError: a path does not exist, or nothing was found.
    """
    found: list[Record] = []
    defects: list[str] = []
    for file in dict.fromkeys(file.resolve() for path in paths for file in _files(path)):
        good, bad = results.load(file)
        note, complaints = read_note(file.parent)
        if change := edited(note, file):
            defects.append(f"{file}: {change}; its numbers are left out: run it again, or restore the file")
            continue
        paid = {_owed(result) for result in good if result.status == "ok"}
        found += [Record(result, file, note) for result in good if result.status == "ok" or _owed(result) not in paid]
        defects += [*bad, *complaints]
    if not found:
        raise ValueError(
            "\n  ".join(
                ["no results found: a run writes results.jsonl into its work dir when it is finished", *defects]
            )
        )
    return [record for record in found if record.note is None or record.note.role != "point"], defects


def about(paths: Iterable[Path]) -> About:
    """Return what is known of the suites under the given folders, or around them.

    Work dirs of earlier versions say nothing.
    """
    known: list[About] = []
    for path in paths:
        files = sorted(path.rglob(ABOUT)) if path.is_dir() else []
        around = [folder / ABOUT for folder in path.resolve().parents if (folder / ABOUT).is_file()]
        for file in files or around[:1]:
            try:
                known.append(About.model_validate_json(file.read_text(encoding="utf-8")))
            except (ValidationError, UnicodeDecodeError):
                continue  # the tables do without
    chances = {tuple(sorted(one.chance.items())) for one in known}
    return About(
        tables=tuple(dict.fromkeys(table for one in known for table in one.tables)),
        rows=tuple(dict.fromkeys(row for one in known for row in one.rows)),
        chance=known[0].chance if len(chances) == 1 else {},
    )


def write_about(root: Path, suite: About) -> None:
    """Write suite.json into the work dir of a suite."""
    write_whole(root / ABOUT, suite.model_dump_json(indent=1) + "\n")


def line_digests(numbers: Path) -> tuple[str, ...]:
    """Return the digest of each line of results.jsonl."""
    content = numbers.read_bytes().splitlines() if numbers.is_file() else []
    return tuple(hashlib.sha256(line).hexdigest()[:16] for line in content if line.strip())


def edited(note: Note | None, numbers: Path) -> str | None:
    """Return that lines of results.jsonl are not as the run wrote them; None if they are.

    Lines that were added since do no harm.
    """
    lost = set(note.results) - set(line_digests(numbers)) if note else set()
    return f"{len(lost)} of {len(note.results)} lines are not as the run wrote them" if note and lost else None


def read_note(folder: Path) -> tuple[Note | None, list[str]]:
    """Return the note of a folder, None where it has none, and what is wrong with it."""
    path = folder / "node.json"
    if not path.is_file():
        return None, []
    if (version := _version(path)) not in (None, FORMAT):
        return None, [f"{path} is of format {version}, this version reads {FORMAT}"]
    try:
        return Note.model_validate_json(path.read_text(encoding="utf-8")), []
    except (ValidationError, UnicodeDecodeError) as error:
        return None, [f"{path} cannot be read: {error}"]


def of_another_version(folder: Path) -> bool:
    """Return whether a folder's note was written by a version whose notes this one does not read."""
    path = folder / "node.json"
    return path.is_file() and _version(path) not in (None, FORMAT)


def write_note(folder: Path, note: Note) -> None:
    """Write node.json."""
    write_whole(folder / "node.json", note.model_dump_json(indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; an OSError says which one (that of a full disk does not by itself)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _owed(result: Result) -> tuple[object, ...]:
    """What a run owes the tables: a hole that a failed start left is filled by the number of a later one."""
    return result.pretrain, result.seed, result.task, result.protocol, result.dataset, result.split, result.metric


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give work dirs of finished runs, or results.jsonl files")
    return (
        [file for file in sorted(path.rglob("results.jsonl")) if ".replaced" not in file.parts]
        if path.is_dir()
        else [path]
    )


def _version(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["format"])
    except (ValueError, KeyError, TypeError):
        return None

"""Results for the tables: each with its file and with the note of the suite that made it.

A suite writes node.json (class Note) beside every results.jsonl. Folders of single runs have no node.json. An archive
(archive.py) has one results.jsonl for all runs, and their notes in runs.jsonl.
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
from mae_transfer.suite.expect import Expectation

FORMAT = 1
ABOUT = "suite.json"
RUNS = "runs.jsonl"  # of an archive
LOG = "output.log"  # of a run: what it prints
START = "$ "  # prefix of the log line that holds the command of a start
Role = Literal["tokenizer", "basis", "pretrain", "transfer", "point"]
State = Literal["planned", "running", "done", "failed", "skipped", "stopped"]


class Note(BaseModel):
    """The record of one run of a suite: the content of node.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    suite: str
    name: str
    role: Role  # "point": a run of a sweep; no table shows it
    row: str  # name of the pretraining in the suite: the row of the tables
    identity: str  # digest of the resolved config, the seed and the identities of the inputs
    parts: dict[str, str] = {}  # parts of the identity, to report what changed
    command: list[str]
    state: State = "planned"
    reason: str | None = None
    chosen: str | None = None  # values that a sweep chose for it, and the scores
    seconds: float = 0.0  # run time, summed over all starts
    artifact: str | None = None  # sha256 of the file that other runs read, once it is done
    results: tuple[str, ...] = ()  # digests of the lines of its results.jsonl, once it is done


class About(BaseModel):
    """What the tables need to know about a suite: the content of suite.json in its work dir."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tables: tuple[str, ...] = ()
    """The tables and figures that it fills."""
    rows: tuple[str, ...] = ()
    """The rows, in the order of the suite."""
    chance: dict[str, float] = {}
    """Score of guessing, by column of the summary."""
    claims: tuple[Expectation, ...] = ()
    """The claims that it tests."""
    seeds: tuple[int, ...] = ()
    """The seeds that a verdict on a claim needs."""
    identities: dict[str, str] = {}
    """Of an archive: the identities of the suite's runs, by name. Tables leave out archived runs with another one."""


class Measurement(NamedTuple):
    """One result, its file, and the note of its run."""

    result: Result
    file: Path
    note: Note | None = None

    @property
    def label(self) -> str | None:
        """Name of the pretraining in the suite."""
        return self.note.row if self.note else None


def load(paths: Iterable[Path], *, required: bool = True) -> tuple[list[Measurement], list[str]]:
    """Return the records in the given files and folders, and a message for each unreadable line or note.

    If a run failed and succeeded later, only the success is returned.

    Args:
        required: finding nothing is an error.
    Raises:
        ValueError: a path does not exist, or nothing was found (if required).
    """
    found: list[Measurement] = []
    defects: list[str] = []
    paths = list(paths)
    for runs_file in (file for path in paths if path.is_dir() for file in path.rglob(RUNS)):
        if not runs_file.with_name("results.jsonl").is_file():
            defects.append(f"{runs_file.with_name('results.jsonl')} is missing beside {RUNS}: restore it")
    for file in dict.fromkeys(file.resolve() for path in paths for file in _files(path)):
        if file.with_name(RUNS).is_file():
            runs, bad = archived(file.parent)
            wanted = about_of(file.parent).identities
            stale = [note.name for note, _ in runs if wanted.get(note.name, note.identity) != note.identity]
            defects += [f"{file}: {name} is a run of another config; left out, run the suite again" for name in stale]
            found += [Measurement(one, file, note) for note, some in runs if note.name not in stale for one in some]
            defects += bad
            continue
        good, bad = results.load(file)
        note, complaints = read_note(file.parent)
        if change := edited(note, file):
            defects.append(f"{file}: {change}; its numbers are not used: run it again, or restore the file")
            continue
        measured = {_key(result) for result in good if result.status == "ok"}
        found += [
            Measurement(result, file, note) for result in good if result.status == "ok" or _key(result) not in measured
        ]
        defects += [*bad, *complaints]
    if required and not found:
        raise ValueError(
            "\n  ".join(["no results found: give work dirs of finished runs, which contain results.jsonl", *defects])
        )
    return [record for record in found if record.note is None or record.note.role != "point"], defects


def suites(paths: Iterable[Path]) -> tuple[dict[Path, About], list[str]]:
    """Return the suite.json of each suite in the given folders, or in their parents, and messages about damaged ones.

    Work dirs of earlier versions have no suite.json.
    """
    known: dict[Path, About] = {}
    defects: dict[str, None] = {}
    for path in paths:
        files = sorted(path.rglob(ABOUT)) if path.is_dir() else []
        around = [folder / ABOUT for folder in path.resolve().parents if (folder / ABOUT).is_file()]
        for file in files or around[:1]:
            try:
                known[file.parent.resolve()] = one = About.model_validate_json(file.read_text(encoding="utf-8"))
                if one.identities and not file.with_name(RUNS).is_file():
                    defects[f"{file.with_name(RUNS)} is missing, so runs and claims have no names: restore it"] = None
            except (ValidationError, UnicodeDecodeError):  # the tables do not require it
                defects[f"{file} cannot be read, so no claims are judged: run the suite again, or restore it"] = None
    return known, list(defects)


def together(suites: Iterable[About]) -> About:
    """Return what the tables of several suites need, without their claims."""
    known = list(suites)
    chances = {tuple(sorted(one.chance.items())) for one in known}
    return About(
        tables=tuple(dict.fromkeys(table for one in known for table in one.tables)),
        rows=tuple(dict.fromkeys(row for one in known for row in one.rows)),
        chance=known[0].chance if len(chances) == 1 else {},
    )


def about_of(root: Path) -> About:
    """Return the suite.json of a folder; an empty one if there is none, or if it cannot be read."""
    try:
        return About.model_validate_json((root / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return About()


def write_about(root: Path, suite: About) -> None:
    """Write suite.json into the work dir of a suite."""
    write_whole(root / ABOUT, suite.model_dump_json(indent=1) + "\n")


def archived(folder: Path) -> tuple[list[tuple[Note, list[Result]]], list[str]]:
    """Return the runs of an archive with their results, and a message for each run that is damaged."""
    lines = {digest_of(line): line for line in (folder / "results.jsonl").read_bytes().splitlines()}
    runs: dict[str, tuple[Note, list[Result]]] = {}
    defects: list[str] = []
    for number, text in enumerate((folder / RUNS).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            note, numbers = Note.model_validate_json(text), list[Result]()
            for digest in note.results:
                one = Result.model_validate_json(lines[digest])
                whole = one.model_copy(update={"record": numbers[-1].record}) if numbers and not one.record else one
                numbers.append(whole)
        except KeyError:
            defects.append(f"{folder / 'results.jsonl'}: lines of {note.name} were changed or removed")
        except ValidationError as error:
            defects.append(f"{folder / RUNS}, line {number} cannot be read: {error.errors()[0]['msg']}")
        else:
            runs.setdefault(note.name, (note, numbers))
            if runs[note.name] != (note, numbers):
                defects.append(f"{folder / RUNS}, line {number}: another run is named {note.name}, too: remove one")
    return [*runs.values()], defects


def digest_of(line: bytes) -> str:
    """Return the digest of a line of results.jsonl."""
    return hashlib.sha256(line).hexdigest()[:16]


def line_digests(numbers: Path) -> tuple[str, ...]:
    """Return the digest of each line of results.jsonl."""
    content = numbers.read_bytes().splitlines() if numbers.is_file() else []
    return tuple(digest_of(line) for line in content if line.strip())


def edited(note: Note | None, numbers: Path) -> str | None:
    """Return a message if lines of results.jsonl have changed since the run wrote them, else None.

    Added lines do not count.
    """
    lost = set(note.results) - set(line_digests(numbers)) if note else set()
    return f"{len(lost)} of {len(note.results)} lines were changed or removed after the run" if note and lost else None


def read_note(folder: Path) -> tuple[Note | None, list[str]]:
    """Return the note of a folder, or None, and a list of its defects."""
    path = folder / "node.json"
    if not path.is_file():
        return None, []
    if (version := _version(path)) not in (None, FORMAT):
        return None, [f"{path} has format {version}, but this version reads format {FORMAT}"]
    try:
        return Note.model_validate_json(path.read_text(encoding="utf-8")), []
    except (ValidationError, UnicodeDecodeError) as error:
        return None, [f"{path} cannot be read: {error}"]


def of_another_version(folder: Path) -> bool:
    """Return whether the note of a folder has a format that this version does not read."""
    path = folder / "node.json"
    return path.is_file() and _version(path) not in (None, FORMAT)


def write_note(folder: Path, note: Note) -> None:
    """Write node.json."""
    write_whole(folder / "node.json", note.model_dump_json(indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all. An OSError names the file, even if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _key(result: Result) -> tuple[object, ...]:
    """The number of a table that a result belongs to. A later success replaces a failure with the same key."""
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

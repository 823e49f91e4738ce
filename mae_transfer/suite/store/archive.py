"""An archive of a suite's numbers: small text files that a repository can hold, and that the suite reads as done.

DIR/results.jsonl holds the results of finished runs, DIR/runs.jsonl the notes of these runs, DIR/suite.json what tables
need to know. Weights and absolute paths are not kept. A result without a record has that of the line before it, as the
results of one run share their record. tools/tables.py DIR prints the tables of an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_transfer import results
from mae_transfer.disk import write_text
from mae_transfer.locks import locked
from mae_transfer.record import Record, software
from mae_transfer.results import Result
from mae_transfer.suite.store.records import (
    RUNS,
    About,
    Note,
    about_of,
    archived,
    digest_of,
    line_digests,
    write_note,
)

NUMBERS = "results.jsonl"
DIFFERS = "differs from the archive"
Numbers = dict[tuple[str, str, str], float | None]  # by protocol, split and metric


class RunArchive:
    """The runs in the archive of a suite, by name.

    Args:
        suite: title of the suite; None: of any.
    Raises:
        ValueError: the folder's files cannot be read, do not belong together, or are of another suite.
    """

    def __init__(self, root: Path, suite: str | None = None) -> None:
        self.root = root
        self.runs: dict[str, tuple[Note, list[Result]]] = {}
        if (root / RUNS).is_file():
            runs, defects = archived(root)
            if defects:
                raise ValueError(f"--archive {root}: {'; '.join(defects)}: restore the files")
            self.runs = {note.name: (note, numbers) for note, numbers in runs}
        elif (root / NUMBERS).is_file() or (about_of(root) != About() and not about_of(root).identities):
            raise ValueError(f"--archive {root} holds other files and no {RUNS}: restore it, or name a new folder")
        if others := {note.suite for note, _ in self.runs.values() if suite not in (None, note.suite)}:
            raise ValueError(f"--archive {root} holds runs of suite {min(others)!r}: use a folder of its own")

    def note(self, name: str) -> Note | None:
        """Return the note of a run; None if the archive does not have it."""
        return self.runs[name][0] if name in self.runs else None

    def of_other_code(self) -> list[str]:
        """Return the names of the runs with a number of another commit than that of this process."""
        here = {software().revision}
        return [name for name, (_, some) in self.runs.items() if any(not here.issuperset(r.revisions) for r in some)]

    def unpack(self, name: str, folder: Path) -> None:
        """Write results and note of a run into its folder in a work dir."""
        note, numbers = self.runs[name]
        file = folder / NUMBERS
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{one.model_dump_json()}\n" for one in numbers))
        write_note(folder, note.model_copy(update={"results": line_digests(file), "reason": "from the archive"}))

    def add(self, note: Note, folder: Path, *, replace: bool = False) -> str | None:
        """Add a finished run, and replace one of its name with another identity.

        If the archive has this run, keep the archived one (without `replace`), and return how the numbers compare.
        """
        with locked(self.root.with_name(f".{self.root.name}.lock")):
            self.runs = RunArchive(self.root).runs  # another process may have added runs
            return self._add(note, folder, replace)

    def _add(self, note: Note, folder: Path, replace: bool) -> str | None:
        file = folder / NUMBERS
        found = results.load(file)[0] if file.is_file() else []
        numbers = [_without_folders(one) for one in found if one.status == "ok"]
        known = self.runs.get(note.name)
        compared = None
        if known is not None and known[0].identity == note.identity:
            compared = _comparison(_values(known[1]), _values(numbers))
            if not replace:
                return compared
        digests = tuple(digest_of(line.encode()) for line in _packed(numbers))
        self.runs[note.name] = (note.model_copy(update={"command": [], "reason": None, "results": digests}), numbers)
        self.root.mkdir(parents=True, exist_ok=True)
        lines = [line for _, some in self.runs.values() for line in _packed(some)]
        replaced = _packed(known[1]) if known is not None else []
        # A note without its lines is an error, so both are there while the notes are replaced.
        _write(self.root / NUMBERS, [*lines, *replaced])
        _write(self.root / RUNS, [note.model_dump_json() for note, _ in self.runs.values()])
        if replaced:
            _write(self.root / NUMBERS, lines)
        return compared


def _write(file: Path, lines: Sequence[str]) -> None:
    write_text(file, "".join(f"{line}\n" for line in lines))


def _without_folders(result: Result) -> Result:
    """Return a result whose record names files and folders without their place on this machine."""
    if result.record is None:
        return result
    record = Record.model_validate(_last_parts(result.record.model_dump(mode="json")))
    return result.model_copy(update={"record": record})


def _last_parts(value: Any) -> Any:
    """Return nested values with every absolute path replaced by its last part."""
    if isinstance(value, dict):
        return {key: _last_parts(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_last_parts(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _packed(numbers: Sequence[Result]) -> list[str]:
    """Return results as lines; a record that is that of the result before is left out."""
    records = [None, *(one.record for one in numbers)]
    return [
        (one.model_copy(update={"record": None}) if one.record == before else one).model_dump_json()
        for one, before in zip(numbers, records, strict=False)
    ]


def _comparison(before: Numbers, now: Numbers) -> str:
    changed = [
        f"{' '.join(key)} {value} is now {now.get(key)}" for key, value in before.items() if value != now.get(key)
    ]
    return f"{DIFFERS}: {'; '.join(changed)}" if changed else "the same numbers as in the archive"


def _values(numbers: Sequence[Result]) -> Numbers:
    return {(one.protocol, one.split, one.metric): one.value for one in numbers}

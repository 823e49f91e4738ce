"""How each number of a report came to be: one entry per run, made from the records of its results.

Several numbers of one run share an entry. The record of a start's run is an entry, too, and the two are linked.
Results of an earlier version have no record: their entry holds what those versions wrote.
"""

from __future__ import annotations

import hashlib
import json
import pprint
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.config import flatten
from mae_transfer.record import DataSet, Record, Sitting, Weights
from mae_transfer.results import Result
from mae_transfer.suite.store import records
from mae_transfer.suite.store.records import Note

EARLIER = "Recorded by an earlier version, which kept no record of data, start weights and software."
FAILED = "No number and no record: the run failed."
OWN_LINES = ("seed", "backbone.reference")  # of a recipe: what the entry says itself


class Fact(NamedTuple):
    """A line of an entry."""

    name: str
    text: str
    anchor: str | None = None  # of another entry


class Origin(NamedTuple):
    """How the numbers of a run came to be."""

    anchor: str
    title: str
    sentence: str
    facts: list[Fact]
    numbers: list[str]
    command: str
    recipe: str | None  # anchor of its recipe


class Recipe(NamedTuple):
    """The resolved config of one run or of several that differ in seed and start weights only."""

    anchor: str
    title: str
    text: str
    runs: int


class Origins:
    """The entries of a report."""

    def __init__(self, found: Sequence[records.Measurement], runs: Mapping[Path, Note], root: Path) -> None:
        """Make the entries.

        Args:
            found: all results of the suite.
            runs: the suite's runs by folder.
            root: the suite's folder.
        """
        self._root = root.resolve()
        self._recipes: dict[str, Recipe] = {}
        self._results: dict[str, list[records.Measurement]] = {}
        for one in found:
            self._results.setdefault(self.anchor(one), []).append(one)
        self._folders: dict[Path, str] = {}
        for anchor, results in self._results.items():
            self._folders.setdefault(results[0].file.parent.resolve(), anchor)
        self.all = [self._origin(anchor, results) for anchor, results in self._results.items()]
        self.all += self._without_results(runs)
        self.all += self._inputs(found)

    @property
    def recipes(self) -> list[Recipe]:
        """The recipes of all entries, each once."""
        return list(self._recipes.values())

    def anchor(self, one: records.Measurement) -> str:
        """Return the id of the entry of a result."""
        return _anchor(one.result.record) if one.result.record else self._earlier(one)

    def of_folder(self, folder: Path) -> str:
        """Return the id of the first entry of a run; that of its note if it has no results."""
        return self._folders.get(folder.resolve()) or self._unfinished(folder)

    def _earlier(self, one: records.Measurement) -> str:
        result = one.result
        parts = (self._where(one.file), result.run, result.config_digest, result.seed, result.checkpoint_sha256)
        return f"record-{_digest(repr(parts))}"

    def _unfinished(self, folder: Path) -> str:
        return f"run-{_digest(self._where(folder))}"

    def _where(self, path: Path) -> str:
        """Return a path relative to the suite's folder."""
        path = path.resolve()
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)

    def _origin(self, anchor: str, results: Sequence[records.Measurement]) -> Origin:
        first, record = results[0], results[0].result.record
        folder = first.file.parent
        recipe: str | None
        if record is not None:
            facts = list(record_facts(record))
            recipe = self._recipe(record.recipe_digest, f"{record.task}, {record.method}", recipe_text(record.recipe))
        else:
            facts = list(earlier_facts(first.result))
            text = read_text(folder / "config.py")
            result = first.result
            title = f"{result.task}, {result.protocol}"
            recipe = self._recipe(result.recipe_digest or result.config_digest, title, text) if text else None
        files = dict.fromkeys(self._where(one.file) for one in results)
        facts += [*result_facts(first.result), Fact("file", ", ".join(files))]
        return Origin(
            anchor,
            first.note.name if first.note else self._where(folder),
            record.sentence() if record else EARLIER if earlier(first.result) else FAILED,
            facts,
            [number_text(one.result) for one in results],
            shlex.join(first.note.command) if first.note else "",
            recipe,
        )

    def _without_results(self, runs: Mapping[Path, Note]) -> Iterator[Origin]:
        """Yield an entry for each run that has no number (yet)."""
        for folder, note in runs.items():
            if folder.resolve() not in self._folders:
                text = read_text(folder / "config.py")
                recipe = self._recipe(_digest(text), note.name, text) if text else None
                facts = [Fact("state", note.state), *([Fact("reason", note.reason)] if note.reason else [])]
                command = shlex.join(note.command)
                yield Origin(self._unfinished(folder), note.name, "No results.", facts, [], command, recipe)

    def _inputs(self, found: Sequence[records.Measurement]) -> Iterator[Origin]:
        """Yield an entry for each run that made an input and has no result here."""
        made: dict[str, Record] = {}
        for one in found:
            for record in one.result.record.lineage() if one.result.record else ():
                made.setdefault(_anchor(record), record)
        for anchor, record in made.items():
            if anchor not in self._results:
                title, text = f"{record.run}, {record.task}", recipe_text(record.recipe)
                recipe = self._recipe(record.recipe_digest, f"{record.task}, {record.method}", text)
                yield Origin(anchor, title, record.sentence(), list(record_facts(record)), [], "", recipe)

    def _recipe(self, digest: str, title: str, text: str) -> str:
        """Count a run with this recipe; return the recipe's id.

        Recipes of one digest differ in seed and start weights only.
        """
        anchor = f"recipe-{_digest(digest)}"
        known = self._recipes.get(anchor, Recipe(anchor, title, text, 0))
        self._recipes[anchor] = known._replace(runs=known.runs + 1)
        return anchor


def earlier(result: Result) -> bool:
    """Return whether a result is of a version that made no records. A failed run may have none, either."""
    return result.record is None and result.status == "ok"


def record_facts(record: Record) -> Iterator[Fact]:
    """Yield what a record says, line by line."""
    yield Fact("task", f"{record.task}: {record.method}, {record.scale} scale")
    state = f", a training state after {record.length} epochs" if record.reached is not None else ""
    yield Fact("length", length_text(record.epochs, record.batch, record.seed) + state)
    before = {
        True: "not used by this run, used by a run before it",
        False: "not used by this run or a run before it",
        None: "not used by this run, unknown for its start weights",
    }
    yield Fact("labels", "used by this run" if record.labels else before[record.seen_labels])
    named: set[str | None] = set()
    for part, data in record.data.items():
        yield Fact(f"data, {part}", data_text(data, names=data.class_digest not in named))
        named.add(data.class_digest)
    for role, weights in record.inputs.items():
        yield Fact(role, weights_text(weights), _anchor(weights.record) if weights.record else None)
    if record.depends_on_device_batch:
        yield Fact("depends on images per device", ", ".join(record.depends_on_device_batch))
    software = list(dict.fromkeys(repr(sitting.software) for sitting in record.sittings))
    for number, sitting in enumerate(record.sittings, start=1):
        title = "sitting" if len(record.sittings) == 1 else f"sitting {number}"
        yield Fact(title, sitting_text(sitting))
        if number == 1 or repr(sitting.software) != repr(record.sittings[number - 2].software):
            name = "software" if len(software) == 1 else f"software from sitting {number}"
            yield Fact(name, software_text(sitting))
    if len(record.sittings) > 1:
        yield Fact("training in all", f"{record.train_seconds:.4g} s")
    yield Fact("config digest", f"{record.config_digest}, recipe {record.recipe_digest}")


def length_text(epochs: float, batch: int, seed: int) -> str:
    """Return "15 epochs, batch 32, seed 0"."""
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'}, batch {batch}" if epochs else "no training"
    return f"{length}, seed {seed}"


def data_text(data: DataSet, *, names: bool = True) -> str:
    """Return a data set with its counts, its fingerprint and, on request, the names of its classes."""
    counts = [] if data.objects is None else [f"{data.objects:,} objects"]
    counts += [f"{data.files:,} files of {data.bytes / 2**20:.1f} MiB" if data.files else "generated, no files"]
    classes = ["classes: " + ", ".join(data.class_names)] if data.class_names and names else []
    return "; ".join([data.text(), data.kind, *counts, f"fingerprint {data.fingerprint}", *classes])


def weights_text(weights: Weights) -> str:
    """Return start weights with their origin and digest."""
    kinds = {"run": "a run of this package", "released": "released", "file": "a file of unknown origin", "random": ""}
    digest = f"sha256 {weights.sha256}" if weights.sha256 else ""
    name = "random weights" if weights.kind == "random" else weights.name
    return ", ".join(filter(None, (name, kinds[weights.kind], weights.layout, digest)))


def sitting_text(sitting: Sitting) -> str:
    """Return when and where a sitting ran, and for how long."""
    counts = {name: sitting.devices.count(name) for name in sitting.devices}
    devices = ", ".join(f"{count} x {name}" for name, count in counts.items())
    seconds = sitting.seconds
    spent = f"training {seconds.train:.4g} s, evaluation {seconds.evaluate:.4g} s, saving {seconds.save:.4g} s"
    where = f"{devices}, {sitting.device_batch} images per device"
    return f"started {sitting.started_at} at step {sitting.first_step:,}; {where}; {spent}"


def software_text(sitting: Sitting) -> str:
    """Return the code and the packages of a sitting."""
    software = sitting.software
    changed = ", with changed files" if software.dirty else ""
    commit = f"commit {software.commit}{changed}" if software.commit else "no git checkout"
    packages = ", ".join(f"{name} {version}" for name, version in software.packages.items())
    return f"mae_transfer {software.version}, {commit}; {packages}"


def earlier_facts(result: Result) -> Iterator[Fact]:
    """Yield what a result without a record says of its origin."""
    yield Fact("task", f"{result.task}: {result.protocol}, {result.scale} scale")
    yield Fact("length", length_text(result.epochs, result.global_batch, result.seed))
    yield Fact("data", result.dataset)
    yield Fact("pretraining", result.pretrain)
    yield Fact("device", f"{result.world_size} x {result.device}")
    yield Fact("wall time", f"{result.wall_s:.4g} s, evaluation included")
    yield Fact("commit", result.commit or "not recorded")
    if result.versions:
        yield Fact("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items()))
    yield Fact("config digest", result.config_digest)


def result_facts(result: Result) -> Iterator[Fact]:
    """Yield what a result says beside its record."""
    yield Fact("model", f"{result.backbone}, {result.params / 1e6:.4g} M parameters with head")
    yield Fact("precision", result.precision + (f", matmul {result.matmul}" if result.matmul else ""))
    if result.normalization:
        yield Fact("normalization", result.normalization)
    yield Fact("checkpoint sha256", result.checkpoint_sha256 or "none: a fresh backbone")
    yield Fact("written", result.created_at)
    if result.unreadable:
        yield Fact("unreadable images left out", str(result.unreadable))


def number_text(result: Result) -> str:
    """Return "val top1 63.5 %"; why there is no number for a run that failed."""
    if result.value is None:
        return f"{result.split} {result.metric}: {result.status}, {result.reason or 'no reason given'}"
    return f"{result.split} {result.metric} {result.value:.6g} {result.unit}".rstrip()


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a resolved config as lines "key = value", without what the entries say themselves."""
    flat = flatten(recipe)
    return "\n".join(
        f"{key} = {pprint.pformat(value, width=100, sort_dicts=False)}"
        for key, value in flat.items()
        if key not in OWN_LINES
    )


def read_text(path: Path) -> str:
    """Return the text of a file; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def hours_by_device(found: Iterable[records.Measurement]) -> dict[str, float]:
    """Return the hours of training of all recorded runs by device; hours of different devices are never added."""
    hours: dict[str, float] = {}
    seen = {_anchor(one.result.record): one.result.record for one in found if one.result.record}
    for record in seen.values():
        for device, some in record.device_hours().items():
            hours[device] = hours.get(device, 0.0) + some
    return hours


def _anchor(record: Record) -> str:
    """Return the id of a record's entry."""
    return _anchor_of(_Same(id(record), record))


@dataclass(frozen=True)
class _Same:
    """A record that is compared by identity, because its content cannot be hashed."""

    key: int
    record: Record = field(compare=False)


@lru_cache(maxsize=4096)
def _anchor_of(one: _Same) -> str:
    """Files of weights carry seconds of training only, so the other seconds do not count."""
    return f"record-{_digest(json.dumps(one.record.exported().model_dump(mode='json'), sort_keys=True))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]

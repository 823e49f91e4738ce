"""The numbers of a table: which results are seeds of one number, their mean and spread, and notes for the reader.

Two results are seeds of one number if they have the same row, column, scale, data and recipe, and if their
pretrainings have the same recipe. If batch norm or mixup makes a model depend on images per device, they must also
have the same images per device and the same number of devices.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mae_transfer.config import flatten
from mae_transfer.record import Record
from mae_transfer.results import Result
from mae_transfer.suite.published import PUBLISHED, Published
from mae_transfer.suite.store.records import Measurement
from mae_transfer.suite.tables.layouts import LAYOUTS, Spot

GENERAL = ("row", "pretraining", "backbone", "protocol", "length")  # what a note names before config keys
DIGEST = "config"
NAMED_KEYS = 3  # config keys that a note names
OF_A_RUN = ("seed", "reference")  # config keys in which seeds of one number differ


class Spread(NamedTuple):
    """Mean and spread of some runs."""

    mean: float
    sd: float | None
    """Sample standard deviation over the runs; None for a single run."""
    low: float
    high: float
    n: int


class Run(NamedTuple):
    """One run that counts in a cell."""

    value: float
    seed: int
    pretraining: str | None
    """Digest of the weights that it started from; None: random weights."""
    pretraining_seed: int | None
    """Seed of the run that pretrained them; None if it is unknown or there is none."""
    record: Measurement


class Cell(NamedTuple):
    """One number of a table: ours, the published one, or both."""

    row: str
    column: str
    unit: str
    runs: tuple[Run, ...] = ()
    """The runs that count, one per pretraining and seed."""
    result: Result | None = None
    """One of our results; None if the number was only published."""
    published: Published | None = None
    """The number that stands beside ours, or alone."""
    why_not: str | None = None
    """Why no published number stands beside ours."""
    nearest: Published | None = None
    """The published number that `why_not` is about."""
    notes: tuple[str, ...] = ()
    aspects: Mapping[str, str] = {}
    """What may tell it from another cell of the same row and column."""

    @property
    def ours(self) -> Spread | None:
        """Mean and spread of our runs; None without any."""
        return spread([run.value for run in self.runs]) if self.runs else None

    @property
    def difference(self) -> float | None:
        """Ours minus published; None unless both are there."""
        return self.ours.mean - self.published.value if self.ours and self.published else None

    @property
    def scale(self) -> str:
        """Scale of our runs; "" if the number was only published."""
        return self.result.scale if self.result else ""

    @property
    def dataset(self) -> str:
        """Data set of our runs; "" if the number was only published."""
        return self.result.dataset if self.result else ""

    @property
    def recipe(self) -> str:
        """Pretraining, backbone, protocol, epochs and batch of our runs; "" if the number was only published."""
        return recipe(self.result) if self.result else ""

    @property
    def pretrainings(self) -> int:
        """Number of pretrainings that the runs started from; 0 for random weights."""
        return len({run.pretraining for run in self.runs} - {None})

    @property
    def counts(self) -> str:
        """What the number is the mean of: "3 pretrainings x 2 transfers"."""
        n, pretrained = len(self.runs), self.pretrainings
        if not pretrained or (self.result and self.result.task == "pretrain"):
            return _plural(n, "run")
        each = {sum(run.pretraining == one for run in self.runs) for one in {run.pretraining for run in self.runs}}
        if pretrained > 1 and len(each) == 1:
            return f"{pretrained} pretrainings x {_plural(each.pop(), 'transfer')}"
        return f"{_plural(pretrained, 'pretraining')}, {_plural(n, 'transfer')}"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and spread of at least one value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    mean = statistics.mean(values)  # exact, so that it is never outside the range of equal values, as fmean's may be
    return Spread(mean, sd, min(values), max(values), len(values))


def cells(table: str, found: Sequence[Measurement]) -> list[Cell]:
    """Return what was run for a table, in the order in which it was found. A row and column may have several cells."""
    alike: dict[tuple[object, ...], list[Spot]] = defaultdict(list)
    for place in LAYOUTS[table].places(found):
        result = place.record.result
        alike[place.row, place.column, place.unit, place.record.label, result.scale, result.dataset].append(place)
    return [_cell(group) for places in alike.values() for group in _groups(places)]


def published(table: str) -> list[Cell]:
    """Return the published numbers of a table, each as a cell of its own."""
    return [Cell(one.row, one.column, one.unit, published=one) for one in PUBLISHED if one.table == table]


def recipe(result: Result) -> str:
    """Return pretraining, backbone, protocol and length of a result."""
    length = f"{result.epochs:g} ep x {result.global_batch}" if result.epochs else "no training"
    if result.task == "pretrain":
        return f"{result.pretrain}; {length}"
    return f"{result.pretrain}; {result.backbone}; {result.protocol}, {length}"


def _groups(places: Sequence[Spot]) -> list[list[Spot]]:
    """Return the places of one row and column as groups of one number.

    A failed run has no record: it joins a group of its recipe, or the first.
    """
    groups: dict[tuple[object, ...], list[Spot]] = defaultdict(list)
    for place in places:
        if place.record.result.status == "ok":
            groups[place.why_not, *_same(place.record.result)].append(place)
    known = list(groups.values())
    for place in places:
        if place.record.result.status != "ok":
            wanted = recipe(place.record.result)
            same = [group for group in known if recipe(group[0].record.result) == wanted]
            if not known:
                known.append([])
            (same or known)[0].append(place)
    return known


def _same(result: Result) -> tuple[object, ...]:
    """Return what two results must share to be seeds of one number."""
    if result.record is None:
        return recipe(result), result.recipe_digest
    state = result.steps if "checkpoint" in result.record.inputs else None
    return recipe(result), state, *(_made_with(one) for one in result.record.lineage())


def _made_with(one: Record) -> tuple[object, ...]:
    """Return what two runs share that differ in their seed alone: recipe, length, data, weights without a record."""
    data = sorted((part, data.images, data.fingerprint) for part, data in one.data.items())
    weights = sorted(
        (role, w.kind, w.name, w.sha256 or "")
        for role, w in one.inputs.items()
        if w.record is None and w.kind != "random"
    )
    return one.recipe_digest, one.reached, tuple(data), tuple(weights), _per_device(one)


def _per_device(one: Record) -> tuple[tuple[int, int], ...]:
    """Return images per device and number of devices of each sitting, if the numbers depend on them."""
    if not one.depends_on_device_batch:
        return ()
    trained = [sitting for sitting in one.sittings if sitting.seconds.train > 0]
    return tuple(dict.fromkeys((sitting.device_batch, len(sitting.devices)) for sitting in trained))


def _cell(group: Sequence[Spot]) -> Cell:
    """Return the cell of the results of one number.

    Of several results of one pretraining and seed the newest counts.
    """
    ordered = sorted(group, key=lambda place: place.record.result.created_at)
    good = [place for place in ordered if place.record.result.status == "ok" and place.value is not None]
    newest = {_identity(place.record.result): place for place in good}
    runs = sorted((_run(place) for place in newest.values()), key=lambda run: (run.seed, str(run.pretraining)))
    place = good[0] if good else ordered[0]
    known = place.published
    beside, near = (known, None) if place.why_not is None else (None, known)
    commits = sorted({one for run in runs for one in run.record.result.revisions or ("unknown",)})
    several = [f"of commits {', '.join(commits)}"] if len(commits) > 1 else []
    notes = (*_holes(ordered, good), *_repeats(good, newest), *several)
    about = (place.record.result, beside, place.why_not, near, notes, _aspects(place))
    return Cell(place.row, place.column, place.unit, tuple(runs), *about)


def _run(place: Spot) -> Run:
    result = place.record.result
    before = result.record.pretraining() if result.record else None
    assert place.value is not None
    return Run(place.value, seed_of(result), pretraining(result), before.seed if before else None, place.record)


def seed_of(result: Result) -> int:
    """Return the seed of a transfer; that of an evaluated training state is the seed it was trained with."""
    checkpoint = result.record.inputs.get("checkpoint") if result.record else None
    return checkpoint.record.seed if checkpoint and checkpoint.record else result.seed


def pretraining(result: Result) -> str | None:
    """Return what tells one pretraining from another: recipe and seed, digest, or name; None: random weights."""
    inputs = result.record.inputs if result.record else {}
    weights = inputs.get("backbone") or inputs.get("checkpoint")
    if weights is not None:
        if weights.record is not None:  # a file that was written again is no other pretraining
            return f"{weights.record.recipe_digest}, seed {weights.record.seed}"
        return None if weights.kind == "random" else weights.sha256 or weights.name
    if result.pretrain == "none":
        return None
    return result.pretrain if _evaluated(result) else result.checkpoint_sha256 or result.pretrain


def _evaluated(result: Result) -> bool:
    """Return whether a result is of a training state that was only evaluated: its digest is not that of a backbone."""
    if result.record is not None:
        return "checkpoint" in result.record.inputs
    return result.task == "robustness" or (result.epochs == 0 and result.steps > 0)


def _identity(result: Result) -> tuple[object, ...]:
    """Return what two results of one number share if the newer replaces the older."""
    return pretraining(result), result.checkpoint_sha256 if _evaluated(result) else None, seed_of(result)


def _holes(ordered: Sequence[Spot], good: Sequence[Spot]) -> list[str]:
    """Return a note per seed whose last run has no number."""
    last: dict[int, Result] = {}
    for place in ordered:
        if place.record.result.status != "ok":
            last[place.record.result.seed] = place.record.result
    repaired = {place.record.result.seed: place.record.result.created_at for place in good}
    return [
        f"seed {seed} {hole.status}: {hole.reason or 'no reason given'}"
        for seed, hole in sorted(last.items())
        if hole.created_at > repaired.get(seed, "")
    ]


def _repeats(good: Sequence[Spot], newest: Mapping[tuple[object, ...], Spot]) -> list[str]:
    """Return a note per seed that has several numbers."""
    notes = []
    for identity, counted in newest.items():
        values = [place.value for place in good if _identity(place.record.result) == identity]
        before = sorted({f"{value:.2f}" for value in values if value not in (None, counted.value)}, key=float)
        if before:
            seed = seed_of(counted.record.result)
            notes.append(f"seed {seed} ran more than once, the newest counts (before: {', '.join(before)})")
    return notes


def _aspects(place: Spot) -> dict[str, str]:
    result = place.record.result
    about = {
        "row": place.record.label or "",
        "pretraining": result.pretrain,
        "backbone": result.backbone,
        "protocol": result.protocol,
        "length": f"{result.epochs:g} epochs x {result.global_batch}",
        "state": f"state of step {result.steps}",
    }
    for number, one in enumerate(result.record.lineage() if result.record else ()):
        stage = "" if number == 0 else f"{one.task}: "
        values = {key: value for key, value in flatten(one.recipe).items() if key.rpartition(".")[2] not in OF_A_RUN}
        about |= {f"{stage}{key}": f"{stage}{key} = {value}" for key, value in values.items()}
        about |= {
            f"{stage}{part}": f"{stage}{part} images: {data.text()}, fingerprint {data.fingerprint}"
            for part, data in one.data.items()
        }
        about |= {
            f"{stage}{role}": f"{stage}{role}: {weights.name} ({(weights.sha256 or 'no file')[:12]})"
            for role, weights in one.inputs.items()
            if weights.record is None
        }
        sizes = ", then ".join(f"{images} on {_plural(devices, 'device')}" for images, devices in _per_device(one))
        if sizes:
            why = " and ".join(one.depends_on_device_batch)
            about[f"{stage}images per device"] = f"{stage}images per device: {sizes} (the numbers depend on it: {why})"
    digest = f"config {result.recipe_digest}" if result.recipe_digest else "config not recorded"
    return about | {DIGEST: f"{digest}, earlier version" if result.record is None else digest}


def told_apart(alike: Sequence[Cell]) -> list[str]:
    """Return for each of some cells of one row and column what tells it from the others.

    Config keys are named if pretraining, backbone, protocol and length do not tell all of them apart, the digest of the
    config if no key does.
    """
    keys = [key for key in alike[0].aspects if all(key in cell.aspects for cell in alike)]
    differing = [key for key in keys if len({cell.aspects[key] for cell in alike}) > 1]
    details = [""] * len(alike)
    for some in (GENERAL, [key for key in differing if key not in (*GENERAL, DIGEST)], (DIGEST,)):
        if len(set(details)) < len(alike):
            shown = [key for key in some if key in differing]
            details = [
                "; ".join(filter(None, (old, _about(cell, shown)))) for old, cell in zip(details, alike, strict=True)
            ]
    return details


def _about(cell: Cell, keys: Sequence[str]) -> str:
    known = [cell.aspects[key] for key in keys]
    more = f", {len(known) - NAMED_KEYS} more" if len(known) > NAMED_KEYS else ""
    return "; ".join(filter(None, known[:NAMED_KEYS])) + more


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"

"""Published claims beside our numbers: paired differences, and a verdict by the rule that the suite states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from mae_transfer.suite.expect import Expectation, Outcome, Place, of_parts, outcome
from mae_transfer.suite.published import PUBLISHED
from mae_transfer.suite.store.records import About, Measurement
from mae_transfer.suite.tables.cells import Cell, Run, Spread, spread
from mae_transfer.suite.tables.comparison import build, comparable, numbers, paired
from mae_transfer.suite.tables.figures import STYLE, Gaps, differences, write
from mae_transfer.suite.tables.formats import Line, Sheet, Text
from mae_transfer.suite.tables.layouts import LAYOUTS

VALUES = {(one.table, one.row, one.column): one.value for one in PUBLISHED}
UNITS = {(one.table, one.row, one.column): one.unit for one in PUBLISHED}
TITLE = "Claims of the paper"
HEAD = ("claim", "compared", "published", "ours: difference [lowest..highest]", "outcome", "verdict")
PAIRS = (
    "A difference is taken between runs with equal seeds of pretraining and transfer. A claim is not measured while a "
    "seed is missing, or if data, scale, backbone, protocol, epochs or batch of two numbers of one column differ"
)
ABOVE = "above (>): holds if every difference is above 0, reversed if every one is below 0, else undecided"
SIGNS = (
    "tie (=): holds if the differences have both signs or one is 0, else there is no tie: the row is higher or lower"
)
MARGIN = (
    "tie within a margin (= within 1): holds if no difference is larger than the margin. There is no tie if all are "
    "larger and have one sign, else it is undecided"
)
PARTS = (
    "A claim of several parts with one outcome has that one. It holds in part if some of its parts hold, and is "
    "undecided otherwise"
)


class JudgedPart(NamedTuple):
    """One comparison of a claim."""

    asked: Expectation
    cells: tuple[Cell | None, ...]
    """The number of the row, then those that it is compared with; None: it was not measured."""
    differences: dict[int, float]
    """By seed."""
    outcome: Outcome
    note: str = ""
    """Why numbers that are there are not compared."""

    @property
    def unit(self) -> str:
        """Unit of the numbers; "%" if nothing was measured."""
        return next((cell.unit for cell in self.cells if cell), "%")

    @property
    def compared(self) -> str:
        """What is compared, in words: "linear: MAE > ratio 20%", "partial: MAE > mean of linear and fine-tune"."""
        asked = self.asked
        columns = f"{'mean of ' if len(asked.against) > 1 else ''}{' and '.join(asked.against)}"
        other = ", ".join(filter(None, (asked.above, columns)))
        within = f" within {asked.by:g}" if asked.by else ""
        return f"{asked.column}: {asked.row} {'=' if asked.rule == 'tie' else '>'} {other}{within}"

    @property
    def ours(self) -> Spread | None:
        """Mean and range of the differences."""
        return spread(list(self.differences.values())) if self.differences else None

    @property
    def published(self) -> str:
        """The published effect with its place: "+14.6 (figure 5)"; a ratio if it is not in percent."""
        if not self.asked.published:
            return "-"
        first, *others = (VALUES[place] for place in self.asked.published)
        percent = UNITS[self.asked.published[0]] == "%"
        effect = signed(published_effect(self.asked.published), "%") if percent else times(first, others)
        tables = dict.fromkeys(table for table, _, _ in self.asked.published)
        return f"{effect} ({', '.join(LAYOUTS[table].title.partition(':')[0] for table in tables)})"

    @property
    def published_points(self) -> float | None:
        """The published effect in points; None if there is none, or if it has another unit."""
        places = self.asked.published
        return published_effect(places) if places and {UNITS[place] for place in places} == {"%"} else None


class JudgedClaim(NamedTuple):
    """A published claim, and whether our numbers agree."""

    words: str
    parts: tuple[JudgedPart, ...]
    verdict: Outcome


def judge(found: Sequence[Measurement], about: About) -> list[JudgedClaim]:
    """Return the claims of a suite with their verdicts."""
    asked = dict.fromkeys(one.claim for one in about.claims if one.claim)
    asked_of = dict.fromkeys(one.table for one in about.claims)
    tables = {name: numbers(build([name], found, show="none", about=about)) for name in asked_of}
    claims = []
    for words in asked:
        parts = tuple(_part(one, tables[one.table], about) for one in about.claims if one.claim == words)
        claims.append(JudgedClaim(words, parts, of_parts([part.outcome for part in parts])))
    return claims


def judge_suites(found: Sequence[Measurement], suites: Mapping[Path, About]) -> list[JudgedClaim]:
    """Return the claims of several suites by folder, each judged by the numbers in its folder alone."""
    return [
        claim
        for root, about in suites.items()
        for claim in judge([one for one in found if root in one.file.parents], about)
    ]


def published_effect(places: Sequence[Place]) -> float:
    """Return the first published number minus the mean of the others."""
    first, *others = (VALUES[place] for place in places)
    return first - spread(others).mean


def sheets(claims: Sequence[JudgedClaim]) -> Iterator[Sheet]:
    """Yield the table of claims, numbered as their figures, and the numbers behind it; nothing without claims."""
    if not claims:
        return
    rows = [_texts(number, claim, part) for number, claim in enumerate(claims, start=1) for part in claim.parts]
    yield Sheet(TITLE, HEAD, tuple(rows), tuple(rules(claims)))
    behind = [row for claim in claims for part in claim.parts for row in _behind(part)]
    if behind:
        head = ("compared", "row", "compared with", "difference", "config and commit of each number")
        yield Sheet(f"{TITLE}: numbers by seed", head, tuple(behind), paired=True)


def rules(claims: Sequence[JudgedClaim]) -> Iterator[str]:
    """Yield the rules by which these claims are judged."""
    asked = [part.asked for claim in claims for part in claim.parts]
    yield PAIRS
    for rule, used in (
        (ABOVE, any(one.rule == "above" for one in asked)),
        (SIGNS, any(one.rule == "tie" and not one.by for one in asked)),
        (MARGIN, any(one.rule == "tie" and one.by for one in asked)),
        (PARTS, any(len(claim.parts) > 1 for claim in claims)),
    ):
        if used:
            yield rule


def figure(claim: JudgedClaim) -> Figure | None:
    """Return the paired differences of a claim beside the published ones; None if no part was measured.

    A published effect in another unit than ours is left out.
    """
    panels = []
    for part in claim.parts:
        values, known = tuple(part.differences.values()), part.published_points
        panels.append(Gaps(part.compared, part.outcome, values, part.unit, known, part.asked.by))
    return differences(panels) if any(panel.values for panel in panels) else None


def save(claims: Sequence[JudgedClaim], folder: Path) -> list[Path]:
    """Draw every claim that has results into the folder, as svg; return the files."""
    with mpl.rc_context(STYLE):
        drawn = {f"claim_{number:02}": figure(claim) for number, claim in enumerate(claims, start=1)}
        return write({name: one for name, one in drawn.items() if one}, folder)


def lines(claims: Sequence[JudgedClaim]) -> Iterator[Line]:
    """Yield one line per part of a claim, for other programs."""
    for claim in claims:
        for part in claim.parts:
            names = ("mean", "sd", "lowest", "highest", "runs")
            figures = zip(names, part.ours or ("",) * len(names), strict=True)
            yield {
                "table": TITLE, "row": claim.words, "column": part.compared, "unit": part.unit,
                **{name: "" if value in ("", None) else f"{value:.10g}" for name, value in figures},
                "published": "" if part.published_points is None else f"{part.published_points:.10g}",
                "notes": f"part: {part.outcome}; claim: {claim.verdict}",
            }  # fmt: skip


def _part(asked: Expectation, rows: dict[str, dict[str, Cell]], about: About) -> JudgedPart:
    wanted = [(asked.row, asked.column)]
    wanted += [(asked.above or asked.row, column) for column in asked.against or (asked.column,)]
    one, *others = cells = tuple(rows.get(row, {}).get(column) for row, column in wanted)
    differences: dict[int, float] = {}
    note = ""
    if (
        one
        and not asked.against
        and any(other and other.unit == "%" and not comparable(one, other) for other in others)
    ):
        note = "not compared: data, scale, backbone, protocol, epochs or batch differ"
    elif not all(cells) and (split := [name for row, column in wanted for name in _split(rows.get(row, {}), column)]):
        note = f"not compared: the runs differ in data, protocol or backbone ({', '.join(dict.fromkeys(split))})"
    elif one and all(others):
        found = [_by_seed(one, other) for other in others if other]
        shared = [seed for seed in about.seeds if all(seed in some for some in found)]
        differences = {seed: spread([some[seed] for some in found]).mean for seed in shared}
    verdict = outcome(asked.rule, [*differences.values()], seeds=len(about.seeds), by=asked.by)
    return JudgedPart(asked, cells, differences, verdict, note)


def _split(row: dict[str, Cell], column: str) -> Iterator[str]:
    """Yield the columns that stand for one because its runs differ: "linear, tiny" and "linear, tiny2"."""
    return (name for name in row if name.startswith(f"{column}, "))


def _by_seed(one: Cell, other: Cell) -> dict[int, float]:
    """Return the differences of two numbers by the seed of the transfer."""
    pairs = paired(one.runs, other.runs)
    return {seed: spread([value for (_, own), value in pairs.items() if own == seed]).mean for _, seed in pairs}


def _texts(number: int, claim: JudgedClaim, part: JudgedPart) -> tuple[Text, ...]:
    ours = part.ours
    text = part.note or "not measured yet"
    if ours and part.unit != "%":
        one, *others = (spread([run.value for run in cell.runs]).mean for cell in part.cells if cell)
        text = times(one, others)
    elif ours:
        low, high = (signed(value, part.unit) for value in (ours.low, ours.high))
        text = f"{signed(ours.mean, part.unit)} [{low}..{high}]"
    text += f" ({ours.n} of the seeds)" if ours and part.outcome == "not measured" else ""
    return (
        Text(f"{number}. {claim.words}"), Text(part.compared), Text(part.published), Text(text), Text(part.outcome),
        Text(claim.verdict, "best" if claim.verdict not in ("undecided", "not measured", "holds in part") else ""),
    )  # fmt: skip


def _behind(part: JudgedPart) -> Iterator[tuple[Text, ...]]:
    """Yield the numbers of each seed, with the config digest and the commit of each."""
    for seed, difference in part.differences.items():
        sides = [cell._replace(runs=tuple(run for run in cell.runs if run.seed == seed)) for cell in part.cells if cell]
        own, *others = (Text(_mean(cell), cell=cell) for cell in sides)
        other = others[0] if len(others) == 1 else Text(", ".join(text.text for text in others))
        made = " | ".join(", ".join(_origin(run) for run in cell.runs) for cell in sides)
        yield Text(f"{part.compared}, seed {seed}"), own, other, Text(signed(difference, part.unit)), Text(made)


def _mean(cell: Cell) -> str:
    value = spread([run.value for run in cell.runs]).mean
    return f"{value:.2f}" if cell.unit == "%" else f"{value:.4g}"


def _origin(run: Run) -> str:
    """Return what identifies a number: config digest, commit, and the same of its pretraining."""
    result = run.record.result
    before = result.record.pretraining() if result.record else None
    text = f"{result.config_digest} {' and '.join(result.revisions)}"
    return text + (f" from {before.config_digest} seed {before.seed}" if before else "")


def times(one: float, others: Sequence[float]) -> str:
    """Return a number divided by the mean of others as text: "3.3 times"."""
    return f"{one / spread(list(others)).mean:.3g} times"


def signed(value: float, unit: str) -> str:
    """Return a difference as text: "+0.87", "+2.3 x"."""
    return f"{value:+.2f}" if unit == "%" else f"{value:+.3g} {unit}"

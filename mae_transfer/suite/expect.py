"""What a suite must show, and published claims with the rules of their verdicts, which are stated before any result.

A claim is compared seed by seed: a difference is taken between runs with equal seeds of pretraining and transfer. With
fewer seeds than the suite has, a claim is not measured. Then by the rule of each part of it:

above: holds if every difference is above 0, reversed if every difference is below 0, else undecided.
tie: holds if the differences have both signs or one is 0; if all have one sign: no tie, the row is higher or lower.
tie with a margin (`by`): holds if no difference is larger than the margin. If all are larger and have one sign: no tie.
    Else undecided.

A claim of several parts with one outcome has that one. It holds in part if some of its parts hold, and is undecided
otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Self

from pydantic import model_validator

from mae_transfer.bounds import NonNegative
from mae_transfer.config import Schema

Place = tuple[str, str, str]
"""Table, row and column of a published number."""
Rule = Literal["above", "tie"]
Outcome = Literal["holds", "reversed", "no tie: higher", "no tie: lower", "undecided", "not measured", "holds in part"]


class Expectation(Schema):
    """An ordering or a minimum that a suite must show, or a part of a published claim that it tests."""

    column: str
    """A column of `table`, for example "fine-tune"."""
    row: str
    """The row that is expected to be better."""
    above: str | None = None
    """The row that it is compared with. None: `by` is the minimum of `row`; of a claim, `row` itself in `against`."""
    by: NonNegative = 0.0
    """The minimum difference, in points. Of a tie: the largest difference of equals; 0: the signs decide."""
    claim: str | None = None
    """The published claim that this is a part of, in words; its parts have the same words. A claim has a verdict. What
    is no claim compares means, and tools/reproduce.py exits with 1 if it does not hold."""
    rule: Rule = "above"
    """How the differences of a claim are judged: above (`row` is better) or tie."""
    table: str = "summary"
    """The table of a claim's numbers."""
    against: tuple[str, ...] = ()
    """The columns whose mean a claim's `column` is compared with. Empty: the same column."""
    published: tuple[Place, ...] = ()
    """Of a claim: the published number of `row`, and those that it is compared with. Their mean counts."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.claim is None and (self.against or self.published or self.rule != "above" or self.table != "summary"):
            raise ValueError(f"expect of {self.row!r}: against, published, rule and table need a `claim`; set one")
        if self.claim is not None and self.above is None and not self.against:
            raise ValueError(f"claim {self.claim!r}: name the row that {self.row!r} is compared with in `above`")
        if self.claim is not None and self.by and self.rule != "tie":
            raise ValueError(f"claim {self.claim!r}: by = {self.by:g}, but only a tie has a margin; remove it")
        if len(self.published) == 1:
            raise ValueError(f"claim {self.claim!r}: `published` has one number; add those that it is compared with")
        return self


def outcome(rule: Rule, differences: Sequence[float], *, seeds: int, by: float = 0.0) -> Outcome:
    """Return the verdict on a part of a claim.

    Args:
        differences: one per seed that was measured.
        seeds: number of seeds of the suite.
        by: margin of a tie, in points.
    """
    if len(differences) < seeds or not differences:
        return "not measured"
    differences = [round(value, 9) for value in differences]  # 30 of 3,000 images are 1.0 points
    signs = {(value > 0) - (value < 0) for value in differences}
    if rule == "above":
        return "holds" if signs == {1} else "reversed" if signs == {-1} else "undecided"
    if by and all(abs(value) <= by for value in differences):
        return "holds"
    if signs in ({1}, {-1}) and all(abs(value) > by for value in differences):
        return "no tie: higher" if signs == {1} else "no tie: lower"
    return "undecided" if by else "holds"


def of_parts(outcomes: Collection[Outcome]) -> Outcome:
    """Return the verdict on a claim."""
    if "not measured" in outcomes:
        return "not measured"
    if len(set(outcomes)) == 1:
        return next(iter(outcomes))
    return "holds in part" if "holds" in outcomes else "undecided"

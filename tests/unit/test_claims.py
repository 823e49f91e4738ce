"""suite/expect.py and suite/tables/claims.py: verdicts by rule, and the table of claims from hand-made results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mae_transfer.config import load, validate
from mae_transfer.record import DataSet
from mae_transfer.suite.expect import Expectation, of_parts, outcome
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.report.page import claim_charts
from mae_transfer.suite.store.records import About, Measurement
from mae_transfer.suite.tables import claims
from tests.unit.test_comparison import transfer
from tests.unit.test_tables import recorded

SEEDS = (0, 1, 2)
SUITE = Path(__file__).parents[2] / "configs" / "suites" / "claims.py"


@pytest.mark.parametrize(("rule", "differences", "verdict"), [
    ("above", (1.0, 0.1, 2.0), "holds"),
    ("above", (-1.0, -0.1, -2.0), "reversed"),
    ("above", (1.0, -0.1, 2.0), "undecided"),
    ("above", (1.0, 0.0, 2.0), "undecided"),
    ("above", (1.0, 2.0), "not measured"),
    ("above", (), "not measured"),
    ("tie", (1.0, -0.1, 2.0), "holds"),
    ("tie", (1.0, 0.0, 2.0), "holds"),
    ("tie", (1.0, 0.1, 2.0), "no tie: higher"),
    ("tie", (-1.0, -0.1, -2.0), "no tie: lower"),
    ("tie", (1.0, -0.1), "not measured"),
])  # fmt: skip
def test_the_signs_of_the_differences_decide(rule: Any, differences: tuple[float, ...], verdict: str) -> None:
    assert outcome(rule, differences, seeds=3) == verdict


@pytest.mark.parametrize(("differences", "verdict"), [
    ((0.5, -0.9, 1.0), "holds"),
    ((0.5, 0.2, 0.1), "holds"),
    ((1.1, 3.0, 2.0), "no tie: higher"),
    ((-1.1, -3.0, -2.0), "no tie: lower"),
    ((0.9, 3.0, 2.0), "undecided"),
    ((-5.0, 3.0, 2.0), "undecided"),
    ((0.1, 0.1), "not measured"),
])  # fmt: skip
def test_a_tie_within_a_margin_needs_every_difference_inside_it(differences: tuple[float, ...], verdict: str) -> None:
    assert outcome("tie", differences, seeds=3, by=1.0) == verdict


def test_thirty_of_3000_images_are_one_point() -> None:
    difference = 304 / 3000 * 100 - 334 / 3000 * 100
    assert difference < -1.0
    assert outcome("tie", (difference, 0.2, 0.3), seeds=3, by=1.0) == "holds"
    assert outcome("tie", (difference, difference, difference), seeds=3, by=1.0) == "holds"


@pytest.mark.parametrize(("parts", "verdict"), [
    (("holds", "holds"), "holds"),
    (("reversed", "reversed"), "reversed"),
    (("holds", "reversed"), "holds in part"),
    (("holds", "undecided"), "holds in part"),
    (("reversed", "undecided"), "undecided"),
    (("reversed", "not measured"), "not measured"),
])  # fmt: skip
def test_a_claim_follows_its_parts(parts: tuple[Any, ...], verdict: str) -> None:
    assert of_parts(parts) == verdict


def found(row: str, values: tuple[float, ...], protocol: str = "finetune", fresh: bool = False) -> list[Measurement]:
    some = [transfer(v, seed, weights=f"w{seed}", protocol=protocol, fresh=fresh) for seed, v in enumerate(values)]
    return recorded(*some, row=row)


def judged(one: dict[str, Any], *numbers: list[Measurement]) -> claims.JudgedClaim:
    about = About(claims=(Expectation(claim="c", **one),), seeds=SEEDS)
    return claims.judge([record for some in numbers for record in some], about)[0]


def test_differences_are_taken_seed_by_seed_also_to_random_weights() -> None:
    asked = {"column": "fine-tune", "row": "a", "above": "b"}
    claim = judged(asked, found("a", (60.0, 61.0, 62.0)), found("b", (59.5, 59.0, 61.9), fresh=True))
    assert claim.verdict == "holds"
    assert claim.parts[0].differences == pytest.approx({0: 0.5, 1: 2.0, 2: 0.1})


def test_a_missing_seed_leaves_a_claim_unmeasured_and_shows_what_is_there() -> None:
    claim = judged(
        {"column": "fine-tune", "row": "a", "above": "b"}, found("a", (60.0, 61.0)), found("b", (59.0, 60.0))
    )
    assert claim.verdict == "not measured"
    assert claim.parts[0].differences == {0: 1.0, 1: 1.0}
    nothing = judged({"column": "fine-tune", "row": "a", "above": "b"}, found("a", (60.0, 61.0, 62.0)))
    assert (nothing.verdict, nothing.parts[0].differences) == ("not measured", {})


def test_several_columns_are_compared_by_their_mean() -> None:
    numbers = [
        found("a", v, p) for p, v in (("partial-1", (9.0, 9.0, 9.0)), ("linear", (1.0,) * 3), ("finetune", (11.0,) * 3))
    ]
    claim = judged({"column": "partial", "row": "a", "against": ("linear", "fine-tune")}, *numbers)
    assert claim.parts[0].differences == {0: 3.0, 1: 3.0, 2: 3.0}


def test_numbers_of_other_settings_are_not_compared() -> None:
    longer = [one._replace(result=one.result.model_copy(update={"epochs": 77.0})) for one in found("a", (60.0,) * 3)]
    claim = judged({"column": "fine-tune", "row": "a", "above": "b"}, longer, found("b", (59.0,) * 3))
    assert (claim.verdict, claim.parts[0].differences) == ("not measured", {})
    assert "epochs or batch differ" in next(claims.sheets([claim])).rows[0][3].text


@pytest.mark.parametrize("changes", [{"scale": "paper"}, {"dataset": "others"}])
def test_numbers_of_other_images_or_scales_are_not_compared(changes: dict[str, Any]) -> None:
    other = [one._replace(result=one.result.model_copy(update=changes)) for one in found("b", (59.0,) * 3)]
    claim = judged({"column": "fine-tune", "row": "a", "above": "b"}, found("a", (60.0,) * 3), other)
    assert (claim.verdict, claim.parts[0].differences) == ("not measured", {})
    assert claim.parts[0].note.startswith("not compared: ")


def test_fingerprints_tell_images_of_one_name_apart() -> None:
    def of(one: Measurement, fingerprint: str) -> Measurement:
        assert one.result.record is not None
        images = DataSet(name="shapes", kind="Folder", images=3, whole=3, fingerprint=fingerprint)
        record = one.result.record.model_copy(update={"data": {"val": images}})
        return one._replace(result=one.result.model_copy(update={"record": record, "split": "val"}))

    asked = {"column": "fine-tune", "row": "a", "above": "b"}
    mine = [of(one, "1") for one in found("a", (60.0,) * 3)]
    assert judged(asked, mine, [of(one, "1") for one in found("b", (59.0,) * 3)]).verdict == "holds"
    assert judged(asked, mine, [of(one, "2") for one in found("b", (59.0,) * 3)]).verdict == "not measured"


def test_each_suite_is_judged_by_the_numbers_of_its_folder(tmp_path: Path) -> None:
    asked = Expectation(claim="c", column="fine-tune", row="a", above="b")
    about = About(claims=(asked,), seeds=SEEDS)
    here = [one._replace(file=tmp_path / "x" / "results.jsonl") for one in found("a", (60.0,) * 3)]
    there = [one._replace(file=tmp_path / "y" / "results.jsonl") for one in found("b", (59.0,) * 3)]
    judged_claims = claims.judge_suites([*here, *there], {tmp_path / "x": about, tmp_path / "y": about})
    assert [claim.verdict for claim in judged_claims] == ["not measured"] * 2
    assert [claim.verdict for claim in claims.judge_suites([*here, *there], {tmp_path: about})] == ["holds"]


def test_ratios_and_columns_are_named_in_plain_words() -> None:
    parts = [part for claim in claims.judge([], load(SUITE, SuiteConfig).about()) for part in claim.parts]
    texts = {part.compared: part.published for part in parts}
    assert texts["GFLOPs per image: encoder w/ [M] > MAE"] == "3.3 times (Table 1c)"
    assert {"fine-tune: MAE > linear", "partial: MAE > mean of linear and fine-tune"} <= texts.keys()


def test_the_claim_of_half_the_gap_needs_a_gap() -> None:
    (words,) = {one.claim for one in load(SUITE, SuiteConfig).expect if "half of the gap" in (one.claim or "")}
    about = load(SUITE, SuiteConfig).about()
    numbers = [found("MAE", (v,) * 3, p) for p, v in (("linear", 22.0), ("partial-1", 20.0), ("finetune", 15.0))]
    (claim,) = [one for one in claims.judge([r for some in numbers for r in some], about) if one.words == words]
    assert [part.outcome for part in claim.parts] == ["reversed", "holds"]
    assert claim.verdict == "holds in part"


def test_the_table_shows_published_effect_range_and_the_records_behind() -> None:
    places = (("3", "MAE", "ViT-B/16"), ("3", "none (scratch)", "ViT-B/16"))
    asked = {"column": "fine-tune", "row": "a", "above": "b", "published": places}
    table, behind = claims.sheets([judged(asked, found("a", (60.0, 61.0, 62.0)), found("b", (59.5, 59.0, 61.9)))])
    texts = [cell.text for cell in table.rows[0]]
    assert texts == ["1. c", "fine-tune: a > b", "+1.30 (Table 3)", "+0.87 [+0.10..+2.00]", "holds", "holds"]
    assert [cell.text for cell in behind.rows[1]][:4] == ["fine-tune: a > b, seed 1", "61.00", "59.00", "+2.00"]
    assert "abc from c seed 1" in behind.rows[1][4].text  # commit, config digest and seed of the pretraining


@pytest.mark.parametrize(("one", "message"), [
    ({"column": "linear", "row": "a", "claim": "c"}, "name the row"),
    ({"column": "linear", "row": "a", "above": "b", "claim": "c", "by": 1.0}, "only a tie has a margin"),
    ({"column": "linear", "row": "a", "above": "b", "rule": "tie"}, "need a `claim`"),
    ({"column": "linear", "row": "a", "above": "b", "claim": "c", "published": (("3", "x", "y"),) * 2},
     "no published number"),
    ({"column": "linear", "row": "a", "above": "b", "claim": "c", "table": "0"}, "no table '0'"),
])  # fmt: skip
def test_a_claim_that_cannot_be_judged_is_refused(one: dict[str, Any], message: str) -> None:
    suite = {
        "title": "s", "tables": (), "rows": {"a": {}, "b": {}}, "expect": (one,),
        "transfer": {"t": {"tool": "cls_train", "config": "c.py"}},
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        validate(suite, SuiteConfig, where="s.py")


def test_the_suite_has_claims_of_published_effects_in_the_direction_of_their_rule() -> None:
    cfg = load(SUITE, SuiteConfig)
    words = {one.claim for one in cfg.expect}
    assert len(words) == 13  # twelve of MAE, one of CrossMAE
    assert words - {one.claim for one in cfg.expect if one.published} == {
        "A third of the hidden patches is enough to predict (CrossMAE)"  # the released ViT-B predicts all of them
    }
    for one in (one for one in cfg.expect if one.published):
        effect = claims.published_effect(one.published)
        assert abs(effect) < 0.25 if one.rule == "tie" else effect > 0, one
    assert {claim.verdict for claim in claims.judge([], cfg.about())} == {"not measured"}


def test_a_claim_that_was_measured_is_drawn(tmp_path: Path) -> None:
    places = (("3", "MAE", "ViT-B/16"), ("3", "none (scratch)", "ViT-B/16"))
    asked = {"column": "fine-tune", "row": "a", "above": "b", "published": places}
    measured = judged(asked, found("a", (60.0, 61.0, 62.0)), found("b", (59.5, 59.0, 61.9)))
    drawn = claims.figure(measured)
    assert drawn is not None
    seeds, mean, published = drawn.axes[0].lines[1:]
    assert list(seeds.get_xdata()) == pytest.approx([0.5, 2.0, 0.1])
    assert [mean.get_xdata()[0], published.get_xdata()[0]] == pytest.approx([2.6 / 3, 1.3])
    (file,) = claims.save([judged(asked), measured], tmp_path)
    assert file.name == "claim_02.svg"
    assert file.stat().st_size < 40_000
    assert [chart.title[:3] for chart in claim_charts([judged(asked), measured])] == ["2. "]  # as in the table


def test_the_lines_of_a_claim_have_its_verdict_and_one_figure_per_cell() -> None:
    asked = {"column": "fine-tune", "row": "a", "above": "b"}
    (line,) = claims.lines([judged(asked, found("a", (60.0, 61.0, 62.0)), found("b", (59.0, 59.0, 59.0)))])
    assert (line["mean"], line["lowest"], line["highest"], line["runs"]) == ("2", "1", "3", "3")
    assert line["notes"] == "part: holds; claim: holds"

"""Tables in every format: what is printed is what was counted, whatever the text in it."""

import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mae_transfer import results
from mae_transfer.suite import figures, tables
from mae_transfer.suite.formats import FORMATS
from mae_transfer.suite.layouts import LAYOUTS
from tests.unit.test_tables import recorded, result

SPECIAL = recorded(
    result("finetune", 83.5, seed=1, status="ok"),
    result("finetune", None, status="failed", reason=r"a | b_c & 50% <{\~^$#}>"),
)


@pytest.mark.parametrize("name", [*LAYOUTS])
@pytest.mark.parametrize("form", [*FORMATS])
def test_every_table_prints_in_every_format(name: str, form: str) -> None:
    rows = tables.rows(name, SPECIAL) or [{"row": "none"}]
    assert rows[0]["row"].split()[0].split("_")[0] in FORMATS[form]({LAYOUTS[name].title: rows})


def test_csv_is_one_table_of_numbers_and_comes_back_as_it_was() -> None:
    token = "MAE token, random 75%, 1600 ep"
    found = SPECIAL + recorded(
        result("finetune", 83.25, seed=1, pretrain=token), result("finetune", 84.1, seed=2, pretrain=token)
    )
    sheets = tables.numbers(["3", "7"], found)
    back = list(csv.DictReader(io.StringIO(FORMATS["csv"](sheets))))
    flat = [{"table": title, **row} for title, rows in sheets.items() for row in rows]
    assert [{name: text for name, text in row.items() if text} for row in back] == [
        {name: text for name, text in row.items() if text} for row in flat
    ]
    (ours,) = (
        row for row in back if row["table"].startswith("Table 3") and (row["row"], row["column"]) == ("MAE", "ViT-B/16")
    )
    assert [ours[name] for name in ("published", "mean", "low", "high", "seeds", "difference", "unit")] == [
        "83.6",
        "83.5",
        "83.5",
        "83.5",
        "1",
        "-0.1",
        "%",
    ]
    assert r"a | b_c & 50% <{\~^$#}>" in ours["notes"]
    (pair,) = (row for row in back if row["table"].endswith("differences") and row["table"].startswith("Table 7"))
    assert (pair["row"], pair["mean"], pair["seeds"]) == ("dVAE token - pixel (w/ norm)", "-0.25", "1")


def test_html_is_a_whole_page_and_markdown_keeps_its_columns() -> None:
    rows = tables.rows("3", SPECIAL)
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            opened.extend([tag] if tag != "meta" else [])

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    page = FORMATS["html"]({"Table 3": rows, "Table 5 & <6>": rows})
    Balance().feed(page)
    assert not opened
    assert (page.count("<table>"), page.startswith("<!DOCTYPE html>"), "Table 5 &amp; &lt;6&gt;" in page) == (
        2,
        True,
        True,
    )
    table = FORMATS["markdown"]({"Table 3": rows}).splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table} == {len(rows[0]) + 1}


def test_latex_leaves_nothing_for_latex_to_act_upon(tmp_path: Path) -> None:
    text = FORMATS["latex"](tables.sheets(LAYOUTS, SPECIAL))
    plain = re.sub(r"\\(begin|end)\{\w+\}(\{l+\})?|\\caption\{|\\hline|\\\\\n|\\[%&$#_{}]|\\text\w+\{\}", "", text)
    assert not re.search(r"[%$#_~^\\]", plain)
    if shutil.which("pdflatex"):
        page = tmp_path / "page.tex"
        page.write_text(r"\documentclass{article}\begin{document}" + text + r"\end{document}")
        subprocess.run(["pdflatex", "-halt-on-error", page.name], cwd=tmp_path, check=True, capture_output=True)


def test_the_tool_ends_quietly_where_nobody_reads_on(tmp_path: Path) -> None:
    results.append(tmp_path / "results.jsonl", [result("finetune", 83.5)])
    tool = [
        sys.executable,
        str(Path(__file__).parents[2] / "tools" / "tables.py"),
        str(tmp_path),
        "--format",
        "markdown",
    ]
    with subprocess.Popen(
        [*tool, *(word for name in LAYOUTS for word in ("--table", name))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as head does when it has its lines
        assert process.stderr.read() == b""


def test_figures_are_drawn_where_there_are_results(tmp_path: Path) -> None:
    tuned = [
        result(f"partial-{blocks}", 80.0 + i, seed=seed, scale="mini")
        for i, blocks in enumerate(("0", "half", "1"))
        for seed in (0, 1)
    ]
    assert [path.name for path in figures.save(recorded(*tuned), tmp_path / "figures")] == ["figure_9.svg"]
    assert figures.save([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_figure_has_a_curve_per_target_and_its_points_where_they_were_measured() -> None:
    measured = {"norm_pixel": {"100": 80.0, "800": 81.0}, "pixel": {"100": 82.0, "800": 83.0, "1600": 84.0}}
    pretrained = {
        (target, length): f"MAE {target}, random 75%, {length} ep"
        for target, points in measured.items()
        for length in points
    }
    found = [
        result("finetune", measured[t][n], pretrain=name, backbone="vit_large/16", epochs=50.0)
        for (t, n), name in pretrained.items()
    ]
    drawn = figures.draw("figure 7", recorded(*found))
    assert drawn is not None
    curves = {one.get_label(): one.lines[0].get_xydata().tolist() for one in drawn.axes[0].containers}
    columns = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert {label: {columns[round(x)]: y for x, y in points} for label, points in curves.items()} == {
        f"fine-tuning, imagenet, vit_large/16, {target}, 75%": {
            f"{length} epochs": value for length, value in points.items()
        }
        for target, points in measured.items()
    }
    published = {
        one.get_label(): one.get_color() for one in drawn.axes[0].lines if str(one.get_label()).endswith("published")
    }
    assert len(set(published.values())) == len(published) == 2


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_runs_nothing_out_of_a_csv(name: str) -> None:
    (row,) = csv.DictReader(
        io.StringIO(FORMATS["csv"]({name: [{"row": name, "difference": "-0.25", "gap": "-", "plus": "+1e-3"}]}))
    )
    assert row == {
        "table": "'" + name.strip(),
        "row": "'" + name.strip(),
        "difference": "-0.25",
        "gap": "-",
        "plus": "+1e-3",
    }


def test_a_row_s_name_is_no_option_of_latex_and_no_line_of_markdown() -> None:
    rows = [{"row": "first", "x": "1"}, {"row": "[b]", "x": "2"}, {"row": "*", "x": "line\nbreak"}]
    lines = FORMATS["latex"]({"t": rows}).splitlines()
    assert "{}[b] & 2 " + 2 * chr(92) in lines
    assert not [line for line in lines if line.startswith(("[", "*"))]
    assert len(FORMATS["markdown"]({"t": rows}).splitlines()) == 2 + 2 + 3

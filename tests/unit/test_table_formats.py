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
from rich.console import Console

from mae_transfer import results
from mae_transfer.suite.store.records import Measurement, load
from mae_transfer.suite.tables import comparison, figures, formats, sheets
from mae_transfer.suite.tables.formats import FORMATS, Sheet, Text
from mae_transfer.suite.tables.layouts import LAYOUTS
from tests.unit.test_tables import recorded, result

HOSTILE = r"a | b_c & 50% <{\~^$#}>"
FOUND = [
    *recorded(
        result("finetune", 83.5, checkpoint_sha256="a"),
        result("finetune", 83.9, seed=1, checkpoint_sha256="a"),
        result("finetune", None, seed=2, status="failed", reason=HOSTILE),
        row="MAE",
    ),
    *recorded(result("finetune", 82.0, pretrain="none", epochs=300.0), row="none (scratch)"),
]
"""Table 3: MAE's mean is 83.7, its standard deviation 0.2 * sqrt(2) = 0.283; published: 83.6, from scratch 82.3."""
WIDE = Sheet(
    "Wide",
    ("method", *(f"column {n}" for n in range(9))),
    tuple((Text(name), *(Text(f"{n}0.0±0.1 (80.0, +1.0)") for n in range(9))) for name in ("first", "second")),
    ("a note",),
)


def printed(form: str, found: list[Measurement] = FOUND, show: comparison.Show = "beside") -> str:
    return FORMATS[form](sheets.sheets(comparison.build(["3"], found, show=show)))


def test_a_terminal_shows_mean_spread_published_number_and_difference() -> None:
    assert printed("terminal").splitlines() == [
        "Table 3 (fine-tuning, top-1 %)",
        "method          ViT-B/16",
        "─────────────────────────────────────────",
        "none (scratch)  82.0 (82.3, -0.3)",
        "MAE             83.7±0.3 (83.6, +0.1) [1]",
        "mean±sd over runs: none (scratch): 1 run; MAE: 1 pretraining, 2 transfers",
        f"[1] seed 2 failed: {HOSTILE}",
        "",
    ]


def test_markdown_is_a_table_with_the_best_in_bold() -> None:
    assert printed("markdown").splitlines()[:6] == [
        "### Table 3 (fine-tuning, top-1 %)",
        "",
        "| method | ViT-B/16 |",
        "| --- | --- |",
        "| none (scratch) | 82.0 (82.3, -0.3) |",
        "| MAE | **83.7±0.3 (83.6, +0.1) [1]** |",
    ]


def test_latex_is_a_table_of_booktabs_with_caption_and_label() -> None:
    assert printed("latex").splitlines()[:12] == [
        r"% The preamble needs: \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\caption{Table 3 (fine-tuning, top-1 \%)}",
        r"\label{tab:table-3}",
        r"\begin{tabular}{@{}ll@{}}",
        r"\toprule",
        r"method & ViT-B/16 \\",
        r"\midrule",
        r"none (scratch) & 82.0 (82.3, $-$0.3) \\",
        r"MAE & \textbf{83.7$\pm$0.3 (83.6, +0.1) [1]} \\",
        r"\bottomrule",
    ]


def test_csv_has_a_line_per_number_and_every_figure_in_its_column() -> None:
    tables = comparison.build(["3"], FOUND)
    scratch, mae = csv.DictReader(io.StringIO(formats.as_csv(sheets.lines(tables))))
    assert {name: mae[name] for name in ("row", "column", "unit", "published", "mean", "sd", "lowest", "highest")} == {
        "row": "MAE", "column": "ViT-B/16", "unit": "%", "published": "83.6", "mean": "83.7", "sd": "0.2828427125",
        "lowest": "83.5", "highest": "83.9",
    }  # fmt: skip
    assert {name: mae[name] for name in ("runs", "pretrainings", "difference", "scale", "data", "notes")} == {
        "runs": "2", "pretrainings": "1", "difference": "0.1", "scale": "paper", "data": "imagenet",
        "notes": f"seed 2 failed: {HOSTILE}",
    }  # fmt: skip
    assert [scratch[name] for name in ("mean", "sd", "runs", "pretrainings", "difference")] == [
        "82",
        "",
        "1",
        "0",
        "-0.3",
    ]


def test_html_is_a_whole_page_that_shows_range_and_recipe_of_a_cell() -> None:
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            opened.extend([tag] if tag != "meta" else [])

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    page = printed("html")
    Balance().feed(page)
    assert not opened
    assert page.startswith("<!DOCTYPE html>")
    assert (
        '<td title="83.50..83.90, 1 pretraining, 2 transfers; MAE norm_pixel, random 75%, 1600 ep; vit_base/16; '
        'finetune, 100 ep x 1"><strong>83.7±0.3 (83.6, +0.1) [1]</strong></td>' in page
    )
    assert "<p>[1] seed 2 failed: a | b_c &amp; 50% &lt;{\\~^$#}&gt;</p>" in page


def test_rows_that_only_were_published_are_grey_and_only_shown_on_request() -> None:
    assert "MoCo v3" not in printed("terminal")
    assert re.search(r"MoCo v3, published +83.2", printed("terminal", show="all"))
    latex = printed("latex", show="all")
    assert r"\textcolor{gray}{MoCo v3, published} & \textcolor{gray}{83.2}" in latex
    assert latex.startswith(r"% The preamble needs: \usepackage{booktabs} \usepackage{xcolor}")
    assert '<td class="grey"' in printed("html", show="all")
    assert "83.6" not in printed("terminal", show="none").replace("83.7", "")


@pytest.mark.parametrize("form", [*FORMATS])
def test_every_table_prints_in_every_format(form: str) -> None:
    for name, layout in LAYOUTS.items():
        some = sheets.sheets(comparison.build([name], FOUND, show="all"))
        head = layout.title.partition(":")[0].partition(",")[0]
        assert not some or head in FORMATS[form](some)


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_table_that_is_too_wide_is_split_and_every_part_names_the_rows(width: int) -> None:
    text = io.StringIO()
    formats.draw(WIDE, Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    parts = formats.panels(WIDE, width)
    assert [sum(line.startswith(name) for line in lines) for name in ("first", "second")] == [len(parts)] * 2
    assert [title for part in parts for title in part.head[1:]] == list(WIDE.head[1:])
    assert lines.count("a note") == 1
    assert all(f"{n}0.0±0.1 (80.0, +1.0)" in text.getvalue() for n in range(9))


def test_a_name_that_is_longer_than_a_line_is_folded() -> None:
    sheet = Sheet("t", ("method", "x"), ((Text("long " * 20), Text("1.0")),))
    text = io.StringIO()
    formats.draw(sheet, Console(file=text, width=40))
    assert max(map(len, text.getvalue().splitlines())) <= 40
    assert text.getvalue().count("long") == 20


def test_a_terminal_shows_the_best_in_bold_and_published_rows_dim() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system="standard")
    for sheet in sheets.sheets(comparison.build(["3"], FOUND, show="all")):
        formats.draw(sheet, console)
    assert re.findall(r"\x1b\[1m([^\x1b]+)", text.getvalue())[0].strip() == "83.7±0.3 (83.6, +0.1) [1]"
    assert "\x1b[2mMoCo v3, published" in text.getvalue()


def test_latex_leaves_nothing_for_latex_to_act_upon() -> None:
    text = printed("latex")
    commands = (
        r"\\(begin|end)\{\w+\}(\{@\{\}l+@\{\}\})?|\\(caption|label|textbf|usepackage|setlength)\{|\$(\\pm|-)\$|"
        r"\\\\\n|\\[%&$#_{}]|\\[a-z]+\b(\{\})?"
    )
    assert not re.search(r"[#$_~^\\]", re.sub(commands, "", text))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_in_a_paper_and_fits_its_lines(tmp_path: Path) -> None:
    names = [name for name in LAYOUTS if comparison.build([name], FOUND, show="all")]
    tables = comparison.build(names, FOUND, show="all")
    long = Sheet(
        "Long names", ("method", *"abcdef"), ((Text("a long name " * 6), *(Text("83.7±0.3") for _ in range(6))),)
    )
    body = FORMATS["latex"]([*sheets.sheets(tables), WIDE, long])
    page = tmp_path / "page.tex"
    page.write_text(
        r"\documentclass{article}\usepackage{booktabs,xcolor}\begin{document}"
        + body.replace(r"\end{table}", r"\end{table}\clearpage")
        + r"\end{document}"
    )
    run = subprocess.run(
        ["pdflatex", "-halt-on-error", page.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert "Float too large" not in run.stdout


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


def test_a_figure_of_many_curves_has_room_for_its_axes_and_short_lines_at_its_ticks(tmp_path: Path) -> None:
    """Where a legend leaves the axes no room, matplotlib warns, and a warning is an error here."""
    found, _ = load([Path(__file__).parents[2] / "docs/results/claims/results.jsonl"])
    drawn = figures.draw("figure 5", found)
    assert drawn is not None
    figures.write({"figure_5": drawn}, tmp_path)
    (axes,) = drawn.axes
    assert len(axes.containers) > 8
    assert axes.get_window_extent().height > 1.5 * drawn.dpi
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert "75%, cross, 33%\nof hidden\npredicted" in ticks
    assert max(len(line) for tick in ticks for line in tick.split("\n")) <= 16


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
        io.StringIO(formats.as_csv([{"table": name, "row": name, "difference": "-0.25", "gap": "-", "plus": "+1e-3"}]))
    )
    assert row == {
        "table": "'" + name.strip(),
        "row": "'" + name.strip(),
        "difference": "-0.25",
        "gap": "-",
        "plus": "+1e-3",
    }


def test_a_row_s_name_is_no_option_of_latex_and_no_line_of_markdown() -> None:
    rows = (("first", "1"), ("[b]", "2"), ("*", "line\nbreak"))
    sheet = Sheet("t", ("row", "x"), tuple((Text(name), Text(value)) for name, value in rows))
    lines = FORMATS["latex"]([sheet]).splitlines()
    assert "{}[b] & 2 " + 2 * chr(92) in lines
    assert not [line for line in lines if line.startswith(("[", "*"))]
    assert len(FORMATS["markdown"]([sheet]).splitlines()) == 2 + 2 + 3

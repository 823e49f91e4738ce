"""Tables as text: for a terminal, as markdown, csv, LaTeX or HTML. Nothing here knows what the rows mean."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = Sequence[Mapping[str, str]]  # cells by column title, at least one row, the same titles in each
Sheets = Mapping[str, Rows]  # by title
FORMULA = ("=", "+", "-", "@")  # what a formula may begin with
UNLIMITED = 1000  # characters per line, into a pipe or a file
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def screen() -> Console:
    """Return standard output as a console; into a pipe or a file no line is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=UNLIMITED)


def terminal(sheets: Sheets) -> str:
    """Return tables as wide as the terminal."""
    text = io.StringIO()
    console = Console(file=text, width=screen().width)
    for title, rows in sheets.items():
        grid = Table(*rows[0], title=escape(title), title_justify="left")
        for row in rows:
            grid.add_row(*map(escape, row.values()))
        console.print(grid, "")
    return text.getvalue().rstrip("\n") + "\n"


def markdown(sheets: Sheets) -> str:
    """Return GitHub tables under headings."""

    def table(title: str, rows: Rows) -> str:
        lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
        cells = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in line] for line in lines]
        return f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"

    return "\n".join(table(title, rows) for title, rows in sheets.items())


def as_csv(sheets: Sheets) -> str:
    """Return comma-separated values under one header, with the table's title in the first column; a column that a table has not stays empty.

    A text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    text = io.StringIO()
    columns = dict.fromkeys(column for rows in sheets.values() for column in rows[0])
    writer = csv.DictWriter(text, ["table", *columns], restval="", lineterminator="\n")
    writer.writerow({column: plain(column) for column in ("table", *columns)})
    for title, rows in sheets.items():
        writer.writerows({column: plain(cell) for column, cell in {"table": title, **row}.items()} for row in rows)
    return text.getvalue()


def plain(cell: str) -> str:
    """Return a cell of one line that no spreadsheet takes for a formula; numbers with a sign stay numbers."""
    cell = " ".join(cell.split())
    if len(cell) < 2 or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell


def latex(sheets: Sheets) -> str:
    """Return table environments that need no package."""
    return "\n".join(_environment(title, rows) for title, rows in sheets.items())


def _environment(title: str, rows: Rows) -> str:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    body = [guarded(" & ".join(map(tex, line))) + r" \\" for line in lines]
    columns = "l" * len(rows[0])
    parts = [
        r"\begin{table}",
        rf"\caption{{{tex(title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        body[0],
        r"\hline",
        *body[1:],
        r"\hline",
    ]
    return "\n".join([*parts, r"\end{tabular}", r"\end{table}"]) + "\n"


def guarded(line: str) -> str:
    """Return a row that the end of the row before it does not take for its option or star."""
    return "{}" + line if line.startswith(("[", "*")) else line


def tex(text: str) -> str:
    """Return text with what LaTeX would act upon made printable."""
    return "".join(LATEX.get(character, character) for character in text)


def as_html(sheets: Sheets) -> str:
    """Return a page of tables, each with a caption and header cells."""
    head = '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Tables</title></head>\n<body>\n'
    return head + "".join(_element(title, rows) for title, rows in sheets.items()) + "</body>\n</html>\n"


def _element(title: str, rows: Rows) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows
    )
    return f"<table>\n<caption>{html.escape(title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


FORMATS: Mapping[str, Callable[[Sheets], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": as_csv,
    "latex": latex,
    "html": as_html,
}

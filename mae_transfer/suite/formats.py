"""Rows of a table as text: for a terminal, as markdown, csv, LaTeX or HTML. Nothing here knows what the rows mean."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = Sequence[Mapping[str, str]]
UNLIMITED = 1000  # characters per line, into a pipe or a file
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def terminal(title: str, rows: Rows) -> str:
    """Return a table as wide as the terminal."""
    grid = Table(*rows[0], title=escape(title), title_justify="left")
    for row in rows:
        grid.add_row(*map(escape, row.values()))
    screen, text = Console(), io.StringIO()
    Console(file=text, width=screen.width if screen.is_terminal else UNLIMITED).print(grid)
    return text.getvalue()


def markdown(title: str, rows: Rows) -> str:
    """Return a GitHub table under a heading."""
    table = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table) + "\n"


def as_csv(title: str, rows: Rows) -> str:
    """Return comma-separated values with the table's title in the first column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["table", *rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"table": title, **row} for row in rows)
    return text.getvalue()


def latex(title: str, rows: Rows) -> str:
    """Return a table environment that needs no package."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    body = [" & ".join(map(tex, line)) + r" \\" for line in lines]
    columns = "l" * len(rows[0])
    parts = [r"\begin{table}", rf"\caption{{{tex(title)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline"]
    return "\n".join([*parts, r"\end{tabular}", r"\end{table}"]) + "\n"


def tex(text: str) -> str:
    """Return text with what LaTeX would act upon made printable."""
    return "".join(LATEX.get(character, character) for character in text)


def as_html(title: str, rows: Rows) -> str:
    """Return a table element with a caption and header cells."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f"<table>\n<caption>{html.escape(title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


FORMATS: Mapping[str, Callable[[str, Rows], str]] = {"terminal": terminal, "markdown": markdown, "csv": as_csv, "latex": latex, "html": as_html}

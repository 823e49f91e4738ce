"""Tables as text: for a terminal, as markdown, csv, LaTeX or HTML. Nothing here knows what the rows mean."""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text as Styled

from mae_transfer.suite.tables.cells import Cell

Line = Mapping[str, str]  # of a csv file, by column
FORMULA = ("=", "+", "-", "@")  # what a formula may begin with
UNLIMITED = 1000  # characters per line, into a pipe or a file
PAGE = 76  # characters of footnote size that a LaTeX article has in a line
PAGE_NAME = 24  # of them for the names of the rows
PAGE_LINES = 36  # lines of a LaTeX table; what is longer goes on in another table
HEAD = 12  # characters after which a column's title goes on in the next line, if its numbers are no wider
NAME = 30  # characters after which the name of a row goes on in the next line
FOLDED = r"p{0.27\linewidth}"  # the column of longer names in LaTeX
GAP = 2  # spaces between columns
STYLES = {"": "", "best": "bold", "grey": "dim"}
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}  # fmt: skip
CSS = "td,th{text-align:left;padding:.2em .8em}.grey{color:#767676}thead th{border-bottom:1px solid}"


class Text(NamedTuple):
    """A cell."""

    text: str
    style: Literal["", "best", "grey"] = ""
    more: str = ""
    """What a page shows when the cell is pointed at."""
    cell: Cell | None = None
    """The number of ours that it prints."""


class Sheet(NamedTuple):
    """A table of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()
    paired: bool = False
    """Whether it holds differences of the table before it."""


def screen() -> Console:
    """Return standard output as a console; into a pipe or a file no line is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=UNLIMITED)


def terminal(sheets: Sequence[Sheet]) -> str:
    """Return tables as wide as the terminal, the best of each column bold."""
    console = screen()
    with console.capture() as text:
        for sheet in sheets:
            draw(sheet, console)
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())


def draw(sheet: Sheet, console: Console) -> None:
    """Print a table on a console. If it is wider, its columns are split over several tables with the same rows."""
    console.print(Styled(sheet.title, style="italic"))
    for panel in panels(sheet, console.width):
        grid = Table(header_style="", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        for number, title in enumerate(_headings(panel)):
            grid.add_column(Styled(title), overflow="fold", max_width=None if number else NAME)
        for row in panel.rows:
            grid.add_row(*(Styled(cell.text, style=STYLES[cell.style]) for cell in row))
        console.print(grid)
    for note in sheet.notes:
        console.print(Styled(note))
    console.print()


def panels(sheet: Sheet, width: int, *, name: int = NAME) -> list[Sheet]:
    """Return the table in parts that are at most `width` characters wide, each with the names of the rows.

    Args:
        sheet: the table.
        width: characters of a line.
        name: most characters of a row's name in a line.
    """
    first, *others = _widths(sheet, name)
    parts: list[list[int]] = [[]]
    used = first
    for column, wide in enumerate(others, start=1):
        if parts[-1] and used + GAP + wide > width:
            parts.append([])
            used = first
        parts[-1].append(column)
        used += GAP + wide
    return [
        sheet._replace(
            head=tuple(sheet.head[column] for column in (0, *part)),
            rows=tuple(tuple(row[column] for column in (0, *part)) for row in sheet.rows),
        )
        for part in parts
    ]


def _headings(sheet: Sheet) -> list[str]:
    """Return the titles of the columns in lines that are not much wider than their cells."""
    return ["\n".join(textwrap.wrap(title, wide)) for title, wide in zip(sheet.head, _limits(sheet), strict=True)]


def _limits(sheet: Sheet) -> list[int]:
    cells = [max((len(row[column].text) for row in sheet.rows), default=0) for column in range(len(sheet.head))]
    return [max(HEAD, wide) for wide in cells]


def _widths(sheet: Sheet, name: int) -> list[int]:
    widths = []
    for column, heading in enumerate(_headings(sheet)):
        texts = [*heading.splitlines(), *(row[column].text for row in sheet.rows)]
        widths.append(max(map(len, texts)))
    return [min(widths[0], name), *widths[1:]]


def markdown(sheets: Sequence[Sheet]) -> str:
    """Return GitHub tables under headings, the best of each column bold."""

    def plain_text(text: str) -> str:
        return " ".join(text.splitlines()).replace("|", "\\|")

    def table(sheet: Sheet) -> str:
        bold = [
            [f"**{cell.text}**" if cell.style == "best" and cell.text else cell.text for cell in row]
            for row in sheet.rows
        ]
        lines = [list(sheet.head), ["---"] * len(sheet.head), *bold]
        notes = "".join(f"\n{plain_text(note)}\n" for note in sheet.notes)
        body = "\n".join("| " + " | ".join(map(plain_text, line)) + " |" for line in lines)
        return f"### {plain_text(sheet.title)}\n\n{body}\n{notes}"

    return "\n".join(map(table, sheets))


def as_csv(lines: Sequence[Line]) -> str:
    """Return comma-separated values under one header; a column that a line has not stays empty.

    A text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for line in lines for key in line)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({column: plain(cell) for column, cell in line.items()} for line in lines)
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


def latex(sheets: Sequence[Sheet]) -> str:
    """Return table environments with booktabs' rules, the best of each column bold.

    A wide table is several tabulars under one caption.
    """
    grey = any(cell.style == "grey" for sheet in sheets for row in sheet.rows for cell in row)
    packages = r"\usepackage{booktabs}" + (r" \usepackage{xcolor}" if grey else "")
    return f"% The preamble needs: {packages}\n" + "\n".join(_environment(*page) for s in sheets for page in _pages(s))


def _pages(sheet: Sheet) -> Iterator[tuple[str, list[Sheet], tuple[str, ...]]]:
    """Yield title, parts and notes of a sheet's LaTeX tables, each at most a page; the last one has the notes."""
    blocks: list[list[tuple[Text, ...]]] = [[]]
    lines = 0
    for row in sheet.rows:
        lines += 1 + len(row[0].text) // PAGE_NAME
        if lines > PAGE_LINES:
            blocks.append([])
            lines = 0
        blocks[-1].append(row)
    pages: list[list[Sheet]] = []
    for rows in blocks:
        parts = panels(sheet._replace(rows=tuple(rows)), PAGE, name=PAGE_NAME)
        height = 4 + sum(1 + len(row[0].text) // PAGE_NAME for row in rows)
        together = max(1, (PAGE_LINES - len(sheet.notes)) // height)
        pages += [parts[at : at + together] for at in range(0, len(parts), together)]
    for number, page in enumerate(pages, start=1):
        title = sheet.title if number == 1 else f"{sheet.title}, part {number}"
        yield title, page, sheet.notes if number == len(pages) else ()


def _environment(title: str, parts: Sequence[Sheet], notes: Sequence[str]) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*\)", "", title).lower()).strip("-")
    below = "\\par\n".join(map(tex, notes))
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{tex(title)}}}",
        rf"\label{{tab:{label}}}",
        "\n\\par\\medskip\n".join(map(_tabular, parts)),
        *(
            [r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright", below, r"\end{minipage}"]
            if notes
            else []
        ),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tabular(sheet: Sheet) -> str:
    head = " & ".join(
        rf"\shortstack[l]{{{tex(title).replace(chr(10), chr(92) * 2)}}}" if "\n" in title else tex(title)
        for title in _headings(sheet)
    )
    body = [guarded(" & ".join(map(_tex_cell, row))) + r" \\" for row in sheet.rows]
    longest = max((len(row[0].text) for row in sheet.rows), default=0)
    columns = "@{}" + ("l" if longest <= PAGE_NAME else FOLDED) + "l" * (len(sheet.head) - 1) + "@{}"
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{guarded(head)} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _tex_cell(cell: Text) -> str:
    if cell.style == "best":
        return rf"\textbf{{{tex(cell.text)}}}"
    return rf"\textcolor{{gray}}{{{tex(cell.text)}}}" if cell.style == "grey" else tex(cell.text)


def guarded(line: str) -> str:
    """Return a row that the end of the row before it does not take for its option or star."""
    return "{}" + line if line.startswith(("[", "*")) else line


def tex(text: str) -> str:
    """Return text with what LaTeX would act upon made printable, and a minus before numbers as one."""
    printable = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", printable)


def as_html(sheets: Sequence[Sheet]) -> str:
    """Return a page of tables. A cell that is pointed at shows range, counts and recipe."""
    head = f'<head><meta charset="utf-8"><title>Tables</title><style>{CSS}</style></head>'
    body = "".join(map(_element, sheets))
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}</body>\n</html>\n'


def _element(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in sheet.head)
    body = "\n".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in sheet.rows)
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in sheet.notes)
    caption = f"<caption>{html.escape(sheet.title)}</caption>\n<thead><tr>{head}</tr></thead>"
    return f"<table>\n{caption}\n<tbody>\n{body}\n</tbody>\n</table>\n{notes}"


def _html_cell(cell: Text) -> str:
    text = f"<strong>{html.escape(cell.text)}</strong>" if cell.style == "best" else html.escape(cell.text)
    grey = ' class="grey"' if cell.style == "grey" else ""
    more = f' title="{html.escape(cell.more)}"' if cell.more else ""
    return f"<td{grey}{more}>{text}</td>"


FORMATS: Mapping[str, Callable[[Sequence[Sheet]], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "latex": latex,
    "html": as_html,
}
"""How sheets are written; csv takes lines (as_csv)."""

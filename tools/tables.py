"""Print the paper's tables with your results beside the published numbers.

python tools/tables.py runs/* --table 3
python tools/tables.py runs/ft runs/lin --table 3 --table 12 --format markdown
python tools/tables.py --list
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mae_transfer import cli
from mae_transfer.suite import tables

Rows = Sequence[dict[str, str]]


def terminal(title: str, rows: Rows) -> None:
    grid = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        grid.add_row(*row.values())
    Console().print(grid)


def markdown(title: str, rows: Rows) -> None:
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    print(f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


def as_csv(title: str, rows: Rows) -> None:
    writer = csv.DictWriter(sys.stdout, ["table", *rows[0]])
    writer.writeheader()
    writer.writerows({"table": title, **row} for row in rows)


FORMATS = {"terminal": terminal, "markdown": markdown, "csv": as_csv}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="work dirs (searched at any depth) or results.jsonl files")
    parser.add_argument("--table", action="append", choices=sorted(tables.LAYOUTS), help="a table; may be repeated (default: all with results)")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="how to print (default: terminal)")
    parser.add_argument("--list", action="store_true", help="say which tables there are, and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:10}{layout.title}" for name, layout in tables.LAYOUTS.items()))
        return 0
    return cli.guarded(lambda: show(args.runs, args.table, args.format))


def show(runs: Sequence[Path], names: Sequence[str] | None, form: str) -> None:
    if not runs:
        raise ValueError("name the work dirs of finished runs, for instance: python tools/tables.py runs/*")
    found, defects = tables.load(runs)
    for defect in defects:
        print(defect, file=sys.stderr)
    for name in names or [name for name, layout in tables.LAYOUTS.items() if any(map(layout.belongs, found))]:
        layout = tables.LAYOUTS[name]
        rows = [{layout.column_title: line.column, **tables.cells(line)} for line in tables.lines(name, found)]
        FORMATS[form](layout.title, rows)


if __name__ == "__main__":
    sys.exit(main())

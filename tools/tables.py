"""Print the paper's tables with your results beside the published numbers.

  python tools/tables.py runs/* --table 3
  python tools/tables.py runs/t7 runs/other --table 4 --table 7 --format markdown
  python tools/tables.py runs/t7 --figures figures            (figures 5, 7 and 9 as pictures)
  python tools/tables.py --list                               (all tables, and what each needs)

"yours" is the mean over seeds, with [lowest..highest] and their number. "difference" is yours minus
published. A published number stands only beside runs of the same setting. csv holds one number per
cell; csv and html also state recipe and source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer import cli

FORMATS = ("terminal", "markdown", "csv", "latex", "html")


def parser() -> cli.Parser:
    found = cli.Parser(description=__doc__)
    found.what.add_argument(
        "runs", nargs="*", type=cli.path, metavar="RUN", help="work dirs (searched at any depth) or results.jsonl files"
    )
    table = "table to print, e.g. 3; may be repeated (default: all with results); --list names them"
    found.what.add_argument("--table", action="append", metavar="NAME", help=table)
    found.where.add_argument(
        "--figures",
        type=cli.path,
        metavar="DIR",
        help="also draw figures 5, 7 and 9 into this folder, if there are results",
    )
    found.how.add_argument("--format", choices=FORMATS, default="terminal", help="output format (default: terminal)")
    found.information.add_argument(
        "--list", action="store_true", help="list tables and figures with what each needs, and exit"
    )
    return found


def main() -> int:
    cli.end_with_pipe()
    args = parser().parse_args()
    return cli.guarded(list_tables if args.list else lambda: show(args.runs, args.table, args.format, args.figures))


def list_tables() -> None:
    from mae_transfer.suite.layouts import LAYOUTS

    print("\n".join(f"{name:10}{layout.title}\n{'':10}  needs: {layout.needs}" for name, layout in LAYOUTS.items()))


def show(runs: Sequence[Path], names: Sequence[str] | None, form: str, pictures: Path | None) -> None:
    from mae_transfer.config import nearest
    from mae_transfer.suite import figures, records, tables
    from mae_transfer.suite.formats import FORMATS
    from mae_transfer.suite.layouts import LAYOUTS

    if unknown := set(names or ()) - set(LAYOUTS):
        raise ValueError(f"--table {min(unknown)}: there is no such table; {nearest(min(unknown), LAYOUTS)}")
    if not runs:
        raise ValueError("name the work dirs of finished runs, for instance: python tools/tables.py runs/*")
    found, damaged = records.load(runs)
    found, wrong = tables.usable(found)
    for defect in [*damaged, *wrong]:
        print(defect, file=sys.stderr)
    shown = names or tables.tables_with_results(found)
    sheets = tables.numbers(shown, found) if form == "csv" else tables.sheets(shown, found, whole=form == "html")
    if sheets:
        print(FORMATS[form](sheets), end="")
    else:
        print("no table has a place for these results: see --list", file=sys.stderr)
    if pictures:
        drawn = figures.save(found, pictures)
        print("\n".join(map(str, drawn)) or "no results for figures 5, 7 and 9: see --list", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

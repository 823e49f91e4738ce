"""Print tables with your results next to the published numbers.

  python tools/tables.py runs/mine
  python tools/tables.py runs/t7 runs/other --table 4 --table 7 --format latex
  python tools/tables.py runs/t3 --table 3 --published all
  python tools/tables.py runs/t7 --figures figures            (figures 5, 7, 9 and claims)
  python tools/tables.py --list                               (all tables, and what each needs)

A suite's claims with their verdicts come first, if it has any, then the summary (pretrainings by
tasks) and the tables with more detail. A cell is "83.7±0.2 (83.6, +0.1)": your mean and standard
deviation, the published number and the difference. Published numbers are shown only for runs with
the same setting. The best number is bold.
"""

from __future__ import annotations

import argparse
import sys

from mae_transfer.cli.parser import Parser, end_with_pipe, path

FORMATS = ("terminal", "markdown", "latex", "html", "csv")


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    what, how, information = parser.what, parser.how, parser.information
    runs = "work dirs (searched at any depth) or results.jsonl files"
    table = "table to print, e.g. 3; may be repeated; all: every table with results; see --list"
    figures = "also draw claims and figures 5, 7 and 9 into this folder, if there are results"
    published = "published numbers: next to yours (default), also in separate rows (all), or none"
    why = "explain why numbers have no published number next to them, and exit"
    needs = "list tables and figures with the runs that each needs, and exit"
    what.add_argument("runs", nargs="*", type=path, metavar="RUN", help=runs)
    what.add_argument("--table", action="append", metavar="NAME", help=table)
    parser.where.add_argument("--figures", type=path, metavar="DIR", help=figures)
    how.add_argument("--format", choices=FORMATS, default="terminal", help="output format (default: terminal)")
    how.add_argument("--published", choices=("beside", "all", "none"), default="beside", help=published)
    information.add_argument("--why", action="store_true", help=why)
    information.add_argument("--list", action="store_true", help=needs)


def list_tables() -> None:
    """Print each table with the runs that it needs."""
    from mae_transfer.suite.tables.layouts import LAYOUTS

    print("\n".join(f"{name:10}{layout.title}\n{'':10}  needs: {layout.needs}" for name, layout in LAYOUTS.items()))


def run(args: argparse.Namespace) -> None:
    """Print the tables, or what `--list` and `--why` ask for."""
    end_with_pipe()
    if args.list:
        list_tables()
        return
    from mae_transfer.config import nearest
    from mae_transfer.suite.store import records
    from mae_transfer.suite.tables import claims, comparison, figures, formats, sheets
    from mae_transfer.suite.tables.layouts import LAYOUTS

    names = args.table or []
    if unknown := set(names) - {*LAYOUTS, "all"}:
        raise ValueError(f"--table {min(unknown)}: no such table; {nearest(min(unknown), LAYOUTS)}")
    if not args.runs:
        raise ValueError("pass the work dirs of finished runs, for instance: python tools/tables.py runs/*")
    suites, unread = records.suites(args.runs)
    about, claiming = records.together(suites.values()), any(suite.claims for suite in suites.values())
    found, damaged = records.load(args.runs, required=not claiming)  # claims without results are not measured yet
    found, wrong = comparison.usable(found)
    for defect in [*unread, *damaged, *wrong]:
        print(defect, file=sys.stderr)
    judged = [] if names else claims.judge_suites(found, suites)
    same: list[str] = []
    if names or args.why:
        wanted = LAYOUTS if "all" in names or not names else names
        tables = comparison.build(wanted, found, show=args.published, about=about)
    else:
        tables, same = comparison.worth_printing(found, show=args.published, about=about)
    if args.why:
        beside = any(
            cell.ours and cell.published for table in tables for row in table.own for cell in row.cells.values()
        )
        nothing = "every result has its published number beside it" if beside else "no published number is comparable"
        print("\n".join(comparison.misses(tables)) or nothing)
    elif not tables and not judged:
        print("these results belong to no table: see --list", file=sys.stderr)
    elif args.format == "csv":
        print(formats.as_csv([*claims.lines(judged), *sheets.lines(tables)]), end="")
    else:
        print(formats.FORMATS[args.format]([*claims.sheets(judged), *sheets.sheets(tables)]), end="")
        if same and args.format == "terminal":
            print(f"The same numbers: tables {', '.join(same)} (--table NAME).")
    if args.figures:
        drawn = [*claims.save(judged, args.figures), *figures.save(found, args.figures)]
        print("\n".join(map(str, drawn)) or "no results for claims and figures 5, 7 and 9: see --list", file=sys.stderr)

"""Print the paper's tables with your results beside the published numbers.

    python tools/tables.py runs/* --table 3
    python tools/tables.py runs/t7 runs/other --table 4 --table 7 --format markdown
    python tools/tables.py runs/t7 --figures figures            figures 5, 7 and 9 as pictures
    python tools/tables.py --list                               which tables and figures there are, and what each needs

"yours" is mean [lowest..highest] (seeds); "difference" is yours minus published and stands beside the spread of your seeds. Only runs that did what
the published number was measured with stand beside it. csv holds each number in a cell of its own; csv and html say recipe and source, too.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer import cli
from mae_transfer.suite import figures, records, tables
from mae_transfer.suite.formats import FORMATS
from mae_transfer.suite.layouts import LAYOUTS


def main() -> int:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this as it ends cat
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=cli.path, metavar="RUN", help="work dirs (searched at any depth) or results.jsonl files")
    parser.add_argument("--table", action="append", choices=LAYOUTS, help="a table; may be repeated (default: all with results)")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="how to print (default: terminal)")
    parser.add_argument("--figures", type=cli.path, metavar="DIR", help="also draw figures 5, 7 and 9 into this folder, as far as there are results")
    parser.add_argument("--list", action="store_true", help="say which tables and figures there are and what each needs, and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:10}{layout.title}\n{'':10}  needs: {layout.needs}" for name, layout in LAYOUTS.items()))
        return 0
    return cli.guarded(lambda: show(args.runs, args.table, args.format, args.figures))


def show(runs: Sequence[Path], names: Sequence[str] | None, form: str, pictures: Path | None) -> None:
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

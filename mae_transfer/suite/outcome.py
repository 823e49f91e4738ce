"""What a suite ends with: its tables on the terminal, and report.html."""

from __future__ import annotations

from rich.console import Console

from mae_transfer.suite import records, report, tables
from mae_transfer.suite.formats import terminal
from mae_transfer.suite.schema import SuiteConfig
from mae_transfer.suite.work import Work


def publish(cfg: SuiteConfig, work: Work, console: Console) -> None:
    """Print the suite's tables and write its report; nothing where there are no results yet."""
    if not any(work.root.rglob("results.jsonl")):
        return
    found, damaged = records.load([work.root])
    found, wrong = tables.usable(found)
    for defect in [*damaged, *wrong]:
        console.print(defect, markup=False, highlight=False)
    paper = any(record.result.scale == "paper" for record in found)
    print(terminal(tables.sheets(cfg.tables, found, published=paper)))
    path = work.root / "report.html"
    report.write(path, cfg.title, cfg.tables, found, [*damaged, *wrong], work.root)
    console.print(f"{path}: the tables with where every number comes from", markup=False, highlight=False)

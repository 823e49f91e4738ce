"""The paper's tables: published | yours (mean [min..max], n seeds) | difference.

A table is long: one line per pretraining and column. Only a run at the paper's scale is set beside a published number; every other line says its
scale, so that a mini result cannot be mistaken for a reproduction. Differences are printed, never judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mae_transfer import results
from mae_transfer.results import Result, Summary, summarise
from mae_transfer.suite.published import PUBLISHED, Published

METHODS = {"none": "none (scratch)", "MAE": "MAE", "mae": "MAE", "moco-v3": "MoCo v3", "dino": "DINO", "beit": "BEiT"}
"""First word of Result.pretrain -> the paper's name of the method."""
BACKBONES = {"vit_base/16": "ViT-B/16", "vit_large/16": "ViT-L/16", "vit_huge/14": "ViT-H/14"}
TOKENS_AT_448 = 32 * 32 + 1  # of a ViT-H/14 with its class token


class Layout(NamedTuple):
    """How a table is made of results."""

    title: str
    column_title: str
    belongs: Callable[[Result], bool]
    column: Callable[[Result], str]


class Line(NamedTuple):
    """One line of a table."""

    pretrain: str
    column: str
    published: Published | None
    ours: Summary | None
    scale: str  # of our runs
    dataset: str
    reason: str  # why there is no number of ours


def backbone_column(result: Result) -> str:
    """Return the paper's name of the backbone, or its own."""
    name = BACKBONES.get(result.backbone, result.backbone)
    return f"{name} at 448" if result.tokens_per_image == TOKENS_AT_448 and name == "ViT-H/14" else name


def _reported(result: Result, *protocols: str) -> bool:
    return result.split == "val" and result.metric == "top1" and result.protocol.split("-")[0] in protocols and "labels" not in result.protocol


def suffix_column(result: Result) -> str:
    """Return what follows the protocol's name: the tuned blocks of "partial-4", the neighbours of "knn-20"."""
    return result.protocol.split("-")[1]


LAYOUTS: dict[str, Layout] = {
    "3": Layout("Table 3: fine-tuning, top-1 %", "backbone", lambda r: _reported(r, "finetune", "scratch"), backbone_column),
    "12": Layout("Table 12: linear probing, top-1 %", "backbone", lambda r: _reported(r, "linear"), backbone_column),
    "figure 9": Layout("Figure 9: partial fine-tuning, top-1 %", "tuned blocks", lambda r: _reported(r, "partial"), suffix_column),
    "13": Layout(
        "Table 13: robustness, top-1 %, and for imagenet-c the mean corruption error % (lower is better)",
        "variant, backbone",
        lambda r: r.task == "robustness" and r.metric in ("top1", "mCE"),
        lambda r: f"{r.dataset}, {backbone_column(r)}",
    ),
    "knn": Layout("k-nearest neighbours, top-1 % (no table of the paper)", "k", lambda r: _reported(r, "knn"), suffix_column),
}


def load(paths: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """Return the results under the given files and folders, and a sentence per line that could not be read.

    Raises:
        ValueError: a path does not exist, or nothing was found.
    """
    found: list[Result] = []
    defects: list[str] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give work dirs of finished runs, or results.jsonl files")
        for file in sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]:
            good, bad = results.load(file)
            found += good
            defects += bad
    if not found:
        raise ValueError("no results found: a run writes results.jsonl into its work dir when it is finished")
    return found, defects


def lines(table: str, found: Sequence[Result]) -> list[Line]:
    """Return the lines of a table: the published numbers with what was run beside them, then what only was run."""
    layout = LAYOUTS[table]
    groups: dict[tuple[str, str, str, str], list[Result]] = defaultdict(list)
    for result in filter(layout.belongs, found):
        groups[result.pretrain, layout.column(result), result.scale, result.dataset].append(result)
    rows = [Line(p.pretrain, p.column, p, None, "", "", "") for p in PUBLISHED if p.table == table]
    for (pretrain, column, scale, dataset), group in groups.items():
        ok = any(result.status == "ok" for result in group)
        reason = "" if ok else "; ".join(sorted({f"{result.status}: {result.reason}" for result in group}))
        line = Line(pretrain, column, None, summarise(group) if ok else None, scale, dataset, reason)
        place = next((i for i, row in enumerate(rows) if scale == "paper" and row.published and row.ours is None and _same(row, line)), None)
        if place is None:
            rows.append(line)
        else:
            rows[place] = line._replace(published=rows[place].published)
    return rows


def cells(line: Line) -> dict[str, str]:
    """Return what a line prints, by column title."""
    return {
        "pretraining": line.pretrain,
        "published": f"{line.published.value:.1f}" if line.published else "-",
        "yours": f"{line.ours.mean:.2f} [{line.ours.low:.2f}..{line.ours.high:.2f}]" if line.ours else line.reason or "-",
        "seeds": str(line.ours.n) if line.ours else "-",
        "difference": f"{line.ours.mean - line.published.value:+.2f}" if line.ours and line.published else "-",
        "scale": line.scale or "-",
        "data": line.dataset or "-",
        "source": line.published.source if line.published else "this suite",
    }


def _same(row: Line, line: Line) -> bool:
    words = line.pretrain.replace(":", " ").split()
    return row.column == line.column and row.pretrain == METHODS.get(words[0], line.pretrain)

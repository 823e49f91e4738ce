"""Plot losses, learning rate and monitored figures of a run from its log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mae_transfer.disk import atomic_write


def save_curves(log: Path, path: Path) -> None:
    """Write a PNG with all logged losses and learning rates over epochs. Do nothing without training steps."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train, held_out, monitored = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval", "monitor"))
    if not train:
        return
    more = bool(monitored)
    figure = Figure(figsize=(8, 7.5 if more else 5), layout="constrained")
    losses, *others, rates = figure.subplots(2 + more, 1, sharex=True, height_ratios=(3, *([2.5] * more), 1))
    losses.plot(*_curve(train, "loss"), color="C0", linewidth=1, label="training loss")
    for number, name in enumerate(sorted({key for row in held_out for key in row if key.endswith("loss")}), start=1):
        losses.plot(*_curve(held_out, name), color=f"C{number}", marker="o", markersize=3, label=name.replace("_", " "))
    losses.set_ylabel("loss")
    shown = {key for row in monitored for key in row if is_shown(key)}
    for axes in others:
        for number, name in enumerate(sorted(shown)):
            epochs, shares = _curve(monitored, name)
            label = name.replace("_", " ")
            axes.plot(
                epochs, [100 * share for share in shares], color=f"C{number}", marker="o", markersize=3, label=label
            )
        axes.set_ylabel("monitor, %")
    rates.plot(*_curve(train, "lr"), color="C7", linewidth=1)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    for axes in (losses, *others):  # beside the axes: to find a free place among long curves takes seconds
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axes in (losses, *others, rates):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def is_shown(figure: str) -> bool:
    """Return whether a picture shows a figure of the monitor: no second metric, and nothing that was selected."""
    return "_" in figure and "/" not in figure and not figure.endswith(("top5", "mean-per-class"))


def _curve(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of one logged quantity, without non-finite values, which are null in the log."""
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]

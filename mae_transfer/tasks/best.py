"""The best state of a run (select="best"). It is chosen on held-out training images, saved to disk and reported."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import nn

from mae_transfer.checkpoints.files import evaluated, load_strict
from mae_transfer.engine import checkpoint
from mae_transfer.engine.loop import Evaluate
from mae_transfer.engine.state import TrainState
from mae_transfer.tasks.workdir import WorkDir

Select = Literal["last", "best"]


class Selection(NamedTuple):
    """How the best state is chosen and measured."""

    metric: str  # a figure of an evaluation on held-out images; higher is better
    report: Evaluate | None = None  # measures the reported images at the end; None: every evaluation measures them


def keeping_best(selection: Selection, state: TrainState, folder: WorkDir, evaluate: Evaluate) -> Evaluate:
    """Return an evaluation that also saves the state if its figure is the best so far. A tie keeps the earlier one."""

    def evaluate_and_keep(model: nn.Module, step: int) -> dict[str, float]:
        figures = evaluate(model, step)
        score, best = figures.get(selection.metric, math.nan), state.extra.get("best")
        if best is None or score > best["figures"].get(selection.metric, -math.inf):
            state.extra["best"] = {"step": step, "figures": figures}
            if state.dist.is_main:
                unneeded = ("optimizer", "scaler")  # by an evaluation
                kept = {name: part for name, part in state.state_dict().items() if name not in unneeded}
                checkpoint.save_best(folder.checkpoints, kept)
        return figures

    return evaluate_and_keep


def restore_best(selection: Selection, state: TrainState, folder: WorkDir) -> str:
    """Load the weights of the best state on every rank and measure them; return a sentence for the log.

    `state.metrics` are the figures of the best state from then on.

    Raises:
        ValueError: best.pt is missing or is not the selected state.
    """
    best, path = state.extra["best"], checkpoint.best(folder.checkpoints)
    if state.dist.world > 1:
        torch.distributed.barrier(group=state.dist.side)  # rank 0 may be writing it
    payload = checkpoint.load(path)
    if payload["step"] != best["step"]:
        raise ValueError(
            f"{path} is the state of step {payload['step']}, but step {best['step']} was the best: train again"
        )
    model = state.evaluated
    load_strict(model, evaluated(payload), where=str(path))
    figures = dict(best["figures"])
    if selection.report is not None:
        model.eval()
        with torch.no_grad():
            figures |= selection.report(model, best["step"])
    state.metrics = figures
    score = best["figures"].get(selection.metric, math.nan)
    return (
        f"the best state on the held-out images is that of step {best['step']} "
        f"({selection.metric} {100 * score:.2f}%); its figures are reported: {path}"
    )

"""The best state of a run, chosen on images held out of the training set (select="best"): it is kept on disk and is what is reported."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Spec
from mae_transfer.engine import checkpoint
from mae_transfer.engine.loop import Evaluate
from mae_transfer.engine.state import TrainState
from mae_transfer.tasks.workdir import WorkDir

HOLDOUT = "holdout/"  # before the name of a figure that is measured on the held-out images
Select = Literal["last", "best"]


class Selection(NamedTuple):
    """How the best state is chosen, and how it is reported on."""

    metric: str  # a figure of an evaluation, on held-out images; the higher the better
    report: Evaluate | None = None  # measures the reported images once, at the end; None: the evaluations have done so


def check_selection(select: Select, holdout: Spec | None) -> None:
    """Raise ValueError unless held-out images are given where something is selected on them, and only there."""
    if select == "best" and holdout is None:
        raise ValueError(
            "select='best', but data.holdout names no images to choose on; hold a part of the training images out, e.g. "
            "data.train.part=(0.0, 0.95) and data.holdout=dict(the same set, part=(0.95, 1.0)); never the reported images"
        )
    if select == "last" and holdout is not None:
        raise ValueError(
            "data.holdout is given and nothing is selected on it: set select='best', or leave data.holdout out"
        )


def keeping(selection: Selection, state: TrainState, folder: WorkDir, evaluate: Evaluate) -> Evaluate:
    """Return the evaluation that also keeps the state where its figure is the best so far; of equals the earlier one stays."""

    def check_up(model: nn.Module, step: int) -> dict[str, float]:
        figures = evaluate(model, step)
        score, best = figures.get(selection.metric, math.nan), state.extra.get("best")
        if best is None or score > best["figures"].get(selection.metric, -math.inf):
            state.extra["best"] = {"step": step, "figures": figures}
            if state.dist.is_main:
                checkpoint.save_best(folder.checkpoints, without_optimizer(state))
        return figures

    return check_up


def without_optimizer(state: TrainState) -> dict[str, Any]:
    """Return a checkpoint's payload as far as an evaluation reads it."""
    return {name: part for name, part in state.state_dict().items() if name not in ("optimizer", "scaler")}


def take_best(selection: Selection, state: TrainState, folder: WorkDir) -> str:
    """Put the best state's weights in place of the last ones, on every rank, and measure it; return a sentence for the log.

    Afterwards `state.metrics` are the best state's figures.

    Raises:
        ValueError: best.pt is missing or is not the state that was chosen.
    """
    best, path = state.extra["best"], checkpoint.best(folder.checkpoints)
    if state.dist.world > 1:
        torch.distributed.barrier(group=state.dist.side)  # rank 0 may be writing it
    payload = checkpoint.load(path)
    if payload["step"] != best["step"]:
        raise ValueError(
            f"{path} is of step {payload['step']}, and the best one is of step {best['step']}: train again"
        )
    model = state.averaged
    load_strict(model, payload.get("ema", payload["model"]), where=str(path))
    figures = dict(best["figures"])
    if selection.report is not None:
        model.eval()
        with torch.no_grad():
            figures |= selection.report(model, best["step"])
    state.metrics = figures
    score = best["figures"].get(selection.metric, math.nan)
    return f"the best state on the held-out images is of step {best['step']} ({selection.metric} {100 * score:.2f}%): {path}; it is reported"

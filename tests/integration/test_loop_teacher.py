"""What the loop gives to a teacher and to an objective: the average, moving rates, a part in the training state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toy import Toy, ToyBatch, batches, config, equal, toy_step, weights

from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, train
from mae_transfer.engine.optim import OptimConfig, param_groups
from mae_transfer.engine.schedule import Anneal, Rates, moving
from mae_transfer.engine.state import LoopConfig, TrainState, resume

CPU = Dist(torch.device("cpu"))
MOMENTUM = Anneal(start=0.9, end=1.0, epochs="100%")
DECAY = Anneal(start=0.04, end=0.4, epochs="100%")
STEPS = 6


class Count(nn.Module):
    """Something that an objective keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))


def rates(step: int) -> Rates:
    length = {"steps": STEPS, "steps_per_epoch": 5}
    return Rates(0.1, moving(DECAY, step, **length), moving(MOMENTUM, step, **length))


def state_of(cfg: LoopConfig) -> TrainState:
    model = Toy(dropout=0.0, norm=False).double()
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=DECAY), lr=0.1)
    return TrainState.create(model, optimizer, cfg, dist=CPU, held=Count())


def run(folder: Path, cfg: LoopConfig) -> tuple[TrainState, list[Tensor]]:
    """Train to the end of `cfg`; return the state and the teacher's first weight at every step."""
    state, taught = state_of(cfg), []
    resume(state, folder / "checkpoints")

    def step_fn(model: nn.Module, batch: ToyBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert at.average is not None
        assert not at.average.training
        taught.append(at.average[0].weight.detach().clone())
        assert isinstance(state.held, Count)
        state.held.seen += 1
        return toy_step(model, batch, at)

    with Logger(folder, steps=cfg.steps, resumed_at=state.step, progress=False) as log:
        train(state, batches(state.step), step_fn, cfg, rates_at=rates, log=log, checkpoints=folder / "checkpoints")
    return state, taught


def options(steps: int = STEPS) -> LoopConfig:
    return config(steps=steps, ema_decay=MOMENTUM.start, clip_norm=0.05, clip_each=True)


def test_teacher_weight_decay_and_clipping_follow_their_formulas(tmp_path: Path) -> None:
    """DINO: momentum and weight decay follow half a cosine; the norm of each tensor is clipped on its own."""
    state, taught = run(tmp_path, options())
    model = Toy(dropout=0.0, norm=False).double()
    teacher = {name: value.clone() for name, value in model.state_dict().items()}
    for number, batch in zip(range(STEPS), batches(0), strict=False):
        torch.testing.assert_close(taught[number], teacher["0.weight"])
        toy_step(model, batch, Step(number, 0, False))[0].backward()
        falling = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * number / STEPS, dtype=torch.float64)))
        decay, momentum = 0.4 + (0.04 - 0.4) * falling, 1 + (0.9 - 1) * falling
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad.norm() > 0.05  # else clipping would not show
                p -= 0.1 * (p.grad * (0.05 / (p.grad.norm() + 1e-6)) + (decay if p.ndim > 1 else 0.0) * p)
                p.grad = None
            for name, value in model.state_dict().items():
                teacher[name] = momentum * teacher[name] + (1 - momentum) * value
    torch.testing.assert_close(weights(state), dict(model.state_dict()))
    torch.testing.assert_close(dict(state.averaged.state_dict()), teacher)


def test_frozen_parameters_get_neither_gradient_nor_moments_nor_weight_decay(tmp_path: Path) -> None:
    """DINO, cancel_gradients_last_layer. They train from the first step that does not name them, as if it were 0."""
    model, cfg = Toy(dropout=0.0, norm=False).double(), config(steps=4, clip_norm=0.05)
    last, first = model[-1].weight, model[-1].weight.detach().clone()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.1)
    state, seen = TrainState.create(model, optimizer, cfg, dist=CPU), []

    def step_fn(model: nn.Module, batch: ToyBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(torch.equal(last, first))
        return toy_step(model, batch, at)

    def rates(step: int) -> Rates:
        return Rates(0.1, frozen=[last] if step < 2 else ())

    with Logger(tmp_path, steps=4, progress=False) as log:
        train(state, batches(0), step_fn, cfg, rates_at=rates, log=log, checkpoints=None)
    assert seen == [True, True, True, False]
    assert optimizer.state[last]["step"] == 2
    assert optimizer.state[model[0].weight]["step"] == 4


def test_a_resumed_run_continues_with_what_is_held(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", options())
    run(tmp_path / "halves", options(4))
    halves, _ = run(tmp_path / "halves", options())
    assert equal(weights(whole), weights(halves))
    assert equal(whole.averaged.state_dict(), halves.averaged.state_dict())
    assert whole.held.seen == halves.held.seen == STEPS


def test_the_trained_weights_can_be_the_evaluated_ones() -> None:
    average = state_of(config(ema_decay=0.9))
    trained = state_of(config(ema_decay=0.9, evaluated="trained"))
    assert average.evaluated is average.averaged
    assert trained.evaluated is trained.bare


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": {"start": 0.0, "end": 0.4, "epochs": 1.0}}, "start above 0"),
        ({"clip_norm": {"each": 0.0}}, "greater than 0"),
    ],
)
def test_bad_moving_options_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimConfig.model_validate({"lr": 0.1, **change})

"""Ten steps equal five and five more, bit for bit; evaluation, saving and logging leave no trace in the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import BATCH, QUIET, Toy, config, equal, go, new_state, rows, weights

from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist

CPU = Dist(torch.device("cpu"))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation, average, clipping": {"accumulate": 2, "ema_decay": 0.9, "clip_norm": 0.1},
    "bfloat16": {"precision": "bfloat16", "accumulate": 2},
    "float16": {"precision": "float16", "clip_norm": 1.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_ten_steps_equal_five_and_five_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    cfg = config(**options)
    whole = go(tmp_path / "whole", cfg, new_state(cfg, CPU))
    half = config(steps=5, **options)
    go(tmp_path / "halves", half, new_state(half, CPU))
    torch.manual_seed(999)
    parts = go(tmp_path / "halves", cfg, new_state(cfg, CPU))
    assert equal(weights(whole), weights(parts))
    assert equal(whole.evaluated.state_dict(), parts.evaluated.state_dict())
    saved = [checkpoint.load_newest(tmp_path / name / "checkpoints").payload for name in ("whole", "halves")]
    for key in ("optimizer", "scaler", "step", "images_seen", "extra", "digest"):
        assert same(saved[0][key], saved[1][key]), key
    assert saved[1]["images_seen"] == 10 * BATCH


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_dropout_really_draws_and_depends_on_step_and_seed(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    runs = [go(tmp_path / name, cfg, new_state(cfg, CPU)) for name, cfg in (("a", config()), ("b", config(seed=1)))]
    assert not equal(weights(runs[0]), weights(runs[1]))


def test_saving_logging_and_evaluating_do_not_move_the_weights(tmp_path: Path) -> None:
    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        torch.manual_seed(0)
        return {"step": float(step), "draw": float(torch.rand(()))}

    plain, busy = config(run=QUIET.model_copy(update={"log_every": 10, "save_every": None})), config(evaluate_every=3)
    busy = busy.model_copy(update={"run": QUIET.model_copy(update={"log_every": 1, "save_every": 1})})
    quiet = go(tmp_path / "quiet", plain, new_state(plain, CPU))
    watched = go(tmp_path / "watched", busy, new_state(busy, CPU), evaluate=evaluate)
    assert equal(weights(quiet), weights(watched))
    assert watched.metrics["step"] == 10.0
    assert [row["step"] for row in rows(tmp_path / "watched") if row["kind"] == "eval"] == [3, 6, 9, 10]


def test_a_resume_repeats_the_evaluation_that_the_record_dropped_and_no_other(tmp_path: Path) -> None:
    for steps in (6, 10, 10):
        cfg = config(steps=steps, evaluate_every=3)
        go(tmp_path, cfg, new_state(cfg, CPU), evaluate=lambda model, step: {"top1": step / 10})
    record = [(row["kind"], row["step"]) for row in rows(tmp_path)]
    assert [step for kind, step in record if kind == "eval"] == [3, 6, 9, 10]
    assert len(record) == len(set(record))


def test_evaluation_puts_a_frozen_part_back_into_its_own_mode(tmp_path: Path) -> None:
    modes: list[list[bool]] = []

    class Frozen(Toy):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()
            return self

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            modes.append([self.training, self[1].training])
            return super().forward(image)

    cfg = config(steps=3, evaluate_every=1)
    go(tmp_path, cfg, new_state(cfg, CPU, model=Frozen()), evaluate=lambda model, step: {})
    assert modes == [[True, False]] * 3


def test_the_average_is_what_its_formula_says_and_what_is_evaluated(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    cfg = config(steps=3, ema_decay=0.9, evaluate_every=1)
    state = new_state(cfg, CPU)
    expected = state.bare[0].weight.detach().clone()
    trained: list[torch.Tensor] = []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        seen.append(model[0].weight.detach().clone())
        trained.append(state.bare[0].weight.detach().clone())
        return {}

    go(tmp_path, cfg, state, evaluate=evaluate)
    for average, weight in zip(seen, trained, strict=True):
        expected = 0.9 * expected + 0.1 * weight
        torch.testing.assert_close(average, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"digest": "other"}, "was made with 'd', this run has 'other'"), ({"ema_decay": 0.9}, "change ema_decay")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    cfg = config(steps=2)
    go(tmp_path, cfg, new_state(cfg, CPU))
    ema = {key: value for key, value in change.items() if key == "ema_decay"}
    other = new_state(config(steps=4, **ema), CPU, digest=change.get("digest", "d"))
    with pytest.raises(ValueError, match=message):
        go(tmp_path, config(steps=4, **ema), other)


def test_a_compiled_model_resumes_from_an_uncompiled_ones_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **_: setattr(module, "_compiled_call_impl", module._call_impl)
    )  # the names are the point
    cfg = config(steps=5, ema_decay=0.9)
    go(tmp_path, cfg, new_state(cfg, CPU))
    compiled = config(steps=6, ema_decay=0.9, run=QUIET.model_copy(update={"compile": True}))
    assert go(tmp_path, compiled, new_state(compiled, CPU)).step == 6

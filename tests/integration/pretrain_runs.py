"""Pretraining runs small enough for a test, and what is compared of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_transfer.config import validate
from mae_transfer.tasks import pretrain
from mae_transfer.tasks.pretrain import PretrainConfig

ROOT = Path(__file__).parent.parent.parent
Values = dict[str, Any]


def values(**changes: Any) -> Values:
    """Return a config of 10 steps with everything on that could break an exact resume."""
    base: Values = {
        "scale": "mini", "epochs": 5.0, "batch": 8, "precision": "float32", "ema_decay": 0.9, "pictures": 2,
        "evaluate_images": 3,
        "data": {"train": {"name": "shapes", "size": 24, "length": 16},
            "val": {"name": "shapes", "size": 24, "length": 4, "seed": 1}, "size": 16},
        "model": {
            "encoder": {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16,
                "drop_path": 0.3},
            "decoder": {"depth": 1, "dim": 8, "heads": 2},
        },
        "optim": {"lr": 1e-3}, "schedule": {"warmup_epochs": 1.0},
        "run": {"device": "cpu", "workers": 0, "device_batch": 4, "log_every": 1, "save_minutes": None,
            "progress": False},
    }  # fmt: skip
    return base | changes


def config(**changes: Any) -> PretrainConfig:
    return validate(values(**changes), PretrainConfig, where="test")


def run_options(**options: Any) -> Values:
    return {"run": values()["run"] | options}


def log(folder: Path) -> list[Values]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in log(folder) if row["kind"] == "train"}


def payload(folder: Path, step: int = 10) -> Values:
    return torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "record"}:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Make the training step call `action` when it computes step `step` (0-based)."""
    loss = pretrain.Pretrain.loss

    def acting(self: Any, model: Any, batch: Any, at: Any) -> Any:
        if (at.number, at.micro) == (step, 0):
            action()
        return loss(self, model, batch, at)

    monkeypatch.setattr(pretrain.Pretrain, "loss", acting)

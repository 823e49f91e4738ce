"""Runs of joint embedding that are small enough for a test: one for each published system."""

from __future__ import annotations

from typing import Any

from mae_transfer.config import validate
from mae_transfer.tasks.joint import JointConfig

Values = dict[str, Any]
HEAD: Values = {"name": "distill", "out": 24, "hidden": 16, "bottleneck": 8, "freeze_epochs": 1.0}
MLP: Values = {"name": "contrast", "out": 8, "hidden": 16}
SYSTEMS: dict[str, Values] = {
    "dino": {"objective": HEAD | {"warmup_temperature": 0.04, "teacher_temperature": 0.07, "warmup_epochs": 3}},
    "ibot": {"objective": HEAD | {"patches": "masked"}, "mask": {}},
    "esvit": {"objective": HEAD | {"patches": "matched", "shared": False, "fixed_norm": False}},
    "moco_v3": {"objective": MLP, "narrow": 0, "freeze_stem": True, "run": {"device_batch": 8}},
    "moby": {
        "objective": MLP | {"queue": 12, "scaled": False, "bias": True, "last_norm": False, "projector_layers": 2},
        "narrow": 0,
    },
}


def values(system: str, **changes: Any) -> Values:
    """Return a config of 10 steps of 8 images; of micro-batches of 4 where the objective can accumulate."""
    own = dict(SYSTEMS[system])
    base: Values = {
        "scale": "mini", "epochs": 5.0, "batch": 8, "precision": "float32", "pictures": 2, "evaluate_images": 3,
        "ema_decay": {"start": 0.9, "end": 1.0, "epochs": "100%"},
        "data": {
            "train": {"name": "shapes", "size": 24, "length": 16},
            "val": {"name": "shapes", "size": 24, "length": 4, "seed": 1},
            "size": 16,
            "views": {"narrow": 0} if own.pop("narrow", 2) == 0 else {"narrow": 2, "narrow_size": 8},
        },
        "model": {
            "encoder": {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16,
                "positions": "learned", "drop_path": 0.3},
            "freeze_stem": own.pop("freeze_stem", False),
        },
        "optim": {
            "lr": 1e-3, "weight_decay": {"start": 0.04, "end": 0.4, "epochs": "100%"}, "clip_norm": {"each": 0.5},
        },
        "schedule": {"warmup_epochs": 1.0},
        "run": {"device": "cpu", "workers": 0, "device_batch": 4, "log_every": 1, "save_minutes": None,
            "progress": False} | own.pop("run", {}),
    }  # fmt: skip
    return base | own | changes


def config(system: str, **changes: Any) -> JointConfig:
    return validate(values(system, **changes), JointConfig, where="test")

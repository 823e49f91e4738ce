"""Runs of the detection task that its tests start from."""

import json
from pathlib import Path
from typing import Any

from pretrain_runs import Values

from mae_transfer.config import validate
from mae_transfer.tasks.detect import DetectConfig

RUN = {
    "device": "cpu",
    "workers": 0,
    "device_batch": 2,
    "log_every": 1,
    "save_minutes": None,
    "progress": False,
    "pictures": 1,
}
STEPS = 6


def values(**changes: Any) -> Values:
    """Return a config of 6 steps with everything on that could break an exact resume."""
    base: Values = {
        "scale": "mini", "epochs": 3.0, "batch": 4, "precision": "float32", "ema_decay": 0.9, "drop_path": 0.3,
        "data": {
            "train": {"name": "shapes", "size": 64, "length": 8},
            "val": {"name": "shapes", "size": 64, "length": 5, "seed": 1},
            "augmentation": {"name": "large_scale_jitter", "size": 64},
            "view": {"name": "shortest_edge", "lengths": (64,), "longest": 64, "flip": 0.0}, "square": 64,
        },
        "backbone": {
            "encoder": {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 16, "image_size": 64},
            "changes": {"windows": 3, "global_blocks": (1, 3), "relative_positions": "decomposed",
                "positions": "learned"},
        },
        "adapter": {"name": "simple_fpn", "channels": 16},
        "heads": {"box_convs": 1, "box_width": 16, "mask_convs": 1, "roi_batch": 16, "post_nms_topk": (50, 20),
            "score_threshold": 0.0},
        "optim": {"lr": 1e-3, "layer_decay": 0.8}, "schedule": {"warmup_epochs": 1.0},
        "run": RUN,
    }  # fmt: skip
    return base | changes


def config(**changes: Any) -> DetectConfig:
    return validate(values(**changes), DetectConfig, where="test")


def coco_data(root: Path, **changes: Any) -> Values:
    sets = {
        "train": {"name": "coco", "split": "train2017", "skip_empty": True},
        "val": {"name": "coco", "split": "val2017"},
    }
    return values()["data"] | {"root": str(root), **sets, **changes}


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

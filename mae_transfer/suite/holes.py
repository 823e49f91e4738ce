"""A run that failed or was skipped leaves a Result without a number, so that the table shows the hole with its reason."""

from __future__ import annotations

from typing import Any, Literal

from mae_transfer import results
from mae_transfer.suite.plan import Node
from mae_transfer.suite.work import Work


def record_hole(node: Node, work: Work, state: Literal["failed", "skipped"], reason: str) -> None:
    """Append the number that a run owes to the tables, as missing; runs that no table waits for owe none."""
    if node.tool.metric is None or node.role == "point":
        return
    try:
        cfg: Any = node.load(node.changes)
        pretrain, backbone = origin(node, work)
    except ValueError:  # a config that was spoilt since the suite began: its place in the tables is not known any more
        return
    hole = results.Result(
        run=node.name, task="classify" if cfg.task == "knn" else cfg.task, protocol=protocol(cfg), dataset=cfg.data.name, split="val",
        metric=node.tool.metric, value=None, unit="%", higher_is_better=True, seed=node.seed, backbone=backbone, pretrain=pretrain, params=0,
        epochs=getattr(cfg, "epochs", 0.0), steps=0, images_seen=0, global_batch=getattr(cfg, "batch", cfg.run.evaluation_batch), world_size=0,
        precision=cfg.precision, wall_s=0.0, images_per_s=0.0, device="none", engine="mae_transfer", scale=cfg.scale, config_digest="",
        status=state, reason=reason,
    )  # fmt: skip
    results.append(work.folder(node.name) / "results.jsonl", [hole])


def protocol(cfg: Any) -> str:
    """Return what the run's own results would call its protocol."""
    if cfg.task == "knn":
        return f"knn-{cfg.ks[0]}"
    if hasattr(cfg, "title"):
        return str(cfg.title())
    return cfg.protocol if isinstance(cfg.protocol, str) else str(cfg.method().title)


def origin(node: Node, work: Work) -> tuple[str, str]:
    """Return the names of pretraining and backbone as far as they are known before the backbone is opened."""
    sources = [work.plan[need] for need in node.needs if work.plan[need].role == "pretrain"]
    if sources:
        pretraining: Any = sources[0].load(sources[0].changes)
        return pretraining.method(), encoder_name(pretraining.model.encoder)
    cfg: Any = node.load(node.changes)
    if cfg.backbone.reference:
        return cfg.backbone.reference.partition(":")[0], "unknown"
    return "none", encoder_name(cfg.backbone.encoder) if cfg.backbone.encoder else "unknown"


def encoder_name(encoder: Any) -> str:
    """Return what results call an encoder."""
    return f"{encoder.size or f'vit-{encoder.dim}x{encoder.depth}'}/{encoder.patch}"

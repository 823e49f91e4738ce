"""The benchmark `scale`: what the training of a suite costs on GPUs, derived from counted operations. Nothing is timed.

Models are built without memory (torch's fake tensors), and torch counts the operations of forward and backward. Time is
operations / (peak x utilisation). Evaluation, tokenizers and teachers are not counted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.adapters import AdaptedBackbone
from mae_transfer.adapters.levels import NORMS
from mae_transfer.core.patches import sides
from mae_transfer.engine.dist import Dist
from mae_transfer.models.mae import MAE
from mae_transfer.models.mask_rcnn import BOX_SIDE, MASK_SIDE, HeadsConfig, MaskRCNN
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.suite.graph.plan import Node, Plan, open_plan
from mae_transfer.suite.graph.shape import Shape, shapes_of, wall_hours
from mae_transfer.suite.match import FOLDERS
from mae_transfer.suite.published.measured import DATA_SETS, Images
from mae_transfer.tasks.backbones import flops_of
from mae_transfer.tasks.classify import ClassifierConfig
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.encoders import EncoderConfig
from mae_transfer.tasks.pretrain import Pretrain, PretrainConfig
from mae_transfer.tasks.segment import SegmentConfig
from mae_transfer.tasks.targets import open_target

NODE = 8  # GPUs of a node
RELEASED: dict[Literal["vit_base", "vit_large", "vit_huge"], int] = {"vit_base": 16, "vit_large": 16, "vit_huge": 14}
"""Sizes of released encoders, which their references name, with the patches of MAE's."""
TOKENIZER = "random:8192/8"  # as many codes as DALL-E's
GRADIENT = 4  # bytes of a parameter's gradient
STATE = 16  # bytes of a trained parameter: itself, its gradient and AdamW's two moments, all float32
AVERAGE = 4  # bytes of a parameter's moving average
POSITIVE = 4  # at most 1 / POSITIVE of the sampled regions of a detector have a mask
BACKWARD = 3  # operations of forward and backward, relative to forward


class Need(NamedTuple):
    """What runs of one recipe need."""

    name: str
    images: float  # that the run trains on
    flops: int  # for one image, forward and backward
    parameters: int
    trained: int  # parameters
    batch: int
    averaged: bool

    def hours(self, speed: float) -> float:
        """Return the hours of a GPU that does `speed` FLOP/s."""
        return self.images * self.flops / speed / 3600

    @property
    def state_bytes(self) -> int:
        """The memory of the training state, without activations."""
        frozen = 4 * (self.parameters - self.trained)
        return frozen + STATE * self.trained + AVERAGE * self.parameters * self.averaged


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a record per recipe of a suite, and one of the whole suite.

    Raises:
        ValueError: so many GPUs are not whole nodes.
    """
    if args.gpus > NODE and args.gpus % NODE:
        raise ValueError(f"--gpus {args.gpus}: more than {NODE} must be whole nodes, a multiple of {NODE}")
    cfg, plan = open_plan(args.suite)
    needs = needs_of(plan, _data_sets(cfg.roots))
    speed = args.tflops * 1e12 * args.utilisation
    records = [_record(need, runs, args, speed) for need, runs in Counter(needs.values()).items()]
    hours = {name: need.hours(speed) for name, need in needs.items()}
    timed = {name: node._replace(hours=hours.get(name)) for name, node in plan.items()}
    each = min(args.gpus, NODE)
    wide, narrow = Shape(args.gpus // each, each), Shape(1, each)
    total = {
        "name": "the suite",
        "runs": len(needs),
        "gpu_hours": sum(hours.values()),
        "hours_one_run_at_a_time": wall_hours(timed, shapes_of(timed, wide)[0], needs.keys(), jobs=1),
        "hours_a_node_per_run": wall_hours(timed, shapes_of(timed, narrow)[0], needs.keys(), jobs=wide.nodes),
    }
    if args.price is not None:
        for record in (*records, total):
            record["price"] = args.price * record["gpu_hours"]
    left = [{"name": "not counted", "runs": len(plan) - len(needs)}] if len(needs) < len(plan) else []
    return [*records, total, *left]


def _record(need: Need, runs: int, args: argparse.Namespace, speed: float) -> dict[str, Any]:
    """Return what runs of a recipe cost, and a step on all GPUs that its batch can be split over."""
    gpus, rate = min(args.gpus, need.batch), speed / need.flops
    # a ring sends each byte of the gradients twice, without the share that a GPU has itself
    sent = 2 * (gpus - 1) / gpus * GRADIENT * need.trained
    return {
        "name": need.name,
        "runs": runs,
        "gflops_per_image": need.flops / 1e9,
        "million_images": need.images / 1e6,
        "gpu_hours": runs * need.hours(speed),
        "images_per_s_per_gpu": rate,
        **({} if args.images_per_core is None else {"cores_per_gpu": rate / args.images_per_core}),
        "step_ms": 1e3 * need.batch / gpus / rate,
        "all_reduce_ms": 1e3 * sent / (args.bandwidth * 1e9),
        "million_parameters": need.parameters / 1e6,
        "state_gib": need.state_bytes / 2**30,
    }


def needs_of(plan: Plan, data: Mapping[str, Images]) -> dict[str, Need]:
    """Return what each run of a plan needs, without those that do not train or cannot be counted.

    data: the data set of each folder of the suite.
    """
    counted: dict[tuple[str, str, str], Need | None] = {}
    needs = {}
    for name, node in plan.items():
        cfg: Any = node.load(node.changes)
        images = data.get(str(cfg.data.root)) if isinstance(cfg, TrainConfig) else None
        encoder = encoder_of(node, plan) if images else None
        if images and encoder:
            key = cfg.recipe_digest(), encoder.name(), images.title
            if key not in counted:
                counted[key] = _need(cfg, encoder, images, node.config.stem)
            needs[name] = counted[key]
    return {name: need for name, need in needs.items() if need is not None}


def _need(cfg: Any, encoder: ViTConfig, images: Images, recipe: str) -> Need | None:
    with torch.device("meta"):
        model = _model(cfg, encoder, images.classes)
    if model is None:
        return None
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    crops = cfg.epochs * images.train[-1] * getattr(cfg.data, "crops_per_image", 1)
    name = f"{recipe}, {encoder.name()}, {images.title}"
    return Need(name, crops, _flops(cfg, model), total, trained, cfg.batch, cfg.ema_decay is not None)


def _model(cfg: Any, encoder: ViTConfig, classes: int) -> nn.Module | None:
    """Return the model that a config trains on an encoder; None for a config whose operations are not counted."""
    if isinstance(cfg, PretrainConfig):
        return MAE(cfg.model, _pretraining(cfg).target.dim)
    if isinstance(cfg, DetectConfig):
        own = {"image_size": cfg.side, "class_token": False, "final_norm": False, "drop_path": cfg.drop_path}
        vit = ViT(_changed(encoder, {**own, **cfg.backbone.changes}))
        adapter, norm = cfg.adapter.build(vit.maps()), NORMS[cfg.heads.norm] if cfg.heads.norm else None
        strides, pyramid = list(adapter.strides.values()), AdaptedBackbone(vit, adapter)
        return MaskRCNN(
            pyramid, channels=adapter.channels, strides=strides, classes=classes, heads=cfg.heads, norm=norm
        )
    if isinstance(cfg, ClassifierConfig | SegmentConfig):
        own = {"image_size": cfg.data.size, **cfg.protocol.changes()}
        vit = ViT(_changed(encoder, {**own, **cfg.backbone.changes}))
        with torch.device("cpu") if isinstance(cfg, SegmentConfig) else nullcontext():  # mmseg reads initial weights
            model: nn.Module = cfg.protocol.model(vit, classes)
        return model
    return None


def _flops(cfg: Any, model: nn.Module) -> int:
    """Return the operations of forward and backward of one image."""
    if isinstance(cfg, PretrainConfig):
        return _pretraining(cfg).training_flops()
    with FakeTensorMode(allow_non_fake_inputs=True):  # the meta device knows no autocast
        model = model.to_empty(device="cpu")
        if isinstance(model, MaskRCNN):
            return _detector_flops(model, cfg.side, cfg.heads)
        return flops_of(model, cfg.data.size, backward=True)


def _pretraining(cfg: PretrainConfig) -> Pretrain:
    """Return a pretraining with its target and masks, without data. Of a tokenizer only the number of codes counts."""
    target = cfg.target.model_copy(update={"tokenizer": TOKENIZER}) if cfg.target.name == "token" else cfg.target
    with torch.device("cpu"):
        task = Pretrain(cfg, Dist(torch.device("cpu")))
        task.set_target(open_target(target, cfg.model.encoder, cfg.statistics))
        task.set_mask(cfg.mask)
    return task


def _detector_flops(model: MaskRCNN, size: int | tuple[int, int], heads: HeadsConfig) -> int:
    """Return the operations of one image with as many regions as a step samples at most."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        levels = list(model.pyramid(torch.zeros(1, 3, *sides(size))).values())
        model.rpn.head(levels)
        regions, width = model.roi_heads, levels[0].shape[1]
        regions.box_predictor(regions.box_head(torch.zeros(heads.roi_batch, width, BOX_SIDE, BOX_SIDE)))
        if regions.has_mask():
            masks = torch.zeros(heads.roi_batch // POSITIVE, width, MASK_SIDE, MASK_SIDE)
            regions.mask_predictor(regions.mask_head(masks))
    return BACKWARD * int(counter.get_total_flops())


def encoder_of(node: Node, plan: Plan) -> ViTConfig | None:
    """Return the encoder of a run: its own, its pretraining's, or that of released weights; None if it is unknown."""
    cfg: Any = node.load(node.changes)
    before = [plan[need] for need in node.needs if plan[need].role == "pretrain"]
    if before:
        return encoder_of(before[0], plan)
    if isinstance(cfg, EncoderConfig):
        return cfg.model.encoder if isinstance(cfg.model.encoder, ViTConfig) else None
    size = next((size for size in RELEASED if size.removeprefix("vit_") in str(cfg.backbone.reference)), None)
    return cfg.backbone.encoder or (ViTConfig(size=size, patch=RELEASED[size]) if size else None)


def _changed(encoder: ViTConfig, changes: Mapping[str, Any]) -> ViTConfig:
    return ViTConfig.model_validate({**encoder.model_dump(), "skip_dropped": False, **changes})


def _data_sets(roots: Mapping[str, str]) -> dict[str, Images]:
    """Return the data set of each folder of a suite, as far as the folder's name is known."""
    titles = {one.title: one for one in DATA_SETS}
    return {path: titles[FOLDERS[name]] for name, path in roots.items() if name in FOLDERS}

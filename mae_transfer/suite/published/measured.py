"""What a published number was measured with, as data: images by their counts, starting weights, recipe.

A data set is known by its counts of images and classes, never by the name of its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Settings = Mapping[str, tuple[Any, ...]]
"""Dotted key of a config -> the values that count as what was published."""


@dataclass(frozen=True)
class Images:
    """A data set by its counts."""

    title: str
    """What the tables call it: "ImageNet"."""
    train: tuple[int, ...]
    """Training images; COCO is counted with and without its images that have no objects."""
    val: int
    """Images of the split that numbers are reported on."""
    classes: int
    """Number of classes."""
    name: str = ""
    """Its whole name, if the title is shorter."""

    @property
    def text(self) -> str:
        """Return "ImageNet-1K"."""
        return self.name or self.title


IMAGENET = Images("ImageNet", (1_281_167,), 50_000, 1000, "ImageNet-1K")  # Russakovsky et al., arXiv 1409.0575
COCO = Images("COCO", (118_287, 117_266), 5_000, 80, "COCO 2017")  # Lin et al., arXiv 1405.0312; cocodataset.org
ADE20K = Images("ADE20K", (20_210,), 2_000, 150)  # Zhou et al., arXiv 1608.05442
FINE_GRAINED = {
    # README files of github.com/visipedia/inat_comp
    "iNat 2017": Images("iNat 2017", (579_184,), 95_986, 5_089),
    "iNat 2018": Images("iNat 2018", (437_513,), 24_426, 8_142),
    "iNat 2019": Images("iNat 2019", (265_213,), 3_030, 1_010),
    "Places205": Images("Places205", (2_448_873,), 20_500, 205),  # Zhou et al., NeurIPS 2014
    "Places365": Images("Places365", (1_803_460,), 36_500, 365),  # README of github.com/zhoubolei/places_devkit
}
VARIANTS = {  # counts as in configs/classify/robustness.py
    "imagenet-c": Images("ImageNet-C", (), 3_750_000, 1000),
    "imagenet-a": Images("ImageNet-A", (), 7_500, 200),
    "imagenet-r": Images("ImageNet-R", (), 30_000, 200),
    "imagenet-sketch": Images("ImageNet-Sketch", (), 50_889, 1000),
}
JUDGED_BY_CLASS = {  # by custom, by the mean accuracy per class; counts as in data/image_sets.py
    "Flowers": Images("Flowers", (2_040,), 6_149, 102, "Oxford 102 Flowers"),
    "Pets": Images("Pets", (3_680,), 3_669, 37, "Oxford-IIIT Pets"),
    "Aircraft": Images("Aircraft", (6_667,), 3_333, 100, "FGVC Aircraft"),
    "Caltech-101": Images("Caltech-101", (3_030,), 5_647, 101),
}
DATA_SETS = (IMAGENET, COCO, ADE20K, *FINE_GRAINED.values(), *VARIANTS.values(), *JUDGED_BY_CLASS.values())


@dataclass(frozen=True)
class Pretraining:
    """What a run of this package must have pretrained with."""

    epochs: float = 1600
    batch: int = 4096
    settings: Settings = field(default_factory=dict)
    tokenizer: str | None = None
    """Layout of the tokenizer's weights; None: the target has no tokenizer."""
    data: Images = IMAGENET
    config: str | None = None
    """The packaged config whose whole recipe counts, but for what `match.FREE` names."""

    def but(
        self, settings: Mapping[str, object] | None = None, *, epochs: float | None = None, tokenizer: str | None = None
    ) -> Pretraining:
        """Return the same with other settings."""
        other = {key: (value,) for key, value in (settings or {}).items()}
        return replace(self, epochs=epochs or self.epochs, tokenizer=tokenizer, settings={**self.settings, **other})


@dataclass(frozen=True)
class Start:
    """The weights that a transfer starts from. Any of these counts."""

    own: Pretraining | None = None
    """A pretraining of this package."""
    released: tuple[str, ...] = ()
    """Released weights by name: keys of checkpoints.RELEASED and names of timm models."""
    random: bool = False
    """Fresh weights."""


@dataclass(frozen=True)
class Measured:
    """What a number was measured with, where this package can do the same."""

    task: str
    """"classify", "detect", "segment", "robustness"; "pretrain" for a number of the pretraining itself."""
    backbone: str
    """Result.backbone: "vit_base/16"."""
    start: Start
    data: Images = IMAGENET
    """The data set that it was trained on."""
    evaluated: Images | None = None
    """The data set that it was evaluated on, if it is another one."""
    epochs: tuple[float, ...] = ()
    """Lengths that count; a run may differ from them by 1 %."""
    batch: int | None = None
    """Images per step; None: the source does not fix it."""
    settings: Settings = field(default_factory=dict)
    classifiers: tuple[str, ...] = ()
    """Released classifiers whose evaluation counts without a training."""


@dataclass(frozen=True)
class Elsewhere:
    """What a number was measured with that this package does not do: no run stands beside it."""

    what: str
    """The reason, behind "was measured with"."""
    start: Start = Start()
    """Whose weights they are, so that runs from the same weights name this number as the nearest."""


How = Callable[[str, str], "Measured | Elsewhere"]
"""What the number of a row and a column was measured with."""

BACKBONES = {
    "ViT-S/16": "vit_small/16",
    "ViT-B/16": "vit_base/16",
    "ViT-L/16": "vit_large/16",
    "ViT-H/14": "vit_huge/14",
    "Swin-T/W7": "swin_tiny_patch4_window7_224",
    "Swin-S/W7": "swin_small_patch4_window7_224",
    "Swin-B/W7": "swin_base_patch4_window7_224",
}
SMALL = "vit_small/16"
BASE, LARGE, HUGE = "vit_base/16", "vit_large/16", "vit_huge/14"

MAE = Pretraining(  # MAE, tables 8 and 1; arXiv 2111.06377
    settings={
        "target.name": ("norm_pixel",),
        "mask.name": ("random",),
        "mask.ratio": (0.75,),
        "mask.unit": (1,),
        "model.encoder.positions": ("fixed",),
        "model.encoder.relative_positions": ("none",),
        "model.decoder.kind": ("self",),
        "model.decoder.share": (1.0,),
        "model.decoder.depth": (8,),
        "model.decoder.dim": (512,),
        "model.corrupt": (None,),
        "data.size": (224,),
        "data.crops_per_image": (1,),
        "data.augmentation.name": ("random_crop",),
        "data.augmentation.scale": ((0.2, 1.0),),
        "data.augmentation.jitter": (0.0,),
    }
)
MAE_800 = MAE.but({"target.name": "pixel"}, epochs=800)  # the ablations' default
BEIT = Pretraining(  # BEiT, arXiv 2106.08254, and its README
    epochs=800,
    batch=2048,
    settings={
        "target.name": ("token",),
        "mask.name": ("block",),
        "model.decoder.depth": (0,),
        "model.decoder.share": (1.0,),
        "model.corrupt": ("mask_token",),
        "data.size": (224,),
    },
    tokenizer="dalle",
)
TARGETS = {
    "pixel (w/o norm)": MAE.but({"target.name": "pixel"}),
    "pixel (w/ norm)": MAE,
    "PCA": MAE.but({"target.name": "pca"}),
    "dVAE token": MAE.but({"target.name": "token"}, tokenizer="dalle"),
}


def joint(epochs: float, batch: int, config: str) -> Pretraining:
    """Return a pretraining by joint embedding with a packaged config, which has the values of the release."""
    return Pretraining(epochs, batch, {"task": ("joint",)}, config=f"pretrain/{config}")


JOINT = {  # the READMEs of facebookresearch/dino, bytedance/ibot, facebookresearch/moco-v3, Transformer-SSL and esvit
    "DINO, ViT-S/16": joint(800, 1024, "dino_vit_small"),
    "DINO, ViT-B/16": joint(400, 1024, "dino_vit_base"),
    "iBOT, ViT-S/16": joint(800, 1024, "ibot_vit_small"),
    "iBOT, ViT-B/16": joint(400, 1024, "ibot_vit_base"),
    "MoCo v3, ViT-S/16": joint(300, 4096, "moco_v3_vit_small"),
    "MoCo v3": joint(300, 4096, "moco_v3_vit_base"),
    "MoBY, Swin-T": joint(300, 512, "moby_swin_tiny"),
    "EsViT, Swin-T/W7": joint(300, 512, "esvit_swin_tiny"),
}
"""Pretrainings by joint embedding. MoCo v3 has 12 heads in ViT-S; its other sizes differ in nothing but the size."""

MAE_FILES = {
    BASE: ("mae_vit_base", "vit_base_patch16_224.mae"),
    LARGE: ("mae_vit_large", "vit_large_patch16_224.mae"),
    HUGE: ("mae_vit_huge", "vit_huge_patch14_224.mae"),
}
MAE_CLASSIFIERS = {BASE: "mae_vit_base_finetuned", LARGE: "mae_vit_large_finetuned", HUGE: "mae_vit_huge_finetuned"}
MOCO = Start(own=JOINT["MoCo v3"], released=("moco_v3_vit_base",))
MOCO_S = Start(own=JOINT["MoCo v3, ViT-S/16"], released=("moco_v3_vit_small",))
DINO = Start(own=JOINT["DINO, ViT-B/16"], released=("dino_vit_base_16", "vit_base_patch16_224.dino"))
DINO_S = Start(own=JOINT["DINO, ViT-S/16"], released=("dino_vit_small_16", "vit_small_patch16_224.dino"))
IBOT = Start(own=JOINT["iBOT, ViT-B/16"], released=("ibot_vit_base",))
IBOT_S = Start(own=JOINT["iBOT, ViT-S/16"], released=("ibot_vit_small",))
MOBY_T = Start(own=JOINT["MoBY, Swin-T"], released=("moby_swin_tiny",))
ESVIT_T = Start(own=JOINT["EsViT, Swin-T/W7"], released=("esvit_swin_tiny_7",))
DEIT = Start(released=("deit_base", "deit_base_patch16_224.fb_in1k"))
FRESH = Start(random=True)

TUNED = {BASE: (100.0,), LARGE: (50.0,), HUGE: (50.0,)}  # MAE, table 9
FROM_SCRATCH = {BASE: (300.0,), LARGE: (200.0,), HUGE: (200.0,)}  # MAE, table 11
PROBED = {BASE: (90.0,), LARGE: (50.0, 90.0), HUGE: (50.0, 90.0)}  # MAE, table 10: 50 epochs suffice for L and H
PARTLY_TUNED = (50.0, 100.0, 200.0)  # MAE, appendix A.1: the best of the three
ON_ADE20K = (100.0, 126.7)  # MAE, appendix A.4; 160,000 iterations of 16 images in the public recipe
ALL_LABELS: Settings = {"data.label_fraction": (1.0,)}


def mae(backbone: str) -> Start:
    """Return the paper's MAE: 1600 epochs on normalised pixels, run here or released."""
    return Start(own=MAE, released=MAE_FILES.get(backbone, ()))


def finetuned(
    backbone: str, start: Start, *, data: Images = IMAGENET, size: int = 224, epochs: tuple[float, ...] = ()
) -> Measured:
    """Return MAE's fine-tuning (table 9)."""
    settings: Settings = {"protocol.name": ("finetune",), "data.size": (size,), **ALL_LABELS}
    return Measured("classify", backbone, start, data, None, epochs or TUNED[backbone], 1024, settings)


def scratch(backbone: str, *, ema: float | None = 0.9999) -> Measured:
    """Return MAE's supervised training from random weights (table 11)."""
    settings: Settings = {"protocol.name": ("finetune",), "data.size": (224,), "ema_decay": (ema,), **ALL_LABELS}
    return Measured("classify", backbone, FRESH, IMAGENET, None, FROM_SCRATCH[backbone], 4096, settings)


def probed(backbone: str, start: Start) -> Measured:
    """Return MAE's linear probing (table 10)."""
    settings: Settings = {"protocol.name": ("linear",), "data.size": (224,), **ALL_LABELS}
    return Measured("classify", backbone, start, IMAGENET, None, PROBED[backbone], 16384, settings)


def voted(backbone: str, start: Start) -> Measured:
    """Return DINO's weighted k-NN (eval_knn.py); the table's column says k."""
    settings: Settings = {
        "pool": ("cls",), "temperature": (0.07,), "data.size": (224,), "data.shorter_side": (256 / 224,), **ALL_LABELS,
    }  # fmt: skip
    return Measured("knn", backbone, start, IMAGENET, None, (0.0,), None, settings)


def partly_tuned(blocks: tuple[object, ...]) -> Measured:
    """Return MAE's partial fine-tuning of ViT-L (figure 9)."""
    settings: Settings = {
        "protocol.name": ("partial",), "protocol.tune_blocks": blocks, "data.size": (224,), **ALL_LABELS,
    }  # fmt: skip
    return Measured("classify", LARGE, Start(own=MAE_800), IMAGENET, None, PARTLY_TUNED, 1024, settings)


def robust(variant: str, trained: Measured, classifiers: tuple[str, ...] = ()) -> Measured:
    """Return the evaluation of a trained classifier on a variant of ImageNet."""
    return replace(trained, task="robustness", evaluated=VARIANTS[variant], classifiers=classifiers)


def detected(backbone: str, start: Start, epochs: tuple[float, ...] = (100.0,)) -> Measured:
    """Return the detection protocol of Li et al. (arXiv 2111.11429), MAE's table 4."""
    settings: Settings = {"adapter.name": ("tap_fpn",), "heads.norm": ("batch",), "data.square": (1024,)}
    return Measured("detect", backbone, start, COCO, None, epochs, 64, settings)


def vitdet(backbone: str, start: Start, epochs: float) -> Measured:
    """Return ViTDet's Mask R-CNN (arXiv 2203.16527)."""
    settings: Settings = {"adapter.name": ("simple_fpn",), "heads.norm": ("layer",), "data.square": (1024,)}
    return Measured("detect", backbone, start, COCO, None, (epochs,), 64, settings)


def segmented(backbone: str, start: Start, epochs: tuple[float, ...] = ON_ADE20K) -> Measured:
    """Return UperNet on ADE20K (MAE, appendix A.4)."""
    settings: Settings = {"protocol.name": ("upernet",), "data.size": (512,)}
    return Measured("segment", backbone, start, ADE20K, None, epochs, 16, settings)

"""The settings of a benchmark and the command-line options of each. This module imports no torch, so --help is fast."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal

from mae_transfer.cli.parser import Parser, config_path, count, path, positive, share

Mode = Literal["eager", "compiled"]
SIZES = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")  # the names of models.vit.SIZES


@dataclass(frozen=True)
class Workload:
    """Model, batch and precision of one step."""

    size: str = "vit_base"  # key of models.vit.SIZES
    patch: int = 16
    image: int = 224  # pixels per side
    batch: int = 16
    mask_ratio: float = 0.75
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast over float32 parameters
    device: str = "cpu"


def work(
    parser: Parser, *, image: int = Workload.image, batch: int = Workload.batch, of: str = "images per step"
) -> None:
    """Add the options for model, image and batch size, precision and device."""
    parser.what.add_argument("--size", default=Workload.size, choices=SIZES, help="encoder (default: %(default)s)")
    number(parser.what, "patch", Workload.patch, "pixels per side of a patch", unit="P")
    number(parser.what, "image", image, "pixels per side of an image", unit="P")
    number(parser.what, "batch", batch, of)
    precision = "bfloat16: autocast over float32 parameters (default: %(default)s)"
    parser.how.add_argument("--dtype", default=Workload.dtype, choices=("float32", "bfloat16"), help=precision)
    rounds(parser, 5)
    device(parser)


def device(parser: Parser) -> None:
    """Add the device."""
    devices, how = ("auto", "cpu", "cuda", "mps"), "auto (default): cuda, else mps, else cpu"
    parser.how.add_argument("--device", default="auto", choices=devices, help=how)


def number(
    group: argparse._ArgumentGroup, name: str, default: float, text: str, *, unit: str = "N", kind: Any = count
) -> None:
    """Add an option that takes a number. kind: `count`, `positive` or `share`."""
    what = f"{text} (default: %(default)s)"
    group.add_argument(f"--{name}", type=kind, default=default, metavar=unit, help=what)


def rounds(parser: Parser, default: int, text: str = "turns of each contestant") -> None:
    """Add the number of rounds."""
    number(parser.how, "rounds", default, text)


def step(parser: Parser) -> None:
    """Add the options of a training step."""
    work(parser)
    modes = ("eager", "compiled")
    parser.how.add_argument(
        "--modes", nargs="+", default=["eager"], choices=modes, help="modes to run in (default: eager)"
    )
    parser.how.add_argument(
        "--steps", type=count, default=2, metavar="N", help="steps per turn (default: %(default)s); 20 or more on a GPU"
    )


def joint(parser: Parser) -> None:
    """Add the options of a step of joint embedding."""
    parser.what.add_argument(
        "--system", default="dino", choices=("dino", "ibot", "moco-v3"), help="objective (default: %(default)s)"
    )
    step(parser)


def pretrain(parser: Parser) -> None:
    """Add the options of a pretraining step."""
    step(parser)
    number(parser.what, "mask-ratio", Workload.mask_ratio, "share of hidden patches", unit="R", kind=share)


def gpu(parser: Parser) -> None:
    """Add the options of all steps in one table."""
    small = "small models and images, one step of each: does everything run here?"
    parser.what.add_argument("--tiny", action="store_true", help=small)
    some = "names of cases, for instance 'pretrain B/16' 'DINO S/16' (default: all)"
    parser.what.add_argument("--only", nargs="+", metavar="CASE", help=some)
    rounds(parser, 3)
    number(parser.how, "steps", 10, "steps per turn")
    device(parser)


def slide(parser: Parser) -> None:
    """Add the options of sliding-window inference."""
    work(parser, image=512, batch=8, of="windows per pass")


def data(parser: Parser) -> None:
    """Add the options of the input pipelines."""
    parser.what.add_argument("folder", type=path, metavar="FOLDER", help="folder of JPEGs, nested or not")
    views = "time DINO's 12 views per image (2 of 224 px, 10 of 96 px) instead of one crop"
    fine_tuning = "time fine-tuning crops with RandAugment instead of pretraining crops"
    either = parser.what.add_mutually_exclusive_group()
    either.add_argument("--multi-crop", action="store_true", help=views)
    either.add_argument("--rand-augment", action="store_true", help=fine_tuning)
    number(parser.how, "seconds", 60.0, "total time of all pipelines", unit="S", kind=positive)
    where = "cuda: time the training input of a GPU instead, decoded by the workers or by the GPU (default: cpu)"
    parser.how.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help=where)
    number(parser.how, "workers", 16, "worker processes of the training input on cuda")


def coco(parser: Parser) -> None:
    """Add the options of the detection evaluators."""
    number(parser.what, "images", 500, "images, each with about 100 predictions")
    rounds(parser, 3)


def logreg(parser: Parser) -> None:
    """Add the options of logistic regression."""
    number(parser.what, "images", 100_000, "training images")
    number(parser.what, "width", 768, "width of a feature")
    number(parser.what, "classes", 100, "classes")
    rounds(parser, 3)


def opening(parser: Parser) -> None:
    """Add the options of opening many images."""
    number(parser.what, "images", 100_000, "images of the training set, tiny files in TMPDIR")
    rounds(parser, 5)


def masks(parser: Parser) -> None:
    """Add the options of the masks of many objects."""
    number(parser.what, "objects", 1000, "annotated objects, and as many predictions")
    number(parser.what, "height", 4000, "height of the image, pixels", unit="P")
    number(parser.what, "width", 5000, "width of the image, pixels", unit="P")
    number(parser.what, "radius", 100.0, "mean radius of an object, pixels", unit="P", kind=positive)
    rounds(parser, 3, "rounds; the fastest counts")


def scale(parser: Parser) -> None:
    """Add the options of the cost of a suite."""
    parser.what.add_argument("suite", type=config_path, metavar="SUITE", help="suite file, or a name: suites/paper")
    number(parser.how, "gpus", 8, "GPUs, in nodes of 8")
    peak = "dense bfloat16 peak of a GPU, TFLOP/s (default: %(default)s, H100 SXM; A100: 312)"
    parser.how.add_argument("--tflops", type=positive, default=989.0, metavar="T", help=peak)
    number(parser.how, "utilisation", 0.4, "share of the peak that a step reaches", unit="U", kind=share)
    network = "bus bandwidth of an all-reduce, GB/s (default: %(default)s, 8 adapters of 400 Gb/s per node)"
    parser.how.add_argument("--bandwidth", type=positive, default=400.0, metavar="B", help=network)
    cores = "images/s that a CPU core prepares, measured by the benchmark `data`: also print cores per GPU"
    parser.how.add_argument("--images-per-core", type=positive, metavar="N", help=cores)
    price = "price of a GPU hour, in any currency: also print prices"
    parser.how.add_argument("--price", type=positive, metavar="P", help=price)

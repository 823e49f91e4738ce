"""The command-line options of each benchmark. This module imports no torch, so --help is fast."""

from __future__ import annotations

from mae_transfer import cli
from mae_transfer.bench.work import Work

SIZES = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")  # the names of models.vit.SIZES


def work(parser: cli.Parser, *, image: int = Work.image, batch: int = Work.batch, of: str = "images per step") -> None:
    """Add the options for model, image and batch size, precision and device."""
    what, how = parser.what, parser.how
    what.add_argument("--size", default=Work.size, choices=SIZES, help="encoder (default: %(default)s)")
    what.add_argument(
        "--patch", type=int, default=Work.patch, metavar="P", help="pixels per side of a patch (default: %(default)s)"
    )
    what.add_argument(
        "--image", type=int, default=image, metavar="P", help="pixels per side of an image (default: %(default)s)"
    )
    what.add_argument("--batch", type=int, default=batch, metavar="N", help=f"{of} (default: %(default)s)")
    precision = "bfloat16: autocast over float32 parameters (default: %(default)s)"
    how.add_argument("--dtype", default=Work.dtype, choices=("float32", "bfloat16"), help=precision)
    rounds(parser, 5)
    how.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="auto (default): cuda, else mps, else cpu",
    )


def rounds(parser: cli.Parser, default: int) -> None:
    """Add the number of turns of each contestant."""
    parser.how.add_argument(
        "--rounds", type=int, default=default, metavar="N", help="turns of each contestant (default: %(default)s)"
    )


def step(parser: cli.Parser) -> None:
    """Add the options of a training step."""
    work(parser)
    parser.how.add_argument(
        "--modes", nargs="+", default=["eager"], choices=("eager", "compiled"), help="modes to run in (default: eager)"
    )
    parser.how.add_argument(
        "--steps", type=int, default=2, metavar="N", help="steps per turn (default: %(default)s); 20 or more on a GPU"
    )


def pretrain(parser: cli.Parser) -> None:
    """Add the options of a pretraining step."""
    step(parser)
    ratio = "share of hidden patches (default: %(default)s)"
    parser.what.add_argument("--mask-ratio", type=float, default=Work.mask_ratio, metavar="R", help=ratio)


def slide(parser: cli.Parser) -> None:
    """Add the options of sliding-window inference."""
    work(parser, image=512, batch=8, of="windows per pass")


def data(parser: cli.Parser) -> None:
    """Add the options of the input pipelines."""
    parser.what.add_argument("folder", type=cli.path, metavar="FOLDER", help="folder of JPEGs, nested or not")
    parser.how.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="total time of all pipelines (default: %(default)s)"
    )


def coco(parser: cli.Parser) -> None:
    """Add the options of the detection evaluators."""
    images = "images, each with about 100 predictions (default: %(default)s)"
    parser.what.add_argument("--images", type=int, default=500, metavar="N", help=images)
    rounds(parser, 3)


def masks(parser: cli.Parser) -> None:
    """Add the options of the masks of many objects."""
    what = parser.what
    what.add_argument(
        "--objects",
        type=int,
        default=1000,
        metavar="N",
        help="annotated objects, and as many predictions (default: %(default)s)",
    )
    what.add_argument(
        "--height", type=int, default=4000, metavar="P", help="height of the image, pixels (default: %(default)s)"
    )
    what.add_argument(
        "--width", type=int, default=5000, metavar="P", help="width of the image, pixels (default: %(default)s)"
    )
    what.add_argument(
        "--radius",
        type=float,
        default=100.0,
        metavar="P",
        help="mean radius of an object, pixels (default: %(default)s)",
    )
    parser.how.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="rounds; the fastest counts (default: %(default)s)"
    )

"""Measure this project beside its peers, on this machine: steps, the input (`data`), windows (`slide`), detections (`coco`, `masks`)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from rich.console import Console

from mae_transfer import cli, results
from mae_transfer.bench import classify, data, detect, masks, pretrain, segment, targets
from mae_transfer.bench.harness import Work
from mae_transfer.bench.report import Records, table
from mae_transfer.engine.dist import pick_device
from mae_transfer.models.vit import SIZES


class Benchmark(NamedTuple):
    """A subcommand: its options, and what turns them into records."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Records]


def work_arguments(parser: argparse.ArgumentParser, *, image: int = Work.image, batch: int = Work.batch, of: str = "images per step") -> None:
    parser.add_argument("--size", default=Work.size, choices=SIZES)
    parser.add_argument("--patch", type=int, default=Work.patch, help="pixels per side of a patch")
    parser.add_argument("--image", type=int, default=image, help="pixels per side of an image")
    parser.add_argument("--batch", type=int, default=batch, help=of)
    parser.add_argument("--dtype", default=Work.dtype, choices=("float32", "bfloat16"), help="bfloat16: autocast over float32 parameters")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="auto: cuda, then mps, then cpu")


def step_arguments(parser: argparse.ArgumentParser) -> None:
    work_arguments(parser)
    parser.add_argument("--modes", nargs="+", default=["eager"], choices=("eager", "compiled"), help="each contestant runs in each of them")
    parser.add_argument("--steps", type=int, default=2, help="training steps per turn; 20 and more on a GPU")


def pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    step_arguments(parser)
    parser.add_argument("--mask-ratio", type=float, default=Work.mask_ratio, help="share of hidden patches")


def work_of(args: argparse.Namespace) -> Work:
    return Work(args.size, args.patch, args.image, args.batch, vars(args).get("mask_ratio", 0.0), args.dtype, str(pick_device(args.device)))


def run_step(run: Callable[..., Records], args: argparse.Namespace) -> Records:
    return run(work_of(args), modes=args.modes, rounds=args.rounds, steps=args.steps)


def data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=cli.path, help="JPEGs, at any depth")
    parser.add_argument("--seconds", type=float, default=60.0, help="of racing, over all pipelines and rounds")


def coco_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=500, help="with about 100 predictions each")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each evaluator")


BENCHMARKS = {
    "pretrain": Benchmark(pretrain_arguments, partial(run_step, pretrain.run)),
    "targets": Benchmark(pretrain_arguments, partial(run_step, targets.run)),
    "classify": Benchmark(step_arguments, partial(run_step, classify.run)),
    "segment": Benchmark(step_arguments, partial(run_step, segment.run)),
    "slide": Benchmark(
        partial(work_arguments, image=512, batch=8, of="windows per pass"), lambda args: segment.slide(work_of(args), rounds=args.rounds)
    ),
    "detect": Benchmark(step_arguments, partial(run_step, detect.run)),
    "coco": Benchmark(coco_arguments, lambda args: detect.evaluators(images=args.images, rounds=args.rounds)),
    "masks": Benchmark(masks.add_arguments, masks.run),
    "data": Benchmark(data_arguments, lambda args: data.run(args.folder, seconds=args.seconds)),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        benchmark.add_arguments(command)
        command.add_argument("--json", type=cli.path, help="where the records go, with versions and device")
    args = parser.parse_args(argv)
    records = BENCHMARKS[args.benchmark].run(args)
    Console().print(table(records, title=" ".join(f"{key}={value}" for key, value in vars(args).items() if key != "json")))
    if args.json:
        about = {"options": {key: str(value) for key, value in vars(args).items()}, "versions": results.versions(), "commit": results.commit()}
        about["device"] = results.device_name(pick_device(vars(args).get("device", "cpu")))
        args.json.write_text(json.dumps(about | {"records": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Measure the speed of this project and its peers on this machine.

  python tools/benchmark.py pretrain
  python tools/benchmark.py joint --system ibot --size vit_small
  python tools/benchmark.py detect --device cuda --modes eager compiled --steps 20
  python tools/benchmark.py gpu --json gpu.json
  python tools/benchmark.py gpu --json gpu.json --only "pretrain B/16"
  python tools/benchmark.py data /data/imagenet/val --seconds 60
  python tools/benchmark.py data /data/imagenet/val --multi-crop
  python tools/benchmark.py data /data/imagenet/val --device cuda --workers 16

Each contestant runs in its own process, and they alternate. --help after a command shows its
options.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import Any, NamedTuple

from mae_transfer.bench import options
from mae_transfer.cli.parser import Parser, path

Records = list[dict[str, Any]]


class Benchmark(NamedTuple):
    """A command: its help text, its options, and the function that returns or yields the records."""

    help: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], Iterable[dict[str, Any]]]


def bench(name: str) -> Any:
    """Import and return an object of mae_transfer.bench ("targets:run")."""
    return resolve_name(f"mae_transfer.bench.{name}")


def device_of(args: argparse.Namespace, precision: str = "float32", *, remedy: str = "") -> Any:
    """Return the device of the options. ValueError with the remedy if it does not have the precision."""
    device = resolve_name("mae_transfer.engine.dist:pick_device")(args.device)
    resolve_name("mae_transfer.engine.state:check_precision")(precision, device, remedy=remedy)
    return device


def work_of(args: argparse.Namespace) -> options.Workload:
    """Return the model, the batch and the device of the options."""
    device = device_of(args, args.dtype, remedy="set --dtype float32")
    return options.Workload(
        args.size, args.patch, args.image, args.batch, vars(args).get("mask_ratio", 0.0), args.dtype, str(device)
    )


def compare(name: str) -> Callable[[argparse.Namespace], Records]:
    """Return the race of the contestants of a module of mae_transfer.bench."""
    return lambda args: race(bench(f"{name}:COMPARISON"), args)


def race(comparison: Any, args: argparse.Namespace) -> Records:
    """Return the race of the contestants of a Comparison."""
    records: Records = bench("harness:compare")(
        comparison, work_of(args), modes=args.modes, rounds=args.rounds, steps=args.steps
    )
    return records


def everything(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Run the steps of all tasks on one device, or of the cases `--only`."""
    once = args.tiny
    device = device_of(args, "float32" if once else "bfloat16", remedy="--tiny runs the steps in float32")
    if not once and device.type != "cuda":
        raise ValueError(f"gpu needs a CUDA device, and --device {args.device} is {device.type}: --tiny tries it here")
    rounds, steps = (1, 1) if once else (args.rounds, args.steps)
    found: Iterable[dict[str, Any]] = bench("gpu:run")(
        device, tiny=once, rounds=rounds, steps=steps, cases=bench("gpu:named")(args.only)
    )
    return found


def input_pipelines(args: argparse.Namespace) -> Records:
    """Time the input on one core, or the training input of a GPU."""
    if args.device == "cuda":
        if args.multi_crop or args.rand_augment:
            raise ValueError("--device cuda times pretraining crops: leave --multi-crop and --rand-augment out")
        device = device_of(args)
        fed: Records = bench("data:time_feeds")(args.folder, device, workers=args.workers, seconds=args.seconds)
        return fed
    found: Records = bench("data:run")(
        args.folder, seconds=args.seconds, multi_crop=args.multi_crop, augmented=args.rand_augment
    )
    return found


BENCHMARKS = {
    "gpu": Benchmark("the steps of all tasks on a GPU beside their peers", options.gpu, everything),
    "pretrain": Benchmark("MAE pretraining steps", options.pretrain, compare("pretrain")),
    "joint": Benchmark(
        "pretraining steps of DINO and iBOT, of 2 wide and 8 narrow views, or MoCo v3, of 2 views",
        options.joint,
        lambda args: race(bench("joint:COMPARISONS")[args.system], args),
    ),
    "targets": Benchmark(
        "pretraining steps of each target",
        options.pretrain,
        lambda args: bench("targets:run")(work_of(args), modes=args.modes, rounds=args.rounds, steps=args.steps),
    ),
    "classify": Benchmark("classification steps of each protocol", options.step, compare("classify")),
    "segment": Benchmark("UperNet steps", options.step, compare("segment")),
    "slide": Benchmark(
        "sliding-window inference",
        options.slide,
        lambda args: bench("segment:slide")(work_of(args), rounds=args.rounds),
    ),
    "detect": Benchmark("Mask R-CNN steps", options.step, compare("detect")),
    "coco": Benchmark(
        "COCO evaluators", options.coco, lambda args: bench("detect:evaluators")(images=args.images, rounds=args.rounds)
    ),
    "masks": Benchmark(
        "memory and time of the masks of many objects", options.masks, lambda args: bench("masks:run")(args)
    ),
    "logreg": Benchmark("logistic regression of features", options.logreg, lambda args: bench("logreg:run")(args)),
    "scale": Benchmark(
        "hours of a suite on GPUs, derived from counted operations",
        options.scale,
        lambda args: bench("scale:run")(args),
    ),
    "open": Benchmark(
        "opening a folder of many images, and a pack of them", options.opening, lambda args: bench("opening:run")(args)
    ),
    "data": Benchmark(
        "input pipelines",
        options.data,
        input_pipelines,
    ),
}


def add_options(parser: Parser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="COMMAND", title="Commands")
    records = "also write the records to a file as they are found, with software versions and device"
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=f"Measure {benchmark.help}.")
        benchmark.add_options(command)
        command.where.add_argument("--json", type=path, metavar="FILE", help=records)


def run(args: argparse.Namespace) -> None:
    """Run a benchmark and print its table."""
    from mae_transfer import results
    from mae_transfer.bench.harness import sheet
    from mae_transfer.engine.dist import pick_device
    from mae_transfer.record import software
    from mae_transfer.suite.tables.formats import terminal

    about = {
        "options": {key: str(value) for key, value in vars(args).items()},
        "software": software().model_dump(),
        "device": results.device_name(pick_device(vars(args).get("device", "cpu"))),
    }
    records: Records = []
    for record in BENCHMARKS[args.benchmark].run(args):
        records.append(record)
        if args.json:  # now, because the next one may fail
            args.json.write_text(json.dumps(about | {"records": records}, indent=2) + "\n", encoding="utf-8")
    title = " ".join(f"{key}={value}" for key, value in vars(args).items() if key != "json")
    print(terminal([sheet(records, title=title)]), end="")

"""What the commands that train have in common: options, the config of the command line, a transfer of a backbone."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mae_transfer.cli.parser import Parser, add_config_information, check_work_dir, config_path, path
from mae_transfer.disk import at_home
from mae_transfer.tasks.entries import TaskEntry

CONFIG = "a config file, or a name of `mae-transfer configs`"


def add_config_options(parser: Parser, config: str = CONFIG) -> None:
    """Add CONFIG with this help text, --set, --work-dir, --list and --show."""
    change = "change a value of the config, e.g. --set data.root=/data/imagenet; may be repeated"
    parser.what.add_argument("config", type=config_path, metavar="CONFIG", help=config)
    parser.what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    parser.where.add_argument("--work-dir", type=path, metavar="D", help="folder for everything that the run writes")
    add_config_information(parser)


def add_run_options(parser: Parser) -> None:
    """Add the options of runs that train step by step."""
    resume = "continue D from its newest checkpoint (on a CPU bit for bit); start from scratch if D has none"
    debug = "run a few steps of a tiny model on generated images, to check the config"
    estimate = "time 20 steps, print hours, memory and disk of the run, and exit"
    parser.how.add_argument("--resume", action="store_true", help=resume)
    parser.how.add_argument("--debug", action="store_true", help=debug)
    parser.information.add_argument("--estimate", action="store_true", help=estimate)


def add_transfer_options(parser: Parser, *, released: str = "") -> None:
    """Add the options of commands that take a backbone.

    Args:
        released: what else --checkpoint may name.
    """
    add_config_options(parser)
    backbone = "weights to transfer: a backbone.safetensors, or PREFIX:PATH (mae:, timm:, released: ...; see "
    backbone += "docs/backbones.md)"
    evaluate = "evaluate --checkpoint without training; --work-dir is then optional"
    checkpoint = f"with --eval: a step_*.pt of this tool{released}"
    parser.what.add_argument("--backbone", metavar="REF", help=backbone)
    parser.what.add_argument("--eval", action="store_true", help=evaluate)
    parser.what.add_argument("--checkpoint", type=at_home, metavar="C", help=checkpoint)
    add_run_options(parser)


def add_pictures(parser: Parser) -> None:
    """Add --visualize N."""
    draw = "draw N validation images with ground truth and predictions (run.pictures)"
    parser.how.add_argument("--visualize", type=int, metavar="N", help=draw)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the overrides of --estimate and --set."""
    return [*(["run.estimate=True"] if args.estimate else []), *args.set]


def task_of(config: Path, tasks: Mapping[str, TaskEntry]) -> tuple[str, list[Any]]:
    """Return the name of the task of a config file and the imported parts of its entry; the default is the first."""
    from mae_transfer.config import read

    name = read(config).get("task", next(iter(tasks)))
    if name not in tasks:
        raise ValueError(
            f"{config}: unknown task {name!r}; this tool runs {', '.join(tasks)} (a config's first lines name its tool)"
        )
    return name, [part and resolve_name(f"mae_transfer.tasks.{part}") for part in tasks[name]]


def transfer(
    args: argparse.Namespace, tasks: Mapping[str, TaskEntry], *, changes: Mapping[str, Any] | None = None
) -> None:
    """Do what the command line of a transfer says.

    Args:
        tasks: the config's `task` selects one by name; the default is the first.
        changes: dotted key -> value, applied to the config file.
    """
    if args.eval != (args.checkpoint is not None):
        raise argparse.ArgumentError(None, "--eval and --checkpoint go together")
    check_work_dir(args)
    from mae_transfer.cli.showing import show
    from mae_transfer.config import Schema, load

    name, (schema, run, evaluate) = task_of(args.config, tasks)
    drawn = {} if vars(args).get("visualize") is None else {"run.pictures": args.visualize}
    backbone = [] if args.backbone is None else [f"backbone.reference={args.backbone!r}"]
    given = {**(changes or {}), **drawn}
    cfg: Schema = load(args.config, schema, changes=given, overrides=[*backbone, *overrides(args)], debug=args.debug)
    if args.show:
        show(cfg, title=str(args.config))
    elif args.estimate and (args.eval or evaluate is None):
        raise ValueError(f"--estimate times training, but this run of task {name!r} trains nothing: remove it")
    elif args.eval:
        if evaluate is None:
            raise ValueError(f"task {name!r} has no checkpoint to evaluate: pass --backbone instead of --eval")
        evaluate(cfg, args.checkpoint, args.work_dir)
    elif run is None:
        raise ValueError(f"task {name!r} trains nothing: pass --eval --checkpoint C")
    else:
        run(cfg, args.work_dir, resume=args.resume)

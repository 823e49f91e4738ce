"""What the training tools share: the command line, and one clear line instead of a traceback for a user's mistake."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter

from mae_transfer.bounds import Count
from mae_transfer.config import Schema, at_home, load, read
from mae_transfer.suite import grid

S = TypeVar("S", bound=Schema)


class Task(NamedTuple):
    """One of the tasks that a tool runs, by what its config says."""

    schema: type[Schema]
    run: Callable[..., object] | None  # (cfg, work_dir, resume=...); None: it only evaluates
    evaluate: Callable[..., object] | None = None  # (cfg, checkpoint, work_dir or None); None: nothing is trained


class Switch(NamedTuple):
    """A flag that stands for values of the config."""

    changes: Mapping[str, Any]  # dotted key -> value
    help: str


def train(schema: type[S], run: Callable[..., object], *, description: str, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, load the config into `schema`, call run(cfg, work_dir, resume=...); return the exit status."""
    args = _parsed(_parser(description), argv)
    return guarded(
        lambda: run(
            load(args.config, schema, overrides=_overrides(args), debug=args.debug),
            args.work_dir,
            resume=args.resume,
        )
    )


def pretrain(schema: type[S], run: Callable[..., Sequence[object]], *, description: str, argv: Sequence[str] | None = None) -> int:
    """Do the same for a tool whose config may be a grid (configs/ablations): --row names one of its runs, or all of them, one after the other."""
    parser = _parser(description)
    parser.add_argument("--row", metavar="ROW", help="of an ablation (configs/ablations): a row of the table, or all (each in a folder of D)")
    parser.add_argument("--mini", action="store_true", help="an ablation at a laptop's scale instead of the paper's")
    args = _parsed(parser, argv)
    return guarded(lambda: _pretrain(schema, run, args))


def _pretrain(schema: type[S], run: Callable[..., Sequence[object]], args: argparse.Namespace) -> None:
    if not grid.is_grid(args.config):
        if args.row or args.mini:
            raise ValueError(f"{args.config} is one run, not an ablation: leave --row and --mini out")
        cfg = load(args.config, schema, overrides=_overrides(args), debug=args.debug)
        run(cfg, args.work_dir, resume=args.resume)
        return
    points = grid.points(Path(args.config), "mini" if args.mini else "paper", args.row or "")
    runs = [(point, load(point.config, schema, changes=point.changes, overrides=_overrides(args), debug=args.debug)) for point in points]
    if len(runs) > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--row all runs one row after the other in one process: under torchrun start each row by its name")
    for point, cfg in runs:  # every row is checked before the first one starts
        folder = args.work_dir / point.folder if args.row == "all" else args.work_dir
        if not run(cfg, folder, resume=args.resume) and not args.estimate:
            break  # stopped by a signal, and saved


def transfer(
    tasks: Mapping[str, Task],
    *,
    description: str,
    draws: bool = False,
    switches: Mapping[str, Switch] = MappingProxyType({}),
    argv: Sequence[str] | None = None,
) -> int:
    """Do the same for tools that take a backbone: the config's `task` (the first of `tasks` where it names none) says which one runs.

    Args:
        draws: whether there is a --visualize N.
        switches: further flags by name ("multi-scale").
    """
    parser = _parser(description)
    parser.add_argument(
        "--backbone", metavar="REF", help="the weights to transfer: a backbone.safetensors, or PREFIX:PATH (mae:, timm:, random: ...)"
    )
    parser.add_argument("--eval", action="store_true", help="train nothing: evaluate --checkpoint (then --work-dir may be left out)")
    parser.add_argument("--checkpoint", type=at_home, metavar="C", help="with --eval: a step_*.pt of this tool, or mae-finetuned:PATH")
    if draws:
        parser.add_argument("--visualize", type=int, metavar="N", help="draw N validation images with their truth and what was found (run.pictures)")
    for name, switch in switches.items():
        parser.add_argument(f"--{name}", dest=name, action="store_true", help=switch.help)
    args = _parsed(parser, argv)
    if args.eval != (args.checkpoint is not None):
        parser.error("--eval and --checkpoint go together")
    changes: dict[str, Any] = {}
    for name, switch in switches.items():
        changes |= switch.changes if vars(args)[name] else {}
    if vars(args).get("visualize") is not None:
        changes["run.pictures"] = args.visualize
    return guarded(lambda: _transfer(tasks, args, changes))


def _transfer(tasks: Mapping[str, Task], args: argparse.Namespace, changes: Mapping[str, Any]) -> None:
    named = read(args.config).get("task", next(iter(tasks)))
    if named not in tasks:
        raise ValueError(f"{args.config}: task = {named!r}; this tool runs {', '.join(tasks)}")
    task = tasks[named]
    backbone = [] if args.backbone is None else [f"backbone.reference={args.backbone!r}"]
    cfg = load(args.config, task.schema, changes=changes, overrides=[*backbone, *_overrides(args)], debug=args.debug)
    if not args.eval and task.run is None:
        raise ValueError(f"task {named!r} trains nothing: give --eval --checkpoint C")
    if args.estimate and (args.eval or task.evaluate is None):
        raise ValueError(f"--estimate times training, and task {named!r} trains nothing here: leave it out")
    if not args.eval and task.run is not None:
        task.run(cfg, args.work_dir, resume=args.resume)
    elif task.evaluate is None:
        raise ValueError(f"task {named!r} has no checkpoint to evaluate: leave --eval out and give --backbone")
    else:
        task.evaluate(cfg, args.checkpoint, args.work_dir)


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return what --estimate and --set lay over the config."""
    return [*(["run.estimate=True"] if args.estimate else []), *args.set]


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; --work-dir is needed where something is trained."""
    args = parser.parse_args(argv)
    if args.work_dir is None and not args.estimate and not vars(args).get("eval"):
        parser.error("--work-dir is missing: where should the run go?")
    if args.work_dir is None and args.estimate:
        args.work_dir = Path()  # nothing is written
    return args


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", type=at_home, metavar="CONFIG", help="a file under configs/, or your own; its docstring says what it costs and should give"
    )
    parser.add_argument("--work-dir", type=path, metavar="D", help="where everything that the run makes goes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, e.g. --set data.root=/data/imagenet")
    parser.add_argument("--resume", action="store_true", help="continue D from its newest checkpoint, bit for bit; starts afresh where D has none")
    parser.add_argument("--estimate", action="store_true", help="time 20 steps; print hours, memory and disk of the run; write nothing")
    parser.add_argument("--debug", action="store_true", help="a few steps of a tiny model on generated images: does this config work at all?")
    return parser


def path(text: str) -> Path:
    """Return a path of the command line, whose ~ is the user's home folder."""
    return Path(at_home(text))


def count(text: str) -> int:
    """Return a flag's number of things, at least one; argparse names the flag."""
    try:
        return TypeAdapter(Count).validate_python(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more") from None


def size(values: Sequence[int] | None) -> int | tuple[int, int] | None:
    """Return what a flag for a size was given: one side of a square, or height and width; ValueError for more numbers."""
    if not values:
        return None
    if len(values) > 2 or min(values) < 1:
        raise ValueError(f"a size of {' '.join(map(str, values))} pixels: give one side, or height and width, of at least 1 pixel")
    return values[0] if len(values) == 1 else (values[0], values[1])


def guarded(action: Callable[[], object]) -> int:
    """Call the action; return 0, or 1 after one line for what a user can mend (a bug keeps its traceback)."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        action()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MAE_TRANSFER_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}\n(MAE_TRANSFER_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    return 0

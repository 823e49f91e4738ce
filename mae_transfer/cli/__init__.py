"""The command line shared by all tools; a user's mistake gives a one-line message instead of a traceback.

This package imports no torch. A tool names its config class and its function as "module:attribute". They are imported
after the command line is parsed, so `--help` is fast.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mae_transfer.cli.parser import (
    LIST,
    SHOW,
    ListConfigs,
    Parser,
    add_run_options,
    config_path,
    count,
    end_with_pipe,
    path,
    size,
    training_parser,
)
from mae_transfer.disk import at_home

if TYPE_CHECKING:
    from mae_transfer.config import Schema

__all__ = [
    "LIST",
    "SHOW",
    "ListConfigs",
    "Parser",
    "Switch",
    "Task",
    "at_home",
    "config_path",
    "count",
    "end_with_pipe",
    "guarded",
    "named",
    "parse",
    "path",
    "pretrain",
    "show",
    "size",
    "train",
    "training_parser",
    "transfer",
]

UNWRITABLE = {
    errno.EACCES: ": you may not write or read there; use another folder (--work-dir), or change its permissions",
    errno.EROFS: ": use another folder (--work-dir)",
    errno.ENOTDIR: ": a part of this path is a file; use another folder (--work-dir)",
}
"""Error number -> what a user can do."""
S = TypeVar("S", bound="Schema")
T = TypeVar("T")
Run = Callable[..., object]


class Task(NamedTuple):
    """A task of a tool, selected by the config. Each part is the object or its name "module:attribute"."""

    schema: type[Schema] | str
    run: Run | str | None  # (cfg, work_dir, resume=...); None: it only evaluates
    evaluate: Run | str | None = None  # (cfg, checkpoint, work_dir or None); None: nothing is trained


class Switch(NamedTuple):
    """A flag that sets values of the config."""

    changes: Mapping[str, Any] | str  # dotted key -> value, or the name "module:attribute" of such a mapping
    help: str


def named(what: str | T) -> T:
    """Return the object named "module:attribute"; anything but a string is returned unchanged."""
    if not isinstance(what, str):
        return what
    module, _, attribute = what.partition(":")
    found: T = operator.attrgetter(attribute)(importlib.import_module(module))
    return found


def train(
    schema: type[S] | str,
    run: Run | str,
    *,
    description: str,
    prog: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, load the config, call run(cfg, work_dir, resume=...), and return the exit status."""
    parser = training_parser(description, prog=prog)
    add_run_options(parser)
    args = parse(parser, argv)
    return guarded(lambda: _train(schema, run, args))


def _train(schema: type[S] | str, run: Run | str, args: argparse.Namespace) -> None:
    from mae_transfer.config import load

    cfg = load(args.config, named(schema), overrides=_overrides(args), debug=args.debug)
    if args.show:
        show(cfg, title=args.config)
    else:
        named(run)(cfg, args.work_dir, resume=args.resume)


def pretrain(schema: type[S] | str, run: Run | str, *, description: str, argv: Sequence[str] | None = None) -> int:
    """Do the same as `train` for a tool whose config may be a grid (configs/ablations).

    --row selects one of its runs, or all of them, one after the other.
    """
    parser = training_parser(
        description, config="a config file, or a name of `mae-transfer configs`; an ablation needs --row"
    )
    parser.what.add_argument(
        "--row", metavar="ROW", help="ablation: name of a row of its table, or all (each in a folder of D)"
    )
    parser.what.add_argument("--mini", action="store_true", help="ablation: at a laptop's scale instead of the paper's")
    add_run_options(parser)
    args = parse(parser, argv)
    return guarded(lambda: _pretrain(schema, run, args))


def _pretrain(schema: type[S] | str, run: Run | str, args: argparse.Namespace) -> None:
    from mae_transfer import ablations
    from mae_transfer.config import load

    if not ablations.is_grid(args.config):
        if args.row or args.mini:
            raise ValueError(f"{args.config} is one run, not an ablation: remove --row and --mini")
        _train(schema, run, args)
        return
    points = ablations.points(Path(args.config), "mini" if args.mini else "paper", args.row or "")
    runs = [
        (point, load(point.config, named(schema), changes=point.changes, overrides=_overrides(args), debug=args.debug))
        for point in points
    ]
    if len(runs) > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "--row all runs all rows in one process and does not work with torchrun: start each row by its name"
        )
    for point, cfg in runs:  # every row is checked before the first one starts
        if args.show:
            show(cfg, title=f"{args.config}, row {point.row!r}")
            continue
        folder = args.work_dir / point.folder if args.row == "all" else args.work_dir
        if not named(run)(cfg, folder, resume=args.resume) and not args.estimate:
            break  # a signal stopped the run; its state is saved


def transfer(
    tasks: Mapping[str, Task],
    *,
    description: str,
    draws: bool = False,
    switches: Mapping[str, Switch] = MappingProxyType({}),
    argv: Sequence[str] | None = None,
) -> int:
    """Do the same as `train` for tools that take a backbone.

    Args:
        tasks: the config's `task` selects one by name; the default is the first.
        description: text of --help.
        draws: whether the tool has --visualize N.
        switches: name of a flag ("multi-scale") -> its effect.
        argv: the command line; None: sys.argv.
    """
    parser = training_parser(description)
    parser.what.add_argument(
        "--backbone",
        metavar="REF",
        help="weights to transfer: a backbone.safetensors, or PREFIX:PATH (mae:, timm:, released: ...; see "
        "docs/backbones.md)",
    )
    parser.what.add_argument(
        "--eval", action="store_true", help="evaluate --checkpoint without training; --work-dir is then optional"
    )
    parser.what.add_argument(
        "--checkpoint", type=at_home, metavar="C", help="with --eval: a step_*.pt of this tool, or mae-finetuned:PATH"
    )
    add_run_options(parser)
    if draws:
        parser.how.add_argument(
            "--visualize",
            type=int,
            metavar="N",
            help="draw N validation images with ground truth and predictions (run.pictures)",
        )
    for name, switch in switches.items():
        parser.how.add_argument(f"--{name}", dest=name, action="store_true", help=switch.help)
    args = parse(parser, argv)
    if args.eval != (args.checkpoint is not None):
        parser.error("--eval and --checkpoint go together")
    chosen = [switch for name, switch in switches.items() if vars(args)[name]]
    return guarded(lambda: _transfer(tasks, args, chosen))


def _transfer(tasks: Mapping[str, Task], args: argparse.Namespace, switches: Sequence[Switch]) -> None:
    from mae_transfer.config import load, read

    task_name = read(args.config).get("task", next(iter(tasks)))
    if task_name not in tasks:
        raise ValueError(f"{args.config}: unknown task {task_name!r}; this tool runs {', '.join(tasks)}")
    task = tasks[task_name]
    changes: dict[str, Any] = {}
    for switch in switches:
        changes |= named(switch.changes)
    if vars(args).get("visualize") is not None:
        changes["run.pictures"] = args.visualize
    backbone = [] if args.backbone is None else [f"backbone.reference={args.backbone!r}"]
    cfg: Schema = load(
        args.config, named(task.schema), changes=changes, overrides=[*backbone, *_overrides(args)], debug=args.debug
    )
    if args.show:
        show(cfg, title=args.config)
    elif args.estimate and (args.eval or task.evaluate is None):
        raise ValueError(f"--estimate times training, but this run of task {task_name!r} trains nothing: remove it")
    elif args.eval:
        if task.evaluate is None:
            raise ValueError(f"task {task_name!r} has no checkpoint to evaluate: pass --backbone instead of --eval")
        named(task.evaluate)(cfg, args.checkpoint, args.work_dir)
    elif task.run is None:
        raise ValueError(f"task {task_name!r} trains nothing: pass --eval --checkpoint C")
    else:
        named(task.run)(cfg, args.work_dir, resume=args.resume)


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return the overrides of --estimate and --set."""
    return [*(["run.estimate=True"] if args.estimate else []), *args.set]


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a tool that needs --work-dir if it writes anything."""
    args = parser.parse_args(argv)
    reads = args.show or vars(args).get("estimate") or vars(args).get("eval")
    if args.work_dir is None and not reads:
        parser.error("--work-dir is missing: pass --work-dir D, the folder for the run's files")
    if args.work_dir is None and vars(args).get("estimate"):
        args.work_dir = Path()  # nothing is written
    return args


def show(cfg: Schema, *, title: str) -> None:
    """Print a config with the documentation of each value."""
    from mae_transfer.cli.showing import shown

    end_with_pipe()
    print(shown(cfg, title=title))


def guarded(action: Callable[[], object]) -> int:
    """Call the action and return 0; for an error that a user can fix, print one line and return 1.

    Other errors are bugs and keep their traceback.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        action()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MAE_TRANSFER_TRACEBACK"):
            raise
        remedy = UNWRITABLE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        text = f"{type(error).__name__}: {error}{remedy}"
        print(f"{text}\n(MAE_TRANSFER_TRACEBACK=1 shows the traceback)", file=sys.stderr)
        return 1
    return 0

"""The command `mae-transfer`, whose commands tools/*.py call too. A user's mistake gives one line, not a traceback.

A command is a module: its docstring is the help text, `add_options(parser)` adds its options, and `run(args)` does it.
--help is fast, so what is heavy is imported in `run`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mae_transfer import __version__
from mae_transfer.cli.listing import tools_of
from mae_transfer.cli.parser import Parser
from mae_transfer.disk import PACKAGE, package_folder

PROGRAM = "mae-transfer"
UNWRITABLE = {
    errno.EACCES: ": you may not write or read there; use another folder (--work-dir), or change its permissions",
    errno.EROFS: ": use another folder (--work-dir)",
    errno.EEXIST: ": a file has this name; use another folder (--work-dir)",
    errno.ENOTDIR: ": a part of this path is a file; use another folder (--work-dir)",
}
"""Error number -> what a user can do."""


class Command(NamedTuple):
    """A command of the program."""

    script: str  # its file in tools/, without .py
    purpose: str
    package: str = "mae_transfer.cli"  # where the module of its name is


COMMANDS = {
    "pretrain": Command("pretrain", "pretrain a masked autoencoder, or by joint embedding"),
    "tokenizer": Command("tokenizer_train", "train a discrete VAE, or fit the PCA basis"),
    "classify": Command("cls_train", "fine-tuning, linear and attentive probes, k-NN, ridge and logistic regression"),
    "detect": Command("det_train", "Mask R-CNN on COCO-format data"),
    "segment": Command("seg_train", "UperNet, a linear head, or k-NN and logistic regression of frozen patches"),
    "suite": Command("reproduce", "run pretrainings, transfers and seeds as one plan"),
    "tables": Command("tables", "print the paper's tables with your numbers"),
    "data": Command("prepare_data", "download, lay out, check, pack or generate data sets"),
    "export": Command("export_checkpoint", "write a backbone in another format"),
    "visualize": Command("visualize", "draw reconstructions or attention"),
    "benchmark": Command("benchmark", "time training steps and input (checkout only)", "mae_transfer.bench"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit status."""
    first, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if first in COMMANDS:
        return call(first, words, prog=f"{PROGRAM} {first}")
    said = {"-h": usage, "--help": usage, "--version": lambda: f"{PROGRAM} {__version__}", "configs": configs}
    if first in said:
        print(said[first]())
        return 0
    print(f"{PROGRAM}: no command {first!r}\n\n{usage()}", file=sys.stderr)
    return 2


def call(name: str, words: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run a command; return the exit status.

    Args:
        words: what follows the command; None: those of the command line.
        prog: how the user called it; None: by a script.
    """
    command = COMMANDS[name]
    if find_spec(command.package) is None:
        how = f"clone the project and run tools/{command.script}.py"
        print(f"{prog or name}: the installed package has no {command.package}; {how}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"{command.package}.{name}")
    parser = Parser(prog, module.__doc__)
    module.add_options(parser)
    args = parser.parse_args(words)

    def run() -> None:
        try:
            module.run(args)
        except ValueError as error:
            config = vars(args).get("config", vars(args).get("suite")) if hasattr(args, "show") else None
            owner = config and owner_of(config)
            if owner not in (None, name):
                how = f"{PROGRAM} {owner}" if prog else f"tools/{COMMANDS[owner].script}.py"
                error.add_note(f"{config} is made for {how}, as its docstring says")
            raise

    try:
        return guarded(run)
    except argparse.ArgumentError as error:
        parser.error(str(error))


def owner_of(config: Path) -> str | None:
    """Return the command whose tool a config's docstring names first; None if it names none."""
    scripts = {command.script: name for name, command in COMMANDS.items()}
    return next((scripts[tool] for tool in tools_of(config) if tool in scripts), None)


def guarded(action: Callable[[], object]) -> int:
    """Call the action and return 0; for an error that a user can fix, print one line and return 1.

    Other errors are bugs and keep their traceback. So does a RuntimeError that this package did not raise, such as
    torch's for shapes that do not match.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        action()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MAE_TRANSFER_TRACEBACK"):
            raise
        if type(error) is RuntimeError and not _raised_here(error):
            traceback.print_exception(error)
        remedy = UNWRITABLE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        text = "\n".join([f"{type(error).__name__}: {error}{remedy}", *getattr(error, "__notes__", ())])
        print(f"{text}\n(MAE_TRANSFER_TRACEBACK=1 shows the traceback)", file=sys.stderr)
        return 1
    return 0


def _raised_here(error: Exception) -> bool:
    """Return whether a `raise` of this package raised the error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(PACKAGE) and (last.line or "").startswith("raise ")


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:11}{command.purpose}" for name, command in COMMANDS.items()]
    lines += [f"  {'configs':11}list the names of the configs"]
    end = f"`{PROGRAM} COMMAND --help` explains a command, `{PROGRAM} COMMAND --list` its configs."
    return "\n".join([f"usage: {PROGRAM} COMMAND ...", "", *lines, "", end])


def configs() -> str:
    """Return the names of the configs, as commands take them."""
    root = package_folder("configs")
    return "\n".join(file.relative_to(root).with_suffix("").as_posix() for file in sorted(root.rglob("*.py")))

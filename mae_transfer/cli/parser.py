"""The command-line parser of every tool, with grouped options and help texts of at most 100 columns."""

from __future__ import annotations

import argparse
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mae_transfer.disk import at_home, find_config

COLUMNS = 100  # largest width of a help text
LIST = "list the configs of this tool with purpose and cost, and exit"
SHOW = "print the resolved config with the documentation of each value, and exit"


class Help(argparse.RawDescriptionHelpFormatter):
    """Formats a help text to the width of the terminal, at most COLUMNS; the description is not rewrapped."""

    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=28, width=min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
        )


class Parser(argparse.ArgumentParser):
    """A parser with four groups of options: what to run, where to write, how to run, and information."""

    def __init__(self, prog: str | None = None, description: str | None = None) -> None:
        super().__init__(prog, description=description, formatter_class=Help, add_help=False)
        self.what = self.add_argument_group("What")
        self.where = self.add_argument_group("Where")
        self.how = self.add_argument_group("How")
        self.information = self.add_argument_group("Information")
        self.information.add_argument("-h", "--help", action="help", help="show this text and exit")


class ListConfigs(argparse.Action):
    """Print the configs of a tool, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mae_transfer.cli.listing import listing

        end_with_pipe()
        print(listing(*tool_of(parser.prog)))
        parser.exit()


def add_config_information(parser: Parser) -> None:
    """Add --list and --show."""
    parser.information.add_argument("--list", action=ListConfigs, nargs=0, help=LIST)
    parser.information.add_argument("--show", action="store_true", help=SHOW)


def check_work_dir(args: argparse.Namespace) -> None:
    """Raise ArgumentError if a command that writes files has no --work-dir."""
    if args.work_dir is None and vars(args).get("estimate"):
        args.work_dir = Path()  # nothing is written
    if args.work_dir is None and not args.show and not vars(args).get("eval"):
        raise argparse.ArgumentError(None, "--work-dir is missing: pass --work-dir D, the folder for the run's files")


def tool_of(prog: str) -> tuple[str, str]:
    """Return script without .py, and command, of "tokenizer_train.py dvae" or "mae-transfer tokenizer dvae"."""
    from mae_transfer.cli.main import COMMANDS, PROGRAM

    first, *rest = prog.split()
    if first == PROGRAM:
        return COMMANDS[rest[0]].script, " ".join(rest[1:])
    return Path(first).stem, " ".join(rest)


def config_path(text: str) -> Path:
    """Return the path of a config: a file, or a config of this package by its name ("detect/mini")."""
    return find_config(at_home(text))


def end_with_pipe() -> None:
    """Let a closed pipe (`| head`) end this process without an error message."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def path(text: str) -> Path:
    """Return a path of the command line; ~ is replaced by the home folder."""
    return Path(at_home(text))


def count(text: str) -> int:
    """Return the value of a flag that needs a whole number of at least 1; argparse names the flag in errors."""
    value: int = _within("Count", int, text, "a whole number of 1 or more")
    return value


def positive(text: str) -> float:
    """Return the value of a flag that needs a number above 0."""
    value: float = _within("Positive", float, text, "a number above 0")
    return value


def share(text: str) -> float:
    """Return the value of a flag that needs a share above 0 and below 1."""
    value: float = _within("Between", float, text, "a number above 0 and below 1")
    return value


def _within(bounds: str, kind: type, text: str, wanted: str) -> Any:
    """Return the value of a flag. bounds: the name of a type in mae_transfer.bounds."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(resolve_name(f"mae_transfer.bounds:{bounds}")).validate_python(kind(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give {wanted}") from None


def size(values: Sequence[int] | None) -> int | tuple[int, int] | None:
    """Return the value of a flag for a size: the side of a square, or height and width; ValueError otherwise."""
    if not values:
        return None
    if len(values) > 2 or min(values) < 1:
        raise ValueError(
            f"a size of {' '.join(map(str, values))} pixels: give one side, or height and width, of at least 1 pixel"
        )
    return values[0] if len(values) == 1 else (values[0], values[1])

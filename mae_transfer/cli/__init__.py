"""The command line. One module per command; main.py runs them, parser.py and training.py hold what they share."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mae_transfer.cli.main import guarded
from mae_transfer.cli.parser import LIST, SHOW, ListConfigs, Parser, check_work_dir, config_path, count, path
from mae_transfer.disk import at_home

if TYPE_CHECKING:
    from mae_transfer.config import Schema

__all__ = [
    "LIST",
    "SHOW",
    "ListConfigs",
    "Parser",
    "at_home",
    "config_path",
    "count",
    "guarded",
    "parse",
    "path",
    "show",
]


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a tool that needs --work-dir if it writes anything."""
    args = parser.parse_args(argv)
    try:
        check_work_dir(args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    return args


def show(cfg: "Schema", *, title: str) -> None:
    """Print a config with the documentation of each value."""
    from mae_transfer.cli import showing

    showing.show(cfg, title=title)

"""What the training tools share: the command line, and one clear line instead of a traceback for a user's mistake."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mae_transfer.config import Schema, load

S = TypeVar("S", bound=Schema)


def train(schema: type[S], run: Callable[..., object], *, description: str, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, load the config into `schema`, call run(cfg, work_dir, resume=...); return the exit status."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a file under configs/, or your own; its docstring says what it costs and should give")
    parser.add_argument("--work-dir", required=True, type=Path, metavar="D", help="where everything that the run makes goes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, e.g. --set data.root=/data/imagenet")
    parser.add_argument("--resume", action="store_true", help="continue D from its newest checkpoint, bit for bit; starts afresh where D has none")
    parser.add_argument("--debug", action="store_true", help="a few steps of a tiny model on generated images: does this config work at all?")
    args = parser.parse_args(argv)
    return guarded(lambda: run(load(args.config, schema, overrides=args.set, debug=args.debug), args.work_dir, resume=args.resume))


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

"""Imports the modules that the runs of a suite need, once for all runs.

Only the process that the runs are forked from imports this module.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress

from mae_transfer.record import software

VARIABLE = "MAE_TRANSFER_PRELOAD"  # environment variable: names of modules, separated by spaces


def preload(names: Iterable[str]) -> None:
    """Import modules without output. If an import fails, the run that needs the module reports the error."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)
        software()  # runs use the code imported here, even if a commit follows: record its commit now


preload(os.environ.get(VARIABLE, "").split())

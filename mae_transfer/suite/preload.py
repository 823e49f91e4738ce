"""Imported by the process that the runs of a suite are forked from, and by nothing else: imports what they need, once for all of them."""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress

from mae_transfer.record import software

VARIABLE = "MAE_TRANSFER_PRELOAD"  # of the environment: names of modules, with spaces between


def preload(names: Iterable[str]) -> None:
    """Import modules without a word. What cannot be imported is left to the run that needs it, which says why."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)
        software()  # the runs compute with the code that is imported here, whatever is committed later


preload(os.environ.get(VARIABLE, "").split())

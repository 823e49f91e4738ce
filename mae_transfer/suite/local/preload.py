"""Imports the modules that the runs of a suite need, once for all runs.

Only the process that the runs are forked from imports this module. It must not start CUDA: a fork of a process that has
cannot use a GPU. mmengine asks for GPUs as it is imported, which starts CUDA unless torch asks NVML.
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
BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # environment variable of torch: count GPUs without CUDA


def preload(names: Iterable[str]) -> None:
    """Import modules without output. If an import fails, the run that needs the module reports the error."""
    ours = BY_NVML not in os.environ
    os.environ.setdefault(BY_NVML, "1")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)
        software()  # runs use the code imported here, even if a commit follows: record its commit now
    if ours:
        del os.environ[BY_NVML]  # runs look for GPUs as they do when they are started alone


preload(os.environ.get(VARIABLE, "").split())

"""A fixture that runs a script in two processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def torchrun(python: Path) -> Torchrun:
    """torchrun(SCRIPT, *arguments, processes=2, python=...) runs a script; if it fails, the test does.

    Processes are forked from one interpreter. `python=sys.executable` starts each on its own, in ten seconds.
    """

    def run(*words: object, processes: int = 2, python: Path | str = python) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [str(python), *(launcher if processes > 1 else ()), *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run

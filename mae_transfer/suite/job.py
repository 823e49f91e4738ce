"""One run in a process of its own: the tool's script, its output in the run's output.log, and an end when the suite's process ends.

The process is forked from a server that has imported torch and the tasks already, so that a suite of many small runs does not import them for each.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn

from mae_transfer.disk import locked
from mae_transfer.suite import preload

LOG = "output.log"
START = "$ "  # begins the line of the log with a start's command
PR_SET_PDEATHSIG = 1  # of Linux's prctl
TORCHRUN_WAITS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds for its processes to save in before it kills them; older versions take 30


def start(
    command: Sequence[str], folder: Path, *, environment: Mapping[str, str], modules: Sequence[str], threads: int | None
) -> ForkServerProcess:
    """Start a tool's command in its folder; the process ends with the tool's exit status.

    Args:
        modules: imported once, for all the runs of this suite; those of the first call count.
        threads: of the CPU for this run; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload.__name__])
    os.environ[preload.VARIABLE] = " ".join(modules)  # read when the server starts, with the first run
    process = context.Process(target=main, args=(list(command), folder, dict(environment), threads))
    process.start()
    return process


def main(command: list[str], folder: Path, environment: dict[str, str], threads: int | None) -> None:
    """Run the command in this process, or in its place where it is not a Python script's (torchrun)."""
    os.environ.update(environment)
    multiprocessing.set_start_method(
        None, force=True
    )  # the platform's own: loader workers would start a fork server of their own, which takes long
    with locked(folder / ".lock") as lock:
        redirect(folder / LOG)
        print(START + " ".join(command), flush=True)
        threading.Thread(target=end_with_parent, daemon=True).start()
        if command[0] != sys.executable or command[1] == "-m":
            attend(command, lock)
        if threads is not None:
            importlib.import_module("torch").set_num_threads(threads)
        sys.argv = command[1:]
        sys.path.insert(0, str(Path(command[1]).parent))
        runpy.run_path(command[1], run_name="__main__")


def attend(command: list[str], lock: int) -> NoReturn:
    """Run a command that is no Python script (torchrun), hand on the signals that this process gets, and end as it ends."""
    with subprocess.Popen(
        command, pass_fds=(lock,), preexec_fn=end_with_this_thread
    ) as process:  # it holds the lock as long as it lives
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: process.send_signal(number))
        code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.raise_signal(-code)
    sys.exit(code)


def end_with_this_thread() -> None:
    """Let the kernel send this process a SIGTERM when the thread that started it ends, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent() -> None:
    """Stop this run, as a signal would, when the suite's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def redirect(log: Path) -> None:
    """Send this process's output, and that of what it starts, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)

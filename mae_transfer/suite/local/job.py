"""Runs one tool in its own process. Its output goes to output.log. It stops when the process of the suite ends.

The process is forked from a server that has already imported torch and the tasks. A suite of many small runs pays for
these imports only once.
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

from mae_transfer.locks import locked
from mae_transfer.suite.local import preload
from mae_transfer.suite.store.records import LOG, START

PR_SET_PDEATHSIG = 1  # option of prctl on Linux
# Environment variable: seconds that torchrun gives its processes to save before it kills them. Older versions use 30.
TORCHRUN_WAITS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def start(
    command: Sequence[str], folder: Path, *, environment: Mapping[str, str], modules: Sequence[str], threads: int | None
) -> ForkServerProcess:
    """Start the command of a tool in its folder. The process ends with the exit status of the tool.

    Args:
        modules: modules to import once for all runs of the suite; only those of the first call are used.
        threads: CPU threads for this run; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload.__name__])
    os.environ[preload.VARIABLE] = " ".join(modules)  # read when the server starts, with the first run
    process = context.Process(target=main, args=(list(command), folder, dict(environment), threads))
    process.start()
    return process


def main(command: list[str], folder: Path, environment: dict[str, str], threads: int | None) -> None:
    """Run a Python script in this process, or any other command (torchrun) in a child process."""
    os.environ.update(environment)
    # Use the platform's default: otherwise the loader workers would start another fork server, which is slow.
    multiprocessing.set_start_method(None, force=True)
    with locked(folder / ".lock") as lock:
        redirect(folder / LOG)
        print(START + " ".join(command), flush=True)
        threading.Thread(target=end_with_parent, daemon=True).start()
        if command[0] != sys.executable or command[1] == "-m":
            run_and_exit(command, lock)
        if threads is not None:
            importlib.import_module("torch").set_num_threads(threads)
        sys.argv = command[1:]
        sys.path.insert(0, str(Path(command[1]).parent))
        runpy.run_path(command[1], run_name="__main__")


def run_and_exit(command: list[str], lock: int | None) -> NoReturn:
    """Run a command such as torchrun, pass on the signals that this process gets, and exit with its exit status."""
    # The command inherits the lock, if it is a descriptor, and holds it as long as it runs.
    with subprocess.Popen(
        command, pass_fds=() if lock is None else (lock,), preexec_fn=end_with_this_thread
    ) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: process.send_signal(number))
        code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.raise_signal(-code)
    sys.exit(code)


def end_with_this_thread() -> None:
    """Ask the kernel to send SIGTERM to this process when its starting thread ends, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent() -> None:
    """Send SIGTERM to this run as soon as the process of the suite has ended for any reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def redirect(log: Path) -> None:
    """Append the output of this process and its children to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)

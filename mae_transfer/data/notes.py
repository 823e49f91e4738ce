"""What was odd about a file that is used all the same: each note names its file, travels with the batch, and is reported once.

The libraries that decode images report to Python's warnings or write to the process's standard error, and name no file. `heard` turns both into text.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from PIL import Image

log = logging.getLogger(__name__)
_collector: ContextVar[list[str] | None] = ContextVar("collector", default=None)
_alone = itertools.count(1)  # notes that nobody collected
NAMED = 10  # notes that a run reports in full
PROCESS = threading.RLock()  # held while this process's warnings or its standard error are redirected
NOT_WRITABLE = (
    "The given buffer is not writable"  # torch's about bytes, which are only read here: a copy would cost time
)


def note(message: str) -> None:
    """Hand a note to the innermost `collected`, or report it at once where there is none: the first ones in full."""
    collector = _collector.get()
    if collector is None:
        report_counted(next(_alone), message)
    else:
        collector.append(message)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes of a block."""
    notes: list[str] = []
    token = _collector.set(notes)
    try:
        yield notes
    finally:
        _collector.reset(token)


@functools.cache
def report(message: str) -> None:
    """Log a message once per process, on the first rank alone where every rank would log the same."""
    log.warning("%s", message)


def report_counted(number: int, message: str) -> None:
    """Report note number `number` of a run: the first NAMED in full, then one whenever their number has doubled."""
    if number <= NAMED:
        report(message)
    elif number.bit_count() == 1:
        report(f"{number} files are odd and used all the same; the last: {message}")


def report_on_main(message: str) -> None:
    """Log once what every rank finds alike: the first one reports it."""
    if os.environ.get("RANK", "0") == "0":
        report(message)


@contextmanager
def heard(said: list[str], *, stderr: bool = False) -> Iterator[None]:
    """Append to `said` what libraries report inside the block, one thread at a time.

    stderr: catch what is written to the process's standard error, too.
    Raises:
        DecompressionBombWarning: PIL thinks the image too large.
    """
    with PROCESS, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _standard_error(said) if stderr else contextlib.nullcontext():
                yield
        finally:
            said += [str(one.message) for one in caught if _about_the_file(one)]
        for one in caught:
            if isinstance(one.message, Image.DecompressionBombWarning):
                raise one.message


def _about_the_file(warning: warnings.WarningMessage) -> bool:
    about_code = issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
    return not about_code and not str(warning.message).startswith(NOT_WRITABLE)


@contextmanager
def _standard_error(said: list[str]) -> Iterator[None]:
    """Append the lines that the block writes to file descriptor 2, which C libraries write to."""
    try:
        file, kept = _file(os.getpid()), os.dup(2)
    except OSError:  # standard error is closed, or no file can be made: then it stays as it is
        yield
        return
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        if length := os.lseek(file, 0, os.SEEK_CUR):
            os.lseek(file, 0, os.SEEK_SET)
            said += os.read(file, length).decode(errors="replace").splitlines()
            os.lseek(file, 0, os.SEEK_SET)


@functools.cache
def _file(process: int) -> int:
    """Return the descriptor of a nameless file of this process: one inherited from its parent would be written to by all its children."""
    descriptor, name = tempfile.mkstemp()
    Path(name).unlink()
    return descriptor

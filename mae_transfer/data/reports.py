"""What a run or a check says about files: notes on unusual files that are used anyway, and defects by their kind.

A note names its file, travels with the batch, and is reported once.

The libraries that decode images issue Python warnings or write to standard error, without the file's name.
`library_messages` captures both.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from rich.progress import track

_LOG = logging.getLogger(__name__)
_collector: ContextVar[list[str] | None] = ContextVar("collector", default=None)
_uncollected = itertools.count(1)  # numbers the notes outside any `collect_notes` block
T = TypeVar("T")
EXAMPLES = 5  # of a kind of defect, in a message
NAMED = 10  # notes that a run reports in full
PROCESS = threading.RLock()  # held while this process's warnings or its standard error are redirected
NOT_WRITABLE = "The given buffer is not writable"  # torch's warning about bytes; they are only read, so no copy is made


def note(message: str) -> None:
    """Append a note to the innermost `collect_notes` list, or report it at once if there is none."""
    collector = _collector.get()
    if collector is None:
        report_counted(next(_uncollected), message)
    else:
        collector.append(message)


@contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Collect the notes of a block."""
    notes: list[str] = []
    token = _collector.set(notes)
    try:
        yield notes
    finally:
        _collector.reset(token)


@functools.cache
def report(message: str) -> None:
    """Log a warning once per process."""
    _LOG.warning("%s", message)


def report_counted(number: int, message: str) -> None:
    """Report note number `number` of a run: the first NAMED, then only numbers that are powers of two."""
    if number <= NAMED:
        report(message)
    elif number.bit_count() == 1:
        report(f"{number} unusual files are used anyway; the last: {message}")


def report_on_main(message: str) -> None:
    """Log a warning once, on the first rank only. For findings that are the same on every rank."""
    if os.environ.get("RANK", "0") == "0":
        report(message)


@contextmanager
def library_messages(found: list[str], *, stderr: bool = False) -> Iterator[None]:
    """Append the warnings of libraries inside the block to `found`. One thread at a time.

    Args:
        stderr: also capture the process's standard error.

    Raises:
        DecompressionBombWarning: the image is larger than PIL allows.
    """
    with PROCESS, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _standard_error(found) if stderr else contextlib.nullcontext():
                yield
        finally:
            found += [str(one.message) for one in caught if _about_the_file(one)]
        for one in caught:
            if isinstance(one.message, Image.DecompressionBombWarning):
                raise one.message


def _about_the_file(warning: warnings.WarningMessage) -> bool:
    about_code = issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
    return not about_code and not str(warning.message).startswith(NOT_WRITABLE)


@contextmanager
def _standard_error(found: list[str]) -> Iterator[None]:
    """Append the lines that the block writes to file descriptor 2, the standard error of C libraries."""
    try:
        file, kept = _file(os.getpid()), os.dup(2)
    except OSError:  # standard error is closed, or no file can be created: capture nothing
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
            found += os.read(file, length).decode(errors="replace").splitlines()
            os.lseek(file, 0, os.SEEK_SET)


@functools.cache
def _file(process: int) -> int:
    """Return the descriptor of an unlinked temporary file of this process.

    `process` makes the cache per process: child processes would all write to a file inherited from their parent.
    """
    descriptor, name = tempfile.mkstemp()
    Path(name).unlink()
    return descriptor


class Defect(NamedTuple):
    """One kind of defect."""

    kind: str
    number: int
    examples: tuple[str, ...]  # the first EXAMPLES, by file or id
    remedy: str = ""  # for the user
    policy: str = ""  # how a run handles it, "left out" for instance; empty: no run accepts it

    def __str__(self) -> str:
        policy = f" ({self.policy})" if self.policy else ""
        examples = f"{', '.join(self.examples)}{' ...' if self.number > len(self.examples) else ''}"
        return f"{self.number} x {self.kind}{policy}: {examples}{f'; {self.remedy}' if self.remedy else ''}"


class Defects:
    """Collects defects and groups them by kind."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[str]] = {}

    def add(self, kind: str, where: object, *, remedy: str = "", policy: str = "") -> None:
        """Note one defect."""
        self._found.setdefault((kind, remedy, policy), []).append(str(where))

    def add_all(self, kind: str, where: Sequence[object], *, remedy: str = "", policy: str = "") -> None:
        """Note the same defect of several files or objects."""
        for one in where:
            self.add(kind, one, remedy=remedy, policy=policy)

    def collected(self) -> list[Defect]:
        """Return one Defect per kind in the order found, with those that no run accepts first."""
        found = [
            Defect(kind, len(where), tuple(where[:EXAMPLES]), remedy, policy)
            for (kind, remedy, policy), where in self._found.items()
        ]
        return sorted(found, key=lambda defect: bool(defect.policy))


def stopping(defects: Iterable[Defect]) -> list[Defect]:
    """Return the defects that no run accepts."""
    return [defect for defect in defects if not defect.policy]


def refuse(defects: Iterable[Defect], *, where: object) -> None:
    """Raise ValueError with the first defect that no run accepts, if any."""
    if wrong := stopping(defects):
        others = f"; {len(wrong) - 1} more kinds of defect" if len(wrong) > 1 else ""
        raise ValueError(f"{where}: {wrong[0]}{others} (tools/prepare_data.py check lists every defect)")


def track_progress(items: Iterable[T], *, what: str, total: int) -> Iterable[T]:
    """Iterate over items with a progress bar. The bar is shown only in a terminal."""
    return track(items, description=what, total=total, transient=True, disable=not sys.stdout.isatty())

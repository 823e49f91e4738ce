"""Training states on disk: atomic writes, reads that run no code, and a fallback to the newest readable file.

A file gets its final name only after its bytes are on the disk; older files are pruned only after that. A Writer does
this in a thread while the training goes on.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from mae_transfer import disk

PATTERN = re.compile(r"step_(\d{8,})\.pt")
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


class Loaded(NamedTuple):
    """A checkpoint, and one notice for each newer one that cannot be read."""

    path: Path
    payload: dict[str, Any]
    notices: list[str]


def save(
    folder: Path, step: int, payload: Mapping[str, Any], *, keep_last: int = 2, keep_every: int | None = None
) -> Path:
    """Write folder/step_00012345.pt atomically, then prune.

    The last `keep_last` checkpoints and those whose step is divisible by `keep_every` are kept.

    Args:
        payload: plain types and tensors only; load_newest refuses anything else.
    Raises:
        OSError: the disk is full or fails, or the work dir is gone. The partial file is removed and older
            checkpoints stay intact.
    """
    path = folder / f"step_{step:08d}.pt"
    disk.remove_leftovers(folder, "step_*.pt")
    _put(path, payload)
    _prune(folder, step, keep_last=keep_last, keep_every=keep_every)
    return path


class Writer:
    """Writes training states in a thread while the training goes on, one at a time. The end of its context waits.

    Training waits for the copy to the host's memory, which is not pinned and is kept until it is written. The OSError
    of a failed write (see `save`) is raised by the next call, or becomes a note of the error that ends the context.
    """

    def __init__(self, folder: Path | None, *, keep_last: int = 2, keep_every: int | None = None) -> None:
        """Get ready to write into a folder; None: this process writes nothing."""
        self.folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, payload: Mapping[str, Any]) -> None:
        """Wait for the previous state, copy this one to the host's memory and start to write it (see `save`)."""
        assert self.folder is not None
        self.wait()
        copy, keep_last, keep_every = on_host(payload), self._keep_last, self._keep_every
        self._writing = self._thread.submit(save, self.folder, step, copy, keep_last=keep_last, keep_every=keep_every)

    def check(self) -> None:
        """Raise the error of a write that has failed, without waiting for one in progress."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last state is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._thread:
            try:
                self.wait()
            except Exception as failure:
                if error is None:
                    raise
                error.add_note(_first_line(failure))


def on_host(payload: Any) -> Any:
    """Return nested dicts and lists with copies of their tensors in the host's memory."""
    if isinstance(payload, Tensor):
        return payload.detach().to("cpu", copy=True)
    if isinstance(payload, Mapping):
        return {key: on_host(value) for key, value in payload.items()}
    return type(payload)(map(on_host, payload)) if isinstance(payload, list | tuple) else payload


def save_best(folder: Path, payload: Mapping[str, Any]) -> None:
    """Replace folder/best.pt atomically; `load_newest` ignores this file. Raises what `save` raises."""
    disk.remove_leftovers(folder, best(folder).name)
    _put(best(folder), payload)


def best(folder: Path) -> Path:
    """Return the path of the best state so far."""
    return folder / "best.pt"


def _put(path: Path, payload: Mapping[str, Any]) -> None:
    folder = path.parent
    try:
        folder.mkdir(exist_ok=True)
        with disk.atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(payload), file)
    except OSError as error:
        why = error if error.filename is None else disk.explain_failure(error, path)
        raise OSError(why.errno, f"checkpoint {why.strerror} (older ones are intact: continue with --resume)") from None


def load_newest(folder: Path) -> Loaded | None:
    """Return the newest readable checkpoint, on the CPU and memory-mapped; None if the folder has no checkpoints.

    Every byte is checked against the file's checksums, and no code in it is run (weights_only).

    Raises:
        ValueError: there are checkpoints but none can be read.
    """
    notices: list[str] = []
    for step, path in sorted(_steps(folder).items(), reverse=True):
        try:
            payload = _read(path)
        except _UNREADABLE as error:
            notices.append(f"checkpoint of step {step} cannot be read and is skipped: {path}: {_first_line(error)}")
        else:
            return Loaded(path, payload, notices)
    if notices:
        raise ValueError(
            f"no readable checkpoint in {folder}; move the folder away to start again:\n  " + "\n  ".join(notices)
        )
    return None


def load(path: Path) -> dict[str, Any]:
    """Return the payload of one checkpoint, with the checks of load_newest; ValueError if it cannot be read."""
    try:
        return _read(path)
    except _UNREADABLE as error:
        raise ValueError(f"checkpoint {path} cannot be read: {_first_line(error)}") from error


def newest(folder: Path) -> Path | None:
    """Return the path of the newest checkpoint, readable or not; None if there is none."""
    steps = _steps(folder)
    return steps[max(steps)] if steps else None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch.load does not verify checksums of a memory-mapped file
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"damaged content: {damaged}")
    payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(payload, dict):
        raise ValueError(f"holds a {type(payload).__name__}, not a training state")
    return payload


def _prune(folder: Path, newest_step: int, *, keep_last: int, keep_every: int | None) -> None:
    """Delete old checkpoints. Files newer than `newest_step` are unreadable, so they do not count as kept ones."""
    steps = {step: path for step, path in _steps(folder).items() if step <= newest_step}
    kept = set(sorted(steps)[-keep_last:]) | {step for step in steps if keep_every and step % keep_every == 0}
    for step in steps.keys() - kept:
        steps[step].unlink(missing_ok=True)


def _steps(folder: Path) -> dict[int, Path]:
    names = {path: PATTERN.fullmatch(path.name) for path in folder.glob("step_*.pt")}
    return {int(match[1]): path for path, match in names.items() if match}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

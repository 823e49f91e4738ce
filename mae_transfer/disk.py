"""Atomic writes of files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

REMEDIES = {
    errno.ENOSPC: "free some space, then start again",
    errno.EDQUOT: "the quota is used up: free some space, then start again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then start again",
    errno.ENOENT: "its folder is gone: was it moved or removed?",
    errno.EACCES: "make its folder writable, or name another one",
    errno.EROFS: "its file system is read-only: name another folder",
}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block, flush the file written there and move it to `path`.

    If the block fails, the temporary file is removed.

    Raises:
        OSError: names the file, the reason and the remedy; the previous file at `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _synced(temporary)
        temporary.replace(path)
        _synced(path.parent)  # makes the renaming durable
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's zip writer turns an OSError of the file into a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise named(cause, path) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def extend(file: IO[bytes], data: bytes, path: Path) -> None:
    """Append all of the data to an unbuffered file, or nothing; OSError names the file."""
    start = file.seek(0, os.SEEK_END)
    try:
        if os.fstat(file.fileno()).st_nlink == 0:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        with suppress(OSError):
            file.truncate(start)
        raise named(error, path) from error


def named(error: OSError, path: Path) -> OSError:
    """Return an error of a write with the name of the file and the remedy added."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno,
        f"{path} was not written ({reason}): {REMEDIES.get(error.errno or 0, 'fix the cause, then start again')}",
    )


def _synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are written whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOG = logging.getLogger(__name__)
REMEDIES = {
    errno.ENOSPC: "free some space, then start again",
    errno.EDQUOT: "the quota is used up: free some space, then start again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then start again",
    errno.ENOENT: "its folder is gone: was it moved or removed?",
    errno.EACCES: "make its folder writable, or name another one",
    errno.EROFS: "its file system is read-only: name another folder",
}
PATIENCE_S = 2.0  # for the processes of a killed run to end, which hold its lock until then
UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`. When the block ends well, what it wrote there is flushed and takes path's place; else it is removed.

    Raises:
        OSError: names the file, the reason and the remedy; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _synced(temporary)
        temporary.replace(path)
        _synced(path.parent)  # the renaming itself
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # torch's zip writer turns a file's OSError into a RuntimeError
        if isinstance(cause, OSError):
            raise named(cause, path) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def extend(file: IO[bytes], data: bytes, path: Path) -> None:
    """Append to a file that is open without a buffer: all of the data, or nothing, and then OSError names the file."""
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
    """Return the error of a write with the file's name and the remedy; the system's own has neither."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno,
        f"{path} was not written ({reason}): {REMEDIES.get(error.errno or 0, 'mend that, then start again')}",
    )


@contextmanager
def locked(path: Path, *, owner: str | None = None) -> Iterator[int]:
    """Hold a lock file and hand out its descriptor; the lock ends with the process, however that ends.

    A lock that another process holds is waited for; with `owner` a ValueError says who holds it. A file system
    without locks is warned of once and worked on without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _acquired(file.fileno(), wait=owner is None, path=path):
            file.seek(0)
            raise ValueError(
                f"{path.parent} is in use by {file.read() or 'another process'}: wait for it to end, stop it, or take another --work-dir"
            )
        if owner:
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield file.fileno()


def _acquired(descriptor: int, *, wait: bool, path: Path) -> bool:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise
            LOG.warning("%s cannot be locked (%s): take care that no other run uses its folder", path, error.strerror)
            return True
        else:
            return True


def _synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

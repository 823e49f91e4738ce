"""Files: where they are (home, cache, package), and atomic writes."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).parent
HOME = re.compile(r"((?:[\w-]+:)?)(~[\w.-]*(?:/.*)?)")  # ~/data, ~ann/data, mae:~/mae.pth
REMEDIES = {
    errno.ENOSPC: "free some space, then start again",
    errno.EDQUOT: "the quota is used up: free some space, then start again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then start again",
    errno.ENOENT: "its folder does not exist: was it moved or removed, or is its name wrong?",
    errno.EACCES: "make its folder writable, or name another one",
    errno.EROFS: "its file system is read-only: name another folder",
}


def at_home(path: str) -> str:
    """Return a path or a reference PREFIX:PATH with ~ or ~user replaced by the home folder.

    Shells do not expand ~ after an = or in quotes. As in a shell, ~user does not change if there is no such user.
    """
    found = HOME.fullmatch(path)
    return f"{found[1]}{os.path.expanduser(found[2])}" if found else path  # noqa: PTH111


def cache_folder() -> Path:
    """Return the cache folder: $MAE_TRANSFER_CACHE, or mae_transfer in $XDG_CACHE_HOME or ~/.cache.

    Its files can be created or downloaded again.
    """
    if own := os.environ.get("MAE_TRANSFER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae_transfer"


def package_folder(name: str) -> Path:
    """Return a folder that comes with the package: "configs" or "tools"."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def find_config(text: str) -> Path:
    """Return a config file: a path that exists, or one of this package's configs by name.

    "detect/mini", "detect/mini.py" and "configs/detect/mini.py" name the same one, from any folder.
    """
    given = Path(text)
    if given.exists():
        return given
    name = given.with_suffix(".py") if given.suffix != ".py" else given
    parts = name.parts[1:] if name.parts[:1] == ("configs",) else name.parts
    known = package_folder("configs").joinpath(*parts)
    return known if not given.is_absolute() and known.is_file() else given


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block, flush the file written there and move it to `path`.

    If the block fails, the temporary file is removed. A killed process leaves it (see `remove_leftovers`).

    Raises:
        OSError: names the file, the reason and the remedy; the previous file at `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
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
            raise explain_failure(cause, path) from error
        raise


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed processes left of writes to files of a name (a pattern). Nobody may be writing them."""
    for leftover in folder.glob(f".{name}.*tmp"):  # those of earlier versions are .NAME.tmp
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_bytes(file: IO[bytes], data: bytes, path: Path) -> None:
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
        raise explain_failure(error, path) from error


def explain_failure(error: OSError, path: Path) -> OSError:
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

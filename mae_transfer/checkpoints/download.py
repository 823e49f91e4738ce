"""Released weights, fetched once: with progress, continued where a download broke off, checked, then kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.progress import wrap_file

from mae_transfer.checkpoints.released import Weights

CHUNK = 1 << 20  # bytes per read
TIMEOUT = 30.0  # seconds without an answer


def cache_folder() -> Path:
    """Return where fetched weights are kept: $MAE_TRANSFER_CACHE, or mae_transfer under $XDG_CACHE_HOME, or under ~/.cache."""
    own = os.environ.get("MAE_TRANSFER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae_transfer"


def fetch(entry: Weights, *, folder: Path | None = None) -> Path:
    """Return the file of an entry, downloaded unless it is there. A file bears its final name only when it is whole and its checksum fits.

    Raises:
        ValueError: the checksum is not the published one (the file is removed), or the address does not answer.
    """
    folder = folder or cache_folder()
    target = folder / Path(urllib.parse.urlsplit(entry.url).path).name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f".{target.name}.lock"):
        if not target.is_file():
            part = target.with_name(f"{target.name}.part")
            try:
                _download(entry.url, part)
            except (OSError, HTTPException) as error:
                kept = part.stat().st_size if part.is_file() else 0
                raise ValueError(f"{entry.url} could not be fetched ({error}); {kept} bytes are kept, ask again to continue") from error
            check(part, entry.checksum)
            part.replace(target)
    return target


def check(path: Path, checksum: str | None) -> None:
    """Raise ValueError, and remove the file, unless the digits of its checksum begin as published; None: nothing was published."""
    if checksum is None:
        return
    algorithm, _, published = checksum.partition(":")
    with path.open("rb") as file:
        digits = hashlib.file_digest(file, algorithm).hexdigest()
    if not digits.startswith(published):
        path.unlink()
        raise ValueError(
            f"{path.name}: {algorithm} begins {digits[: len(published)]}, published is {published}; the file was removed, fetch it again"
        )


def _download(url: str, part: Path) -> None:
    """Append to `part` what is missing of it; a server that cannot continue begins anew."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{have}"):  # nothing is missing
            return
        part.unlink(missing_ok=True)  # the part is of another file
        raise
    with response:
        have = have if response.status == 206 else 0
        length = int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file, wrap_file(response, total=length, description=part.stem, transient=True) as source:
            while chunk := source.read(CHUNK):
                file.write(chunk)
            written = file.tell() - have
    if length and written < length:
        raise OSError(f"broke off after {written} of {length} bytes")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time in, so that the ranks of a job fetch a file once."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

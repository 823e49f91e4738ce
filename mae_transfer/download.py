"""Files fetched once: with progress, continued where a download broke off, checked; archives unpacked file by file, so that it can be repeated."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.progress import track, wrap_file

from mae_transfer.disk import locked

CHUNK = 1 << 20  # bytes per read
TIMEOUT = 30.0  # seconds without an answer


def cache_folder() -> Path:
    """Return the folder of what can be made or fetched again: $MAE_TRANSFER_CACHE, or mae_transfer in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("MAE_TRANSFER_CACHE")
    return (
        Path(own).expanduser()
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae_transfer"
    )


def fetch(url: str, folder: Path, *, checksum: str | None = None) -> Path:
    """Return the file of an address, downloaded into `folder` unless it is there. It bears its name only when it is whole and its checksum fits.

    Args:
        checksum: "md5:8cad7c", "sha256:a1311bcf": the algorithm and the digits that were published; None: none were.
    Raises:
        ValueError: the checksum is not the published one (the file is removed), or the address does not answer.
    """
    target = folder / Path(urllib.parse.urlsplit(url).path).name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{target.name}.lock"):
        if not target.is_file():
            part = target.with_name(f"{target.name}.part")
            try:
                _download(url, part)
            except (OSError, HTTPException) as error:
                kept = part.stat().st_size if part.is_file() else 0
                raise ValueError(
                    f"{url} could not be fetched ({error}); {kept} bytes are kept, ask again to continue"
                ) from error
            check(part, checksum)
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


def unpack(archive: Path, folder: Path, *, prefixes: tuple[str, ...] = ("",)) -> int:
    """Unpack a zip's files whose names begin with one of `prefixes`, those aside that are there in full size; return how many are there in the end.

    Raises:
        ValueError: the archive is damaged (each file's CRC is compared); what was unpacked so far stays.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [
                member for member in packed.infolist() if not member.is_dir() and member.filename.startswith(prefixes)
            ]
            for member in track(members, description=f"unpack {archive.name}", transient=True):
                _unpack(packed, member, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); remove it and fetch it again") from error
    return len(members)


def _unpack(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{packed.filename}: {member.filename!r} would be written outside {folder}; this archive is not to be trusted"
        )
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with packed.open(member) as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    part.replace(target)


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
        with (
            part.open("ab" if have else "wb") as file,
            wrap_file(response, total=length, description=part.stem, transient=True) as source,
        ):
            while chunk := source.read(CHUNK):
                file.write(chunk)
            written = file.tell() - have
    if length and written < length:
        raise OSError(f"broke off after {written} of {length} bytes")

"""Downloads with progress, resume and checksum, and repeatable unpacking of archives."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.progress import track, wrap_file

from mae_transfer.locks import locked

CHUNK = 1 << 20  # bytes per read
TIMEOUT = 30.0  # seconds without a response


def fetch(url: str, folder: Path, *, checksum: str | None = None) -> Path:
    """Return the file of a URL; download it into `folder` unless it is there.

    The file gets its name only after it is complete and its checksum matches.

    Args:
        url: address of the file.
        folder: destination.
        checksum: algorithm and published first digits, e.g. "md5:8cad7c" or "sha256:a1311bcf"; None: not published.
    Raises:
        ValueError: the checksum differs from the published one (the file is removed), or the download fails.
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
                    f"{url} could not be downloaded ({error}); {kept} bytes are kept, run the command again to continue"
                ) from error
            check(part, checksum)
            part.replace(target)
    return target


def check(path: Path, checksum: str | None) -> None:
    """Remove the file and raise ValueError if its checksum differs from the published digits; None: no check."""
    if checksum is None:
        return
    algorithm, _, published = checksum.partition(":")
    with path.open("rb") as file:
        digits = hashlib.file_digest(file, algorithm).hexdigest()
    if not digits.startswith(published):
        path.unlink()
        raise ValueError(
            f"{path.name}: {algorithm} begins {digits[: len(published)]}, published is {published}; "
            "the file was removed, download it again"
        )


def unpack(archive: Path, folder: Path, *, prefixes: tuple[str, ...] = ("",)) -> int:
    """Unpack the files of a zip whose names begin with one of `prefixes`; return their number.

    Files that already exist in full size are skipped.

    Raises:
        ValueError: the archive is damaged (the CRC of each file is checked); files unpacked so far stay.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [
                member for member in packed.infolist() if not member.is_dir() and member.filename.startswith(prefixes)
            ]
            for member in track(members, description=f"unpack {archive.name}", transient=True):
                _unpack(packed, member, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); remove it and download it again") from error
    return len(members)


def _unpack(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{packed.filename}: {member.filename!r} would be written outside {folder}; do not trust this archive"
        )
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with packed.open(member) as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    part.replace(target)


def _download(url: str, part: Path) -> None:
    """Append the missing bytes to `part`; start again if the server cannot resume."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{have}"):  # already complete
            return
        if error.code == 416:  # the part belongs to another file
            part.unlink(missing_ok=True)
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
        raise OSError(f"the connection ended after {written} of {length} bytes")

"""Locks on folders that end with the process that holds them, also on file systems without flock.

`locked` uses flock. Where the file system has none (Lustre without the mount option `flock`, some network mounts), it
creates a file atomically, writes the owner into it and renews it every few seconds. A lock that is not renewed any more
is taken over. Renewals are compared with each other, never with a clock, so nodes may disagree about the time.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

VARIABLE = "MAE_TRANSFER_LOCKS"
"""Environment variable. "files": do not use flock, because it works within one node only (Lustre's `localflock`)."""
PATIENCE_S = 2.0  # seconds to wait for a lock: the processes of a killed run hold it until they end
POLL_S = 0.05
RENEW_S = 10.0  # seconds between two renewals of a lock file
STALE_S = 90.0  # seconds without a renewal after which the owner of a lock file counts as dead
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_LOG = logging.getLogger(__name__)
_SEEN: dict[Path, tuple[tuple[Claim | None, int], float]] = {}
"""Content and renewal of lock files that were not free, and when they were first seen so."""


@contextmanager
def locked(path: Path, *, owner: str | None = None, patience: float | None = None) -> Iterator[int | None]:
    """Hold a lock; it ends with the process. Yield its descriptor, which a child may inherit; None: a lock file.

    If another process holds the lock, wait for it; with `owner`, raise a ValueError that names the holder.

    Args:
        owner: who wants the lock, for the error of others.
        patience: seconds to wait for the end of another owner; None: PATIENCE_S, and for a lock file as long as it
            takes to tell whether its owner is dead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            if os.environ.get(VARIABLE) == "files":
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            limit = PATIENCE_S if patience is None else patience
            free = _flocked(file.fileno(), patience=float("inf") if owner is None else limit)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            with _lock_file(path.with_name(f"{path.name}.held"), owner, patience):
                yield None
            return
        if not free:
            file.seek(0)
            raise _in_use(path, file.read())
        if owner:
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield file.fileno()


def is_held(path: Path) -> bool:
    """Return whether another process holds a lock."""
    try:
        with locked(path, owner="a process that looks at the states of runs", patience=0.0):
            return False
    except ValueError:
        return True


def _in_use(path: Path, holder: str) -> ValueError:
    return ValueError(
        f"{path.parent} is in use by {holder or 'another process'}: wait for it to end, stop it, or use another "
        "--work-dir"
    )


def _flocked(descriptor: int, *, patience: float) -> bool:
    """Return whether the lock was acquired within `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if patience < float("inf") else 0))
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_S)
        else:
            return True


class Claim(NamedTuple):
    """The content of a lock file."""

    token: str  # unique to this holder
    host: str
    process: int
    owner: str

    def abandoned(self) -> bool:
        """Return whether the holder was a process of this machine that has ended."""
        if self.host != _host():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(self.process)


def _is_zombie(process: int) -> bool:
    """Return whether a process has ended but still has a number, as orphans in containers without an init have."""
    try:
        state = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        )
    except (OSError, IndexError):  # no /proc, or it has just gone
        return False
    return state in "ZX"


def _host() -> str:
    """Return where process numbers have this meaning: containers of one machine may share its name."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


@contextmanager
def _lock_file(path: Path, owner: str | None, patience: float | None) -> Iterator[None]:
    mine = Claim(uuid.uuid4().hex, _host(), os.getpid(), owner or f"process {os.getpid()}")
    begin = time.monotonic()
    end = begin + (float("inf") if patience is None else patience)
    while not _create(path, mine):
        held, renewed = _read(path)
        seen, since = _SEEN.get(path, (None, 0.0))
        if (held, renewed) != seen:
            if owner and held and seen and seen[0] == held and since >= begin:  # it is renewed
                raise _in_use(path, held.owner)
            since = time.monotonic()
            _SEEN[path] = (held, renewed), since
        if (held and held.abandoned()) or (renewed and time.monotonic() - since > STALE_S):
            _remove_stale(path, held)
        elif owner and time.monotonic() >= end:
            raise _in_use(path, held.owner if held else "")
        else:
            time.sleep(POLL_S)
    _SEEN.pop(path, None)
    ended = threading.Event()
    threading.Thread(target=_renew, args=(path, mine, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _read(path)[0] == mine:
            path.unlink(missing_ok=True)


def _create(path: Path, claim: Claim) -> bool:
    """Create a lock file with its content in one step; return False if there is one."""
    draft = path.with_name(f"{path.name}.{claim.token}")
    draft.write_text("\n".join(map(str, claim)), encoding="utf-8")
    try:
        os.link(draft, path)  # fails if the file exists, on every POSIX file system
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return _create_without_links(path, draft)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, draft: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(draft.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> tuple[Claim | None, int]:
    """Return the claim in a lock file, None if it is being written or damaged, and its renewal, 0 if it is gone."""
    try:
        with path.open(encoding="utf-8") as file:  # opening makes a network file system ask for the present times
            renewed = os.fstat(file.fileno()).st_mtime_ns
            try:
                token, host, process, owner = file.read().split("\n", 3)
                return Claim(token, host, int(process), owner), renewed
            except ValueError:
                return None, renewed
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # stale: removed on another node
            raise
        return None, 0


def _remove_stale(path: Path, held: Claim | None) -> None:
    """Remove the lock file of a dead holder. Of several processes that try, one does."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside)[0] == held:
            owner = held.owner if held else "another process"
            _LOG.warning("%s: %s does not answer any more; its lock is taken over", path.parent, owner)
        else:  # another process has just taken it over: give it back
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _renew(path: Path, mine: Claim, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        with suppress(OSError):  # the file system may answer again at the next renewal
            taken = _read(path)[0] != mine
            if ended.is_set():
                return
            if taken:
                _LOG.error("%s was taken over by another process, so this one stops", path.parent)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(path)

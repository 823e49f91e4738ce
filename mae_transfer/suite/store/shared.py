"""A folder of finished runs that several suites share (--store): a run with equal identity is used, not repeated.

STORE/<identity>/ holds what a run left: its results, the file for other runs, config, log and pictures, and the note of
the suite that ran it. It appears by one rename, so it is complete or absent. While a suite makes a run, it holds the
lock STORE/.claims/<identity>; another suite that needs the same run waits for it.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from mae_transfer.locks import locked
from mae_transfer.suite.store import evidence
from mae_transfer.suite.store.records import Note, read_note, write_note, write_whole

FORMAT = 1
ABOUT = "store.json"
CLAIMS = ".claims"
NOT_SHARED = ("checkpoints", "node.json", ".*", "*.damaged")
"""Files of a run that stay in its work dir: training states, its note, locks."""


class RunStore:
    """The finished runs in a folder, by identity.

    Raises:
        ValueError: the folder belongs to another version of the package, or holds something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        about = root / ABOUT
        if not about.exists():
            names = [path.name for path in root.iterdir()] if root.exists() else []
            # another suite may be making it
            if any(name not in (CLAIMS, ABOUT) and not name.startswith(f".{ABOUT}.") for name in names):
                raise ValueError(
                    f"--store {root}: the folder is not empty and not a store; name a new or an empty folder"
                )
            with locked(root / CLAIMS / "store"):  # of several suites that start at once, one makes it
                if not about.exists():
                    write_whole(about, json.dumps({"format": FORMAT}) + "\n")
        if about.is_file():
            try:
                version = json.loads(about.read_text(encoding="utf-8"))["format"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{about} cannot be read: name another --store, or restore the file") from None
            if version != FORMAT:
                raise ValueError(
                    f"{about} has format {version}, but this version uses format {FORMAT}: name another --store, or "
                    "use the version that wrote it"
                )

    def find(self, identity: str, artifact: str | None) -> Note | None:
        """Return the note of a stored run that is complete and undamaged; None if there is none.

        Args:
            artifact: name of the file that the run leaves for others, if any.
        """
        folder = self.root / identity
        note, _ = read_note(folder)
        if note is None or note.identity != identity or note.state != "done":
            return None
        numbers = folder / "results.jsonl"
        damaged = evidence.damaged_results(note, numbers) or (
            artifact and evidence.damaged_artifact(note, folder / artifact, numbers)
        )
        return None if damaged else note

    def use(self, identity: str, folder: Path, artifact: str | None) -> None:
        """Put the files of a stored run into a run's folder. Large files are linked where the file system can.

        Raises:
            OSError: the entry was removed meanwhile, or the disk is full; the folder is as before.
        """
        draft = folder.with_name(f".{folder.name}.taken")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        try:
            _copy_run(self.root / identity, draft, artifact)
            for file in sorted(path for path in draft.rglob("*") if path.is_file()):
                target = folder / file.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def publish(self, note: Note, folder: Path, artifact: str | None) -> None:
        """Add a finished run. Whoever publishes an identity second changes nothing.

        Raises:
            OSError: the disk is full; the store is as before.
        """
        with locked(self.root / CLAIMS / f"{note.identity}.adding"):
            if self.find(note.identity, artifact) is None:
                self._add(note, folder, artifact)

    def _add(self, note: Note, folder: Path, artifact: str | None) -> None:
        target, draft = self.root / note.identity, self.root / f".publishing-{note.identity}-{uuid.uuid4().hex[:8]}"
        for left in self.root.glob(f".publishing-{note.identity}-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            _copy_run(folder, draft, artifact)
            write_note(draft, note)
            if target.exists():  # a damaged entry
                target.rename(self.root / f".damaged-{note.identity}-{uuid.uuid4().hex[:8]}")
            draft.rename(target)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(draft, ignore_errors=True)
            if self.find(note.identity, artifact) is None:
                several = error.args[0] if isinstance(error, shutil.Error) else ""
                first = several[0][2].partition(": ")[0] if isinstance(several, list) else str(error)
                reason = (error.strerror if isinstance(error, OSError) else None) or first
                raise OSError(
                    f"{folder} was not added to the store {self.root}: {reason}; the same command adds it later"
                ) from error

    def claim(self, identity: str, owner: str) -> AbstractContextManager[object]:
        """Return a lock that the maker of a run holds; entering it raises ValueError while another suite makes it."""
        return locked(self.root / CLAIMS / identity, owner=owner, patience=0.0)


def _copy_run(source: Path, target: Path, artifact: str | None) -> None:
    shutil.copytree(
        source,
        target,
        ignore=shutil.ignore_patterns(*NOT_SHARED),
        copy_function=lambda one, other: _copy(Path(one), Path(other), link=Path(one).name == artifact),
    )


def _copy(source: Path, target: Path, *, link: bool) -> None:
    """Copy a file, or give it a second name on the same disk: finished weights are replaced but never changed."""
    if link:
        with suppress(OSError):
            target.unlink(missing_ok=True)
            os.link(source, target)
            return
    shutil.copy2(source, target)

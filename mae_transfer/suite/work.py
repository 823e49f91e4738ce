"""A suite's folder: what a run is, whether it is done, what changed since, and the command that does it.

WORK_DIR/<row>/<transfer>/seed<n>/ is one run: the tool's own files, node.json (records.Note) and output.log.
A run's identity is the digest of its resolved config, of its inputs' identities and its seed; what is done under the same identity is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer import results
from mae_transfer.checkpoints import LAYOUTS, sha256, zoo
from mae_transfer.checkpoints.references import split
from mae_transfer.config import Schema, flatten, load, nearest
from mae_transfer.home import at_home
from mae_transfer.suite import evidence
from mae_transfer.suite.plan import Node, Plan, replaced, texts
from mae_transfer.suite.records import Note, of_another_version, read_note
from mae_transfer.suite.toolbox import TOOLS

NO_FILE = ("timm", "random", "released", "zoo")  # prefixes of what is made, downloaded or part of the package
PREFIXES = {*LAYOUTS, "dalle"}  # of what a reference may begin with


class Status(NamedTuple):
    """What has to be done for a run."""

    done: bool
    why: str  # "new", "done", "changed: ...", "failed: ...", "stopped" (it saved), "cut off" (it may not have)
    replaced: bool = False  # the folder holds another identity's run
    spoilt: bool = False  # its results.jsonl is damaged


class Work:
    """A plan in a folder.

    Args:
        debug: every run as its tool's --debug does it.
    """

    def __init__(self, plan: Plan, root: Path, *, suite: str, debug: bool = False) -> None:
        self.plan, self.root, self.suite, self.debug = plan, root, suite, debug
        self._parts: dict[str, dict[str, str]] = {}

    def folder(self, name: str) -> Path:
        """Return the work dir of a run."""
        return self.root / name

    def parts(self, name: str) -> dict[str, str]:
        """Return what a run's identity is made of."""
        if name not in self._parts:
            node = self.plan[name]
            inputs = {f"input {need}": self.identity(need) for need in (*node.needs, *node.points)}
            files = {f"file {key}": sha256(path) for key, path in files_of(node)}
            kind = node.kind + (", debug" if self.debug else "")
            digest = node.load(node.changes, debug=self.debug).digest()
            judged = {"sweep": f"{node.sweep.metric} on {node.sweep.split}"} if node.sweep and node.points else {}
            self._parts[name] = {"tool": kind, "config": digest, "seed": str(node.seed), **judged, **inputs, **files}
        return self._parts[name]

    def identity(self, name: str) -> str:
        """Return 16 hex digits that change with anything that could change the run's numbers."""
        return hashlib.sha256(json.dumps(self.parts(name), sort_keys=True).encode()).hexdigest()[:16]

    def changes(self, node: Node, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return a node's changes with the paths of what it needs, and the values that its sweep chose."""

        def path_of(reference: str) -> str:
            need = self.plan[reference[1:]]
            return str(self.folder(need.name) / str(need.tool.artifact))

        return {**replaced(node.changes, path_of), **chosen}

    def config(self, node: Node, chosen: Mapping[str, Any]) -> Schema:
        """Return the resolved config of a run."""
        return node.load(self.changes(node, chosen), debug=self.debug)

    def command(self, node: Node, chosen: Mapping[str, Any], *, torchrun: Sequence[str] = ()) -> list[str]:
        """Return the command line of a run, from the interpreter on; `torchrun`: the words that start it on several devices."""
        tool, changes = node.tool, self.changes(node, chosen)
        words = [*tool.words, str(node.config), "--work-dir", str(self.folder(node.name))]
        if tool.trains:
            words += ["--resume", *(["--debug"] if self.debug else [])]
        elif self.debug:
            overlay = {key: value for key, value in tool.schema(node.config).debug.items() if not key.endswith("?")}
            words += [word for text in texts(overlay) for word in ("--set", text)]
        kept = node.kept(changes) if self.debug else changes
        launcher = list(torchrun) if torchrun and tool.trains else [sys.executable]
        return [
            *launcher,
            str(TOOLS / tool.script),
            *words,
            *(word for text in texts(kept) for word in ("--set", text)),
        ]

    def note(self, node: Node, command: list[str]) -> Note:
        """Return what node.json says of a run that is about to start."""
        parts, identity = self.parts(node.name), self.identity(node.name)
        return Note(
            suite=self.suite,
            name=node.name,
            role=node.role,
            row=node.row,
            identity=identity,
            parts=parts,
            command=command,
        )

    def status(self, name: str) -> Status:
        """Return whether a run is done, and if not, why it has to run.

        Raises:
            ValueError: another version of this package, or another suite, was at work here.
        """
        note, defects = read_note(self.folder(name))
        if of_another_version(self.folder(name)):
            raise ValueError(f"{defects[0]}: take another --work-dir, or the version that made this one")
        if note is None:
            return Status(False, defects[0] if defects else "new", replaced=bool(defects))
        if note.identity != self.identity(name):
            if note.suite != self.suite:
                raise ValueError(
                    f"{self.folder(name)} is a run of the suite {note.suite!r}, of another config: take another --work-dir"
                )
            return Status(False, f"changed: {self.change(name, note)}", replaced=True)
        if note.state == "done":
            return self.status_of_done(name, note)
        why = {"running": "cut off", "failed": f"failed: {note.reason}", "skipped": f"skipped: {note.reason}"}
        return Status(False, why.get(note.state, note.state))

    def status_of_done(self, name: str, note: Note) -> Status:
        """Return whether what a run left is still there as it was; the same command writes what is missing or damaged again."""
        artifact, numbers = self.artifact(name), self.numbers(name)
        if artifact is not None and (defect := evidence.damaged_artifact(note, artifact, numbers)):
            return Status(False, defect)
        if self.plan[name].tool.trains and not numbers.is_file():
            return Status(False, "its results are gone")
        if defect := evidence.damaged_results(note, numbers):
            return Status(False, defect, spoilt=True)
        return Status(True, "done")

    def change(self, name: str, note: Note) -> str:
        """Return in words what differs between a run that is there and the one that the plan has."""
        ours, theirs = self.parts(name), note.parts
        keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        words = [
            f"{key}: {theirs.get(key, 'absent')} is now {ours.get(key, 'absent')}" for key in keys if key != "config"
        ]
        return "; ".join([*words, *(self.config_change(name) if "config" in keys else [])])

    def config_change(self, name: str) -> list[str]:
        """Return the values of a run's config that differ from those that it was run with."""
        node, file = self.plan[name], self.folder(name) / "config.py"
        try:
            new = self.config(node, self.chosen(node)[0])
            found = load(file, type(new)).differences(new)
        except ValueError:
            return ["its config.py is missing or of another version"]
        return found or ["the config"]

    def artifact(self, name: str) -> Path | None:
        """Return the file that a run leaves for others."""
        tool = self.plan[name].tool
        return self.folder(name) / tool.artifact if tool.artifact else None

    def numbers(self, name: str) -> Path:
        """Return the file of a run's results."""
        return self.folder(name) / "results.jsonl"

    def absent(self) -> list[str]:
        """Return what the runs that are not done take from outside and is not there: folders of images, files of weights and tokenizers."""
        found: dict[str, str] = {}
        for node in self.plan.values():
            if not self.debug and not self.status(node.name).done:
                for key, value in flatten(node.changes).items():
                    if isinstance(value, str) and not value.startswith("@") and (defect := defect_of(key, value)):
                        found.setdefault(f"{key} = {value!r}: {defect}", node.name)
        return [f"{defect} (for {name})" for defect, name in found.items()]

    def finished(self, node: Node, cfg: Schema) -> bool:
        """Return whether a run that ended has done its work: a stopped one ends in peace, too."""
        artifact, file = self.artifact(node.name), self.numbers(node.name)
        if artifact is not None and not artifact.is_file():
            return False
        return not node.tool.trains or (
            file.is_file() and any(r.config_digest == cfg.digest() and r.status == "ok" for r in results.load(file)[0])
        )

    def chosen(self, node: Node) -> tuple[dict[str, Any], str]:
        """Return the values that a node's sweep chose, and a sentence; ValueError where no point of it has a result."""
        if node.sweep is None or node.role == "point":
            return {}, ""
        scores = {point: score for point in node.points if (score := self.score(point, node)) is not None}
        if not scores:
            raise ValueError(f"no point of its sweep has {node.sweep.metric} on the split {node.sweep.split!r}")
        best = max(scores, key=lambda point: scores[point])
        tried = "; ".join(f"{dict(self.plan[point].point)}: {score:.4g}" for point, score in scores.items())
        chosen = dict(self.plan[best].point)
        return chosen, f"{chosen} of {len(node.points)} by {node.sweep.metric} on {node.sweep.split} images ({tried})"

    def score(self, point: str, node: Node) -> float | None:
        """Return what a point of a sweep is judged by; None where it has not got that far."""
        file = self.numbers(point)
        assert node.sweep is not None
        if not file.is_file() or not self.status(point).done:
            return None
        wanted = (node.sweep.split, node.sweep.metric)
        values = [r.value for r in results.load(file)[0] if (r.split, r.metric) == wanted and r.status == "ok"]
        return values[-1] if values else None


def defect_of(key: str, value: str) -> str | None:
    """Return what is wrong with a value that names a folder of images, weights or a tokenizer, as far as it shows without opening it."""
    if key == "data.root":
        return None if Path(value).is_dir() else "no such folder; name it with --root NAME=PATH"
    weights = key == "backbone.reference"
    try:
        prefix, rest = split(value, PREFIXES)
        if prefix == "zoo":
            zoo.weight_path(rest)
    except ValueError as error:
        prefix = value.partition(":")[0]
        if prefix == "zoo":
            return str(error)
        return f"no layout {prefix!r}; {nearest(prefix, LAYOUTS)}" if weights else f"{value} does not exist"
    if prefix in NO_FILE or not (weights or (key.startswith("target.") and (prefix or Path(value).suffix))):
        return None
    path = Path(rest)
    return None if path.exists() else f"{path} does not exist"


def files_of(node: Node) -> Iterator[tuple[str, Path]]:
    """Yield the files that a node's changes name by themselves or behind a prefix ("mae:PATH")."""
    for key, value in flatten(node.changes).items():
        if isinstance(value, str) and not value.startswith("@"):
            prefix = value.partition(":")[0]
            rest = value.removeprefix(f"{prefix}:") if prefix in PREFIXES else value
            path = zoo.weight_path(rest) if prefix == "zoo" else Path(at_home(rest))
            if path.is_file():
                yield key, path

"""The runs of a suite in its work dir: identity, state, changes and command of each run.

WORK_DIR/<row>/<transfer>/seed<n>/ holds one run: the files of the tool, node.json (records.Note) and output.log.
The identity of a run is a digest of its resolved config, its seed, the fingerprints of its images and the identities of
its inputs. It contains no name and no folder, so runs of several suites have equal identities if they are the same. A
run is repeated only if its identity has changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer import results
from mae_transfer.ablations import Overrides
from mae_transfer.checkpoints import PREFIXES as WEIGHTS
from mae_transfer.checkpoints import RELEASED, downloaded, sha256, split, zoo_file
from mae_transfer.checkpoints import load as load_weights
from mae_transfer.config import Schema, flatten, load_saved, nearest, read_saved
from mae_transfer.disk import at_home
from mae_transfer.suite.graph.plan import Node, Plan, assignments, replaced
from mae_transfer.suite.graph.toolbox import TOOLS
from mae_transfer.suite.store import evidence
from mae_transfer.suite.store.archive import RunArchive
from mae_transfer.suite.store.data import DataSets
from mae_transfer.suite.store.records import Note, of_another_version, read_note
from mae_transfer.suite.store.shared import RunStore

NO_FILE = ("timm", "random", "released", "zoo")  # prefixes of weights that are made, downloaded or part of the package
FETCHED = ("released", "timm")  # prefixes of weights that are downloaded
PREFIXES = {*WEIGHTS, "dalle"}  # prefixes of references
FEATURES = ".features"
"""Folder of a work dir or a store with features of frozen backbones."""
IN_ARCHIVE = "done: in the archive"
IDENTITY_FORMAT = "2"
"""Earlier versions wrote identities without a format (Work.earlier_identity)."""


class Status(NamedTuple):
    """Whether a run is done, and the reason if it has to run."""

    done: bool
    why: str  # "new", "done", "changed: ...", "failed: ...", "stopped" (saved), "interrupted" (perhaps not saved)
    replaced: bool = False  # the folder holds a run with another identity
    finished: bool = False  # that run is finished
    damaged: bool = False  # its results.jsonl is damaged


class Work:
    """The runs of a plan in a work dir.

    Args:
        debug: run every tool with --debug.
        store: finished runs that suites share.
        archive: the numbers of finished runs, without their weights.
        repeated: runs to repeat although they are in the archive.
        device: device of every run; None: as its config says.
    """

    def __init__(
        self,
        plan: Plan,
        root: Path,
        *,
        suite: str,
        debug: bool = False,
        store: RunStore | None = None,
        archive: RunArchive | None = None,
        repeated: Collection[str] = (),
        device: str | None = None,
    ) -> None:
        self.plan, self.root, self.suite, self.debug, self.store = plan, root, suite, debug, store
        self.device, self.archive, self.repeated = device, archive, repeated
        self.data = DataSets(root)
        self._parts: dict[str, dict[str, str]] = {}
        self._identities: dict[str, str] = {}

    def folder(self, name: str) -> Path:
        """Return the work dir of a run."""
        return self.root / name

    def parts(self, name: str) -> dict[str, str]:
        """Return the parts of the identity of a run."""
        if name not in self._parts:
            node = self.plan[name]
            inputs = {f"input {key}": self.identity(need) for key, need in node.inputs()}
            points = {f"point {number}": self.identity(point) for number, point in enumerate(node.points)}
            files = {f"file {key}": sha256(path) for key, path in files_of(node)}
            same = replaced(node.changes, lambda _: "@input")
            folder = {"data.root": "data"} if "data.root" in same else {}
            cfg: Any = node.load({**same, **folder}, debug=self.debug)
            selection = {"sweep": f"{node.sweep.metric} on {node.sweep.split}"} if node.sweep and node.points else {}
            self._parts[name] = {
                "format": IDENTITY_FORMAT,
                "tool": node.kind + (", debug" if self.debug else ""),
                "config": cfg.digest(),
                "seed": str(node.seed),
                **selection,
                **inputs,
                **points,
                **files,
                **self.data_parts(node),
            }
        return self._parts[name]

    def data_parts(self, node: Node) -> dict[str, str]:
        """Return the fingerprints of a run's images; none for generated ones, "unknown" if they are not here."""
        cfg: Any = node.load(node.changes, debug=self.debug)
        prints = self.data.fingerprints(cfg.data)
        return {"images": "unknown"} if prints is None else {f"images {part}": found for part, found in prints.items()}

    def identity(self, name: str) -> str:
        """Return 16 hex digits that change if anything changes that affects the numbers of the run."""
        if name not in self._identities:
            note, _ = read_note(self.folder(name))
            note = note if note and self.is_same(name, note) else self.archived(name)
            self._identities[name] = note.identity if note else _digest(self.parts(name))
        return self._identities[name]

    def archived(self, name: str) -> Note | None:
        """Return the note of a run in the archive; None if it is not there, or with another identity."""
        note = self.archive.note(name) if self.archive else None
        return note if note and self.is_same(name, note) else None

    def archived_identities(self) -> dict[str, str]:
        """Return the identities that the runs have, or will have, in the archive."""
        notes = {name: self.archived(name) for name in self.plan}
        return {name: note.identity if note else self.identity(name) for name, note in notes.items()}

    def outdated(self, name: str) -> str | None:
        """Return how the archived run of this name differs from the run of the plan; None if it does not."""
        note = self.archive.note(name) if self.archive else None
        if note is None or self.is_same(name, note):
            return None
        return f"the archived run differs: {', '.join(self.changed_parts(name, note))}"

    def gives_way(self, name: str, note: Note | None) -> bool:
        """Return whether a folder may show the archived run: it has no other run that is finished or running."""
        if note is None:
            return True
        if self.is_same(name, note):
            return note.state != "running"
        return note.suite == self.suite and note.state not in ("done", "running")

    def weights_wanted(self, name: str) -> bool:
        """Return whether a run that is not done needs the file that a run leaves for others."""
        others = [other for other, node in self.plan.items() if name in node.needs]
        return any(other in self.repeated or not self.status(other).done for other in others)

    def request(self, name: str) -> str:
        """Return 16 hex digits of what the suite's file says about a run, with or without its images at hand.

        A login node and the nodes of a cluster agree on it even if they do not see the same folders.
        """
        elsewhere = ("images", "file", "input", "point")
        kept = {key: value for key, value in self.parts(name).items() if key.partition(" ")[0] not in elsewhere}
        node = self.plan[name]
        return _digest({**kept, **{need: self.request(need) for need in (*node.needs, *node.points)}})

    def is_same(self, name: str, note: Note) -> bool:
        """Return whether a note belongs to the run of the plan. Images that are not on this machine count as equal."""
        if "format" not in note.parts:
            return note.identity in {self.earlier_identity(name), self.earlier_identity(name, folder=self.folder(name))}
        return not self.changed_parts(name, note)

    def changed_parts(self, name: str, note: Note) -> list[str]:
        """Return the names of the parts of the identity in which a run of the plan differs from a note."""
        ours, theirs = self.parts(name), note.parts
        unknown = "images" in ours or "images" in theirs
        keys = [key for key in ours | theirs if not (unknown and key.partition(" ")[0] == "images")]
        return [key for key in keys if ours.get(key) != theirs.get(key)]

    def earlier_identity(self, name: str, *, folder: Path | None = None) -> str:
        """Return the identity as versions wrote it that named inputs and the folder of the images.

        Args:
            folder: work dir of a run; the name of its images' folder is read from its config.
        """
        node = self.plan[name]
        changes = dict(node.changes)
        if folder is not None and "data.root" in changes and (folder / "config.py").is_file():
            changes["data.root"] = flatten(read_saved(folder / "config.py")).get("data.root", changes["data.root"])
        inputs = {
            f"input {need}": self.earlier_identity(need, folder=folder and self.folder(need))
            for need in (*node.needs, *node.points)
        }
        files = {f"file {key}": sha256(path) for key, path in files_of(node)}
        selection = {"sweep": f"{node.sweep.metric} on {node.sweep.split}"} if node.sweep and node.points else {}
        kind, digest = node.kind + (", debug" if self.debug else ""), node.load(changes, debug=self.debug).digest()
        return _digest({"tool": kind, "config": digest, "seed": str(node.seed), **selection, **inputs, **files})

    def changes(self, node: Node, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changes of a node, with the paths of its inputs and the values that its sweep chose."""

        def path_of(reference: str) -> str:
            need = self.plan[reference[1:]]
            return str(self.folder(need.name) / str(need.tool.artifact))

        return {**replaced(node.changes, path_of), **chosen}

    def config(self, node: Node, chosen: Mapping[str, Any]) -> Schema:
        """Return the resolved config of a run."""
        return node.load(self.changes(node, chosen), debug=self.debug)

    def command(self, node: Node, chosen: Mapping[str, Any], *, torchrun: Sequence[str] = ()) -> list[str]:
        """Return the command line of a run, interpreter included.

        Args:
            torchrun: arguments that start it on several devices, in place of the interpreter.
        """
        tool, changes = node.tool, self.changes(node, chosen)
        arguments = [*tool.arguments, str(node.config), "--work-dir", str(self.folder(node.name))]
        if tool.trains:
            arguments += ["--resume", *(["--debug"] if self.debug else [])]
        elif self.debug:
            overlay = {key: value for key, value in tool.schema(node.config).debug.items() if not key.endswith("?")}
            arguments += [word for text in assignments(overlay) for word in ("--set", text)]
        kept = node.debug_changes(changes) if self.debug else changes
        kept = kept | ({"run.device": self.device} if self.device else {}) | self.shared_features(node)
        launcher = list(torchrun) if torchrun and tool.trains else [sys.executable]
        return [
            *launcher,
            str(TOOLS / tool.script),
            *arguments,
            *(word for text in assignments(kept) for word in ("--set", text)),
        ]

    def shared_features(self, node: Node) -> Overrides:
        """Return the option that lets runs share the features of frozen backbones; none for other runs.

        A suite keeps them in its work dir, suites with a store in the store.
        """
        schema = node.tool.schema(node.config)
        root = self.store.root if self.store else self.root
        return {"run.features": str(root / FEATURES)} if getattr(schema, "keeps_features", False) else {}

    def note(self, node: Node, command: list[str]) -> Note:
        """Return the note of a run that is about to start."""
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
        """Return whether a run is done, and if not, the reason to run it.

        Raises:
            ValueError: the folder was written by another suite or by another version of this package.
        """
        note, defects = read_note(self.folder(name))
        if of_another_version(self.folder(name)):
            raise ValueError(f"{defects[0]}: use another --work-dir, or the version that wrote it")
        archived = self.archived(name) and name not in self.repeated and self.gives_way(name, note)
        if archived and not self.weights_wanted(name):
            return Status(True, IN_ARCHIVE)
        if note is None:
            new = "new" if self.archived(name) is None else "its weights are not in the archive"
            return Status(False, defects[0] if defects else new, replaced=bool(defects))
        if not self.is_same(name, note):
            if note.suite != self.suite:
                raise ValueError(
                    f"{self.folder(name)} holds a run of suite {note.suite!r} with another config: "
                    "use another --work-dir"
                )
            return Status(False, f"changed: {self.change(name, note)}", replaced=True, finished=note.state == "done")
        if note.state == "done":
            return self.status_of_done(name, note)
        why = {"running": "interrupted", "failed": f"failed: {note.reason}", "skipped": f"skipped: {note.reason}"}
        return Status(False, why.get(note.state, note.state))

    def status_of_done(self, name: str, note: Note) -> Status:
        """Return whether the files of a done run are intact. The same command restores missing or damaged files."""
        artifact, numbers = self.artifact(name), self.numbers(name)
        if artifact is not None and (defect := evidence.damaged_artifact(note, artifact, numbers)):
            return Status(False, defect)
        if self.plan[name].tool.trains and not numbers.is_file():
            return Status(False, "its results.jsonl is missing")
        if defect := evidence.damaged_results(note, numbers):
            return Status(False, defect, damaged=True)
        return Status(True, "done")

    def change(self, name: str, note: Note) -> str:
        """Return the differences between the run in the folder and the run of the plan, as text."""
        if "format" not in note.parts:
            return "; ".join(self.config_change(name))
        ours, theirs, keys = self.parts(name), note.parts, self.changed_parts(name, note)
        named = {f"input {key}": f"input {key} ({need})" for key, need in self.plan[name].inputs()}
        texts = [
            f"{named.get(key, key)}: {theirs.get(key, 'absent')} is now {ours.get(key, 'absent')}"
            for key in keys
            if key != "config"
        ]
        return "; ".join([*texts, *(self.config_change(name) if "config" in keys else [])])

    def config_change(self, name: str) -> list[str]:
        """Return the values of a run's config that have changed since it ran."""
        node, file = self.plan[name], self.folder(name) / "config.py"
        try:
            new = self.config(node, self.chosen(node)[0])
            found = load_saved(file, type(new)).differences(new)
        except ValueError:
            return ["its config.py is missing or was written by another version"]
        return found or ["config"]

    def artifact(self, name: str) -> Path | None:
        """Return the file that a run writes for other runs; None if it writes none."""
        tool = self.plan[name].tool
        return self.folder(name) / tool.artifact if tool.artifact else None

    def numbers(self, name: str) -> Path:
        """Return the results.jsonl of a run."""
        return self.folder(name) / "results.jsonl"

    def absent(self) -> list[str]:
        """Return the missing external inputs of runs that are not done, with one run that needs each.

        Inputs are folders of images and files of weights and tokenizers.
        """
        found: dict[str, str] = {}
        for node in self.plan.values():
            if not self.debug and not self.status(node.name).done:
                for key, value in flatten(node.changes).items():
                    if isinstance(value, str) and not value.startswith("@") and (defect := defect_of(key, value)):
                        found.setdefault(f"{key} = {value!r}: {defect}", node.name)
        return [f"{defect} (for {name})" for defect, name in found.items()]

    def prefetch(self, say: Callable[[str], object]) -> None:
        """Download the weights that runs need by name, because compute nodes often have no internet.

        Raises:
            ValueError: names the weights that cannot be downloaded, and a run that needs them.
        """
        wanted: dict[str, str] = {}
        for node in self.plan.values():
            if not self.debug and not self.status(node.name).done:
                wanted |= {
                    value: node.name
                    for value in flatten(node.changes).values()
                    if isinstance(value, str) and value.partition(":")[0] in FETCHED and "@" not in value
                }
        for reference, name in wanted.items():
            say(f"weights: {reference}")
            try:
                downloaded(reference) if reference.startswith("released:") else load_weights(reference)
            except (ValueError, OSError) as error:
                raise ValueError(f"nothing was started, {reference} is missing (for {name}): {error}") from None

    def finished(self, node: Node, cfg: Schema) -> bool:
        """Return whether a run that ended has finished. A stopped run also exits with status 0."""
        artifact, file = self.artifact(node.name), self.numbers(node.name)
        if artifact is not None and not artifact.is_file():
            return False
        return not node.tool.trains or (
            file.is_file() and any(r.config_digest == cfg.digest() and r.status == "ok" for r in results.load(file)[0])
        )

    def chosen(self, node: Node) -> tuple[dict[str, Any], str]:
        """Return the values that the sweep of a node chose, and a description; ValueError if it has no result."""
        if node.sweep is None or node.role == "point":
            return {}, ""
        scores = {point: score for point in node.points if (score := self.score(point, node)) is not None}
        if not scores:
            metric, split = node.sweep.metric, node.sweep.split
            raise ValueError(
                f"no run of its sweep has {metric} on split {split!r}: change the metric or split of the sweep"
            )
        best = max(scores, key=lambda point: scores[point])
        tried = "; ".join(f"{dict(self.plan[point].point)}: {score:.4g}" for point, score in scores.items())
        chosen = dict(self.plan[best].point)
        return chosen, f"{chosen} of {len(node.points)} by {node.sweep.metric} on {node.sweep.split} images ({tried})"

    def score(self, point: str, node: Node) -> float | None:
        """Return the metric of a run of a sweep; None if the run is not done or did not measure it."""
        file = self.numbers(point)
        assert node.sweep is not None
        if not file.is_file() or not self.status(point).done:
            return None
        wanted = (node.sweep.split, node.sweep.metric)
        values = [r.value for r in results.load(file)[0] if (r.split, r.metric) == wanted and r.status == "ok"]
        return values[-1] if values else None


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def defect_of(key: str, value: str) -> str | None:
    """Return the defect of a value that names a folder of images, weights or a tokenizer, without opening the file."""
    if key == "data.root":
        return None if Path(value).exists() else "no such folder or pack; name it with --root NAME=PATH"
    weights = key == "backbone.reference"
    try:
        prefix, rest = split(value, PREFIXES)
        if prefix == "zoo":
            zoo_file(rest)
    except ValueError as error:
        prefix = value.partition(":")[0]
        if prefix == "zoo":
            return str(error)
        return f"no layout {prefix!r}; {nearest(prefix, WEIGHTS)}" if weights else f"{value} does not exist"
    if prefix in NO_FILE or not (weights or (key.startswith("target.") and (prefix or Path(value).suffix))):
        return None
    path = Path(rest)
    source = f"; download it from {RELEASED['dalle_encoder'].url}" if prefix == "dalle" else ""
    return None if path.exists() else f"{path} does not exist{source}"


def files_of(node: Node) -> Iterator[tuple[str, Path]]:
    """Yield the files that the changes of a node name, with or without a prefix ("mae:PATH")."""
    for key, value in flatten(node.changes).items():
        if isinstance(value, str) and not value.startswith("@"):
            prefix = value.partition(":")[0]
            rest = value.removeprefix(f"{prefix}:") if prefix in PREFIXES else value
            path = zoo_file(rest) if prefix == "zoo" else Path(at_home(rest))
            if path.is_file():
                yield key, path

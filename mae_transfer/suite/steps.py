"""The life of one run, wherever it is carried out: may it start, what starts it, how did it end, and what it owes the tables where it ended badly."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mae_transfer import results
from mae_transfer.config import nearest
from mae_transfer.suite import evidence
from mae_transfer.suite.job import LOG, START
from mae_transfer.suite.plan import Node, Plan
from mae_transfer.suite.records import Note, State, read_note, write_note
from mae_transfer.suite.work import Work
from mae_transfer.tasks.backbones import pretrain_of

WORDS = {"planned": "was never started", "running": "was cut off"}  # states of what ended without a word
PEACEFUL = (0, -signal.SIGTERM, -signal.SIGINT)  # exit statuses of a run that was stopped
TOLD_TO_STOP = re.compile(
    r"SignalException: .* got signal: (2|15)$"
)  # the last words of a torchrun whose workers saved; its exit status is 1


def forced(plan: Plan, patterns: Sequence[str]) -> frozenset[str]:
    """Return the runs that are to be repeated though they are done: those with a pattern in their name, and what takes from them.

    Raises:
        ValueError: a pattern fits no run.
    """
    for pattern in patterns:
        if not any(pattern in name for name in plan):
            raise ValueError(f"--force {pattern}: no run's name contains that; {nearest(pattern, plan)}")
    names: set[str] = set()
    for name, node in plan.items():
        if any(pattern in name for pattern in patterns) or names.intersection((*node.needs, *node.points)):
            names.add(name)
    return frozenset(names)


def obstacle(node: Node, states: Mapping[str, State]) -> str | None:
    """Return why a run can never start, given how everything that it needs has ended; a sweep needs one point only."""
    failed = [need for need in node.needs if states[need] != "done"]
    if not failed and node.points and all(states[point] != "done" for point in node.points):
        failed = list(node.points)
    return f"{failed[0]} {WORDS.get(states[failed[0]], states[failed[0]])}" if failed else None


def prepare(work: Work, node: Node, *, again: bool = False, torchrun: Sequence[str] = ()) -> tuple[Note, str]:
    """Make the folder ready and write down that the run starts; return its note with the command, and why it runs, in words.

    A run that cannot even start (its sweep has chosen nothing) is concluded here: its note says "failed".

    Args:
        again: repeat it though it is done.
        torchrun: the words that start it on several devices.
    """
    folder, status = work.folder(node.name), work.status(node.name)
    if (status.replaced or again) and folder.exists():
        set_aside(folder, work.root)
    elif status.spoilt:
        numbers = work.numbers(node.name)
        numbers.replace(numbers.with_name(f"{numbers.name}.damaged"))  # the tool writes them again from its state
    try:
        chosen, sentence = work.chosen(node)
        command = work.command(node, chosen, torchrun=torchrun)
    except ValueError as error:
        return close(work, work.note(node, []), "failed", str(error)), status.why
    before, _ = read_note(folder)
    spent = before.seconds if before else 0.0
    note = work.note(node, command).model_copy(
        update={"state": "running", "chosen": sentence or None, "seconds": spent}
    )
    write_note(folder, note)
    return note, ("forced" if again else status.why) + (f"; {sentence}" if sentence else "")


def conclude(work: Work, note: Note, *, code: int | None, seconds: float, stopping: bool) -> Note:
    """Write down how a run's process ended: done, stopped (it saved), or failed with the reason that its output gives.

    A config that was spoilt since the suite began is the failure of its run, not of the suite.
    """
    node = work.plan[note.name]
    try:
        finished = work.finished(node, work.config(node, work.chosen(node)[0]))
    except ValueError as error:
        return close(work, note, "failed", str(error), seconds=seconds)
    artifact = work.artifact(note.name)
    if finished and artifact and (defect := evidence.unreadable(artifact)):
        return close(work, note, "failed", defect, seconds=seconds)
    if finished:
        return close(work, evidence.remembered(note, artifact, work.numbers(note.name)), "done", seconds=seconds)
    words = last_words(work.folder(note.name) / LOG)
    if stopping or code in PEACEFUL or TOLD_TO_STOP.search(words):
        return close(work, note, "stopped", seconds=seconds)
    return close(work, note, "failed", words or f"exit status {code}", seconds=seconds)


def close(work: Work, note: Note, state: State, reason: str | None = None, *, seconds: float = 0.0) -> Note:
    """Write how a run ended, and leave a hole in the tables where it ended badly."""
    ended = note.model_copy(update={"state": state, "reason": reason, "seconds": note.seconds + seconds})
    write_note(work.folder(note.name), ended)
    if state == "failed" or state == "skipped":
        record_hole(work.plan[note.name], work, state, reason or "")
    return ended


def set_aside(folder: Path, root: Path) -> None:
    """Move a run that the plan no longer has to WORK_DIR/.replaced, where no table looks."""
    kept = root / ".replaced" / folder.relative_to(root)
    number = 1 + sum(1 for _ in kept.parent.glob(f"{kept.name}-*"))
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(kept.with_name(f"{kept.name}-{number}"))


def last_words(log: Path) -> str:
    """Return the line of the output since a run's last start that says why it ended: the last one that names an error, else the last one."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    started = re.split(rf"^{re.escape(START)}.*$", text, flags=re.MULTILINE)[-1]
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line).strip() for line in started.splitlines()]
    lines = [line for line in lines if line and not line.startswith("(MAE_TRANSFER_TRACEBACK")]
    named = [
        line for line in lines if re.match(r"[\w.]*(Error|Loss|Exception): ", line)
    ]  # torchrun's own ChildFailedError has nothing behind it
    return (named or lines or [""])[-1][:300]


def record_hole(node: Node, work: Work, state: Literal["failed", "skipped"], reason: str) -> None:
    """Append a Result without the number that a run owes to the tables, so that they show the hole with its reason; not every run owes one."""
    if node.tool.metric is None or node.role == "point":
        return
    try:
        cfg: Any = node.load(node.changes, debug=work.debug)
        pretrain, backbone = origin(node, work)
    except (
        ValueError,
        OSError,
    ):  # a config that was spoilt since the suite began, weights that are gone: its place in the tables is not known
        return
    hole = results.Result(
        run=node.name, task="classify" if cfg.task == "knn" else cfg.task, protocol=protocol(cfg), dataset=cfg.data.name, split="val",
        metric=node.tool.metric, value=None, unit="%", higher_is_better=True, seed=node.seed, backbone=backbone, pretrain=pretrain, params=0,
        epochs=getattr(cfg, "epochs", 0.0), steps=0, images_seen=0, global_batch=getattr(cfg, "batch", cfg.run.evaluation_batch), world_size=0,
        precision=cfg.precision, wall_s=0.0, images_per_s=0.0, device="none", engine="mae_transfer", scale=cfg.scale, config_digest="",
        status=state, reason=reason,
    )  # fmt: skip
    results.append(work.folder(node.name) / "results.jsonl", [hole])


def protocol(cfg: Any) -> str:
    """Return what the run's own results would call its protocol."""
    if cfg.task == "knn":
        return f"knn-{cfg.ks[0]}"
    if hasattr(cfg, "title"):
        return str(cfg.title())
    return cfg.protocol if isinstance(cfg.protocol, str) else str(cfg.method().title)


def origin(node: Node, work: Work) -> tuple[str, str]:
    """Return the names of pretraining and backbone as far as they are known before the backbone is opened."""
    sources = [work.plan[need] for need in node.needs if work.plan[need].role == "pretrain"]
    if sources:
        pretraining: Any = sources[0].load(sources[0].changes, debug=work.debug)
        return pretraining.method(), pretraining.model.encoder.name()
    cfg: Any = node.load(node.changes, debug=work.debug)
    if cfg.backbone.reference:
        return pretrain_of(cfg.backbone.reference), "unknown"
    return "none", cfg.backbone.encoder.name() if cfg.backbone.encoder else "unknown"

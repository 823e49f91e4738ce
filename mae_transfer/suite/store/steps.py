"""The steps of one run, on any launcher: whether it can start, its command, how it ended.

A failed or skipped run leaves a Result without a number, so that tables show the number as missing.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mae_transfer import results
from mae_transfer.config import nearest
from mae_transfer.suite.graph.plan import Node, Plan
from mae_transfer.suite.store import evidence
from mae_transfer.suite.store.archive import DIFFERS
from mae_transfer.suite.store.records import LOG, START, Note, State, read_note, write_note
from mae_transfer.suite.store.work import IN_ARCHIVE, Work
from mae_transfer.tasks.backbones import pretrain_of

WORDS = {"planned": "was never started", "running": "was interrupted"}  # states of runs that did not report their end
_LOG = logging.getLogger(__name__)
STOP_CODES = (0, -signal.SIGTERM, -signal.SIGINT)  # exit statuses of a run that was stopped
# Last line of a torchrun that got a signal and whose workers saved. Its exit status is 1.
STOPPED_BY_SIGNAL = re.compile(r"SignalException: .* got signal: (2|15)$")


def forced(plan: Plan, patterns: Sequence[str]) -> frozenset[str]:
    """Return the runs to repeat: those whose name contains a pattern, and all runs that depend on them.

    Raises:
        ValueError: no run's name contains a pattern.
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
    """Return why a run cannot start, given the states of all runs that it needs. Of a sweep one run must be done."""
    failed = [need for need in node.needs if states[need] != "done"]
    if not failed and node.points and all(states[point] != "done" for point in node.points):
        failed = list(node.points)
    return f"{failed[0]} {WORDS.get(states[failed[0]], states[failed[0]])}" if failed else None


def replaced_runs(work: Work, force: frozenset[str]) -> dict[str, str]:
    """Return the finished or archived runs that have changed and are not forced, each with what has changed."""
    statuses = {name: work.status(name) for name in work.plan if name not in force}
    archived = {name: why for name in statuses if (why := work.outdated(name))}
    return archived | {name: status.why for name, status in statuses.items() if status.replaced and status.finished}


def keep_finished(work: Work, force: frozenset[str]) -> None:
    """Raise ValueError if finished runs have changed: repeating them needs --force or the user's consent."""
    if changed := replaced_runs(work, force):
        lines = "".join(f"\n  {name}: {why}" for name, why in changed.items())
        raise ValueError(
            f"{len(changed)} finished runs are not those of the suite any more; nothing was started:{lines}\n"
            f"restore the config or the data, use another --work-dir, or repeat them with --force {next(iter(changed))}"
        )


def make_room(work: Work, force: frozenset[str], *, replace: bool, busy: Collection[str] = ()) -> list[str]:
    """Return the runs to submit, in the order of the plan; set aside what is in the folders of those to be repeated.

    Args:
        force: runs to repeat.
        replace: also repeat finished runs that have changed.
        busy: runs that are queued or running.
    Raises:
        ValueError: finished runs have changed (without `replace`).
    """
    if not replace:
        keep_finished(work, force)
    waiting = [name for name in work.plan if name not in busy and (name in force or not work.status(name).done)]
    for name in waiting:
        if work.folder(name).exists() and (name in force or work.status(name).replaced):
            set_aside(work.folder(name), work.root)
    return waiting


def reuse(work: Work, node: Node) -> Note | None:
    """Take a run from the store; return its note. None: there is no store, or it does not have the run."""
    identity, folder = work.identity(node.name), work.folder(node.name)
    artifact = node.tool.artifact
    if work.store is None or (stored := work.store.find(identity, artifact)) is None:
        return None
    status = work.status(node.name)
    if status.replaced and folder.exists():
        set_aside(folder, work.root)
    try:
        work.store.use(identity, folder, artifact)
    except OSError as error:  # it was removed just now, or the disk is full
        _LOG.warning("%s is not taken from the store: %s", node.name, error)
        return None
    kept = {"state": stored.state, "chosen": stored.chosen, "seconds": stored.seconds, "artifact": stored.artifact}
    note = work.note(node, stored.command).model_copy(
        update={**kept, "results": stored.results, "reason": f"from the store: run by suite {stored.suite!r}"}
    )
    write_note(folder, note)
    return note


def prepare(work: Work, node: Node, *, again: bool = False, torchrun: Sequence[str] = ()) -> tuple[Note, str]:
    """Prepare the folder and write the note of a run; return the note with its command, and the reason to run it.

    If the run cannot start (its sweep has no result), the state of the note is "failed".

    Args:
        again: repeat the run even if it is done.
        torchrun: arguments that start it on several devices.
    """
    folder, status = work.folder(node.name), work.status(node.name)
    if (status.replaced or again) and folder.exists():
        set_aside(folder, work.root)
    elif status.damaged:
        numbers = work.numbers(node.name)
        numbers.replace(numbers.with_name(f"{numbers.name}.damaged"))  # the tool rewrites them from its training state
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
    """Record how the process of a run ended: done, stopped (it saved), or failed with the reason from its output.

    A config that became invalid after the start of the suite fails its run, not the suite.
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
        whole = evidence.remembered(note, artifact, work.numbers(note.name))
        comparison = publish(work, whole, seconds)
        if node.role == "pretrain" and (comparison or "").startswith(DIFFERS):
            again = f"{comparison}; --force {node.name} repeats it with its transfers, so that no seed has two"
            return close(work, whole, "failed", again, seconds=seconds)
        return close(work, whole, "done", comparison, seconds=seconds)
    reason = error_line(work.folder(note.name) / LOG)
    if stopping or code in STOP_CODES or STOPPED_BY_SIGNAL.search(reason):
        return close(work, note, "stopped", seconds=seconds)
    return close(work, note, "failed", reason or f"exit status {code}", seconds=seconds)


def publish(work: Work, note: Note, seconds: float = 0.0) -> str | None:
    """Add a finished run to the store and to the archive, if there are any.

    Return why it could not be added, or how its numbers compare with archived ones.
    """
    done = note.model_copy(update={"state": "done", "seconds": note.seconds + seconds})
    folder = work.folder(note.name)
    try:
        compared = None
        if work.archive is not None:
            compared = work.archive.add(done, folder, replace=note.name in work.repeated)
        if work.store is not None and not (compared or "").startswith(DIFFERS):
            work.store.publish(done, folder, work.plan[note.name].tool.artifact)
        return compared
    except (OSError, ValueError) as error:
        return str(error)


def unpack(work: Work, *, replace: bool = False) -> None:
    """Write the archived runs of a plan into the work dir. Unfinished runs in their folders are set aside.

    Args:
        replace: also set aside finished runs that have changed.
    """
    for name in work.plan:
        if work.archive is None or not work.archived(name):
            continue
        folder, status = work.folder(name), work.status(name)
        note, defects = read_note(folder)
        changed = replace and name not in work.repeated and status.replaced and status.finished
        if changed or (status.why == IN_ARCHIVE and (defects or (note and note.state != "done"))):
            set_aside(folder, work.root)
            note, defects = None, []
        if note is None and not defects:
            work.archive.unpack(name, folder)


def close(work: Work, note: Note, state: State, reason: str | None = None, *, seconds: float = 0.0) -> Note:
    """Write how a run ended. A failed or skipped run also gets a Result without a number."""
    ended = note.model_copy(update={"state": state, "reason": reason, "seconds": note.seconds + seconds})
    write_note(work.folder(note.name), ended)
    if state == "failed" or state == "skipped":
        record_missing(work.plan[note.name], work, state, reason or "")
    return ended


def set_aside(folder: Path, root: Path) -> None:
    """Move a replaced run to WORK_DIR/.replaced, which tables do not read."""
    kept = root / ".replaced" / folder.relative_to(root)
    number = 1 + sum(1 for _ in kept.parent.glob(f"{kept.name}-*"))
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(kept.with_name(f"{kept.name}-{number}"))


def error_line(log: Path) -> str:
    """Return the last line that names an error in the output since the last start, or else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    started = re.split(rf"^{re.escape(START)}.*$", text, flags=re.MULTILINE)[-1]
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line).strip() for line in started.splitlines()]
    lines = [line for line in lines if line and not line.startswith("(MAE_TRANSFER_TRACEBACK")]
    # torchrun's ChildFailedError has no text after the colon, so it does not match.
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Loss|Exception): ", line)]
    return (errors or lines or [""])[-1][:300]


def record_missing(node: Node, work: Work, state: Literal["failed", "skipped"], reason: str) -> None:
    """Append a Result without a number, so that tables show it as missing, with the reason.

    Runs whose tool has no metric and runs of a sweep need none.
    """
    if node.tool.metric is None or node.role == "point":
        return
    try:
        cfg: Any = node.load(node.changes, debug=work.debug)
        pretrain, backbone = origin(node, work)
    except (ValueError, OSError):  # the config became invalid or weights were removed: the cell is not known
        return
    missing = results.Result(
        run=node.name, task=getattr(cfg, "family", cfg.task), protocol="",
        dataset=cfg.data.name, split="val", metric=node.tool.metric, value=None, unit="%", higher_is_better=True,
        seed=node.seed, backbone=backbone, pretrain=pretrain, params=0, epochs=getattr(cfg, "epochs", 0.0), steps=0,
        images_seen=0, global_batch=getattr(cfg, "batch", cfg.run.evaluation_batch), world_size=0,
        precision=cfg.precision, wall_s=0.0, images_per_s=0.0, device="none", engine="mae_transfer", scale=cfg.scale,
        config_digest="", status=state, reason=reason,
    )  # fmt: skip
    of_each = [missing.model_copy(update={"protocol": title}) for title in protocols(cfg)]
    results.append(work.folder(node.name) / "results.jsonl", of_each)


def protocols(cfg: Any) -> tuple[str, ...]:
    """Return the names of the protocols that the results of the run would have."""
    if cfg.task == "knn":
        return tuple(f"knn-{k}" for k in cfg.ks)
    if hasattr(cfg, "titles"):
        return tuple(cfg.titles())
    if hasattr(cfg, "title"):
        return (str(cfg.title()),)
    return (cfg.protocol if isinstance(cfg.protocol, str) else str(cfg.protocol.title),)


def origin(node: Node, work: Work) -> tuple[str, str]:
    """Return the names of pretraining and backbone, as far as they are known without opening the backbone."""
    sources = [work.plan[need] for need in node.needs if work.plan[need].role == "pretrain"]
    if sources:
        pretraining: Any = sources[0].load(sources[0].changes, debug=work.debug)
        return pretraining.method(), pretraining.model.name()
    cfg: Any = node.load(node.changes, debug=work.debug)
    if cfg.backbone.reference:
        return pretrain_of(cfg.backbone.reference), "unknown"
    return "none", cfg.backbone.encoder.name() if cfg.backbone.encoder else "unknown"

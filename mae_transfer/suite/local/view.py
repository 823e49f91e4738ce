"""Console output of a suite: the plan, progress during the runs, and how they ended."""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mae_transfer.locks import is_held
from mae_transfer.suite.graph.plan import Node
from mae_transfer.suite.graph.shape import Shape, wall_hours
from mae_transfer.suite.local.run import Runner
from mae_transfer.suite.slurm.submit import Queued
from mae_transfer.suite.store.records import LOG, Note, read_note
from mae_transfer.suite.store.work import Work

TAIL = 2000  # bytes at the end of a log that are searched for its last line


def show_plan(
    work: Work,
    console: Console,
    shapes: Mapping[str, Shape] = MappingProxyType({}),
    *,
    misfits: Iterable[str] = (),
    forced: Collection[str] = (),
    jobs: int | None = 1,
) -> None:
    """Print every run with its inputs, shape, estimated cost and state, and the total cost of the remaining runs.

    Args:
        misfits: why runs fit into no shape.
        jobs: runs at a time; None: as many as can run.
    """
    grid = Table(title=f"{escape(work.suite)}: {len(work.plan)} runs", title_justify="left")
    for title in ("run", "needs", "nodes x GPUs", "device hours", "disk GiB", "state"):
        grid.add_column(title, overflow="fold")
    left: list[Node] = []
    done: list[Node] = []
    for name, node in work.plan.items():
        status = work.status(name)
        (done if status.done and name not in forced else left).append(node)
        needs = ", ".join([*node.needs, *([f"{len(node.points)} points of a sweep"] if node.points else [])])
        state = "forced" if name in forced else escape(status.why)
        shape = str(shapes[name]) if name in shapes else "-"
        grid.add_row(escape(name), escape(needs), shape, number(node.hours), number(node.gib), state)
    console.print(grid)
    unknown = sum(node.hours is None for node in left)
    without = f" ({unknown} runs have no estimate)" if unknown else ""
    gib, free = sum(node.gib or 0 for node in left), free_gib(work.root)
    disk = f"{gib:.4g} GiB of {free:.4g} GiB free disk"
    if gib > free:
        disk = f"{gib:.4g} GiB of disk, but only {free:.4g} GiB are free"
    measured = hours_left(work, done, left)
    pace = f"; at the measured pace {measured:.3g} h, one run at a time" if left and measured is not None else ""
    lines = [f"{len(done)} done, {len(left)} to run: {disk}{without}{pace}", *costs(work, left, shapes, jobs)]
    lines += [f"does not fit: {misfit}" for misfit in misfits]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def costs(work: Work, left: Iterable[Node], shapes: Mapping[str, Shape], jobs: int | None) -> Iterator[str]:
    """Yield the device hours and the wall time of some runs by device; hours of different devices are never added."""
    runs: defaultdict[str, list[Node]] = defaultdict(list)
    for node in left:
        if node.hours:
            runs[node.device].append(node)
    order = {None: "if no job waits for devices", 1: "one run at a time"}.get(jobs, f"{jobs} runs at a time")
    for device, some in runs.items():
        text = f"{device}: about {amount(sum(node.hours or 0 for node in some))} device hours"
        if all(node.name in shapes for node in some):
            wall = wall_hours(work.plan, shapes, {node.name for node in some}, jobs=jobs)
            text += f", {amount(wall)} h of wall time in the shapes above, {order}"
        yield text


def hours_left(work: Work, done: Iterable[Node], left: Iterable[Node]) -> float | None:
    """Return the hours that the remaining runs will take one at a time, estimated from done runs; None if none is done.

    The estimates of the plan are scaled by one factor per tool: measured over estimated hours of its done runs. A tool
    without done runs uses the factor over all tools.
    """
    spent: defaultdict[str | None, float] = defaultdict(float)
    planned: defaultdict[str | None, float] = defaultdict(float)
    for node in done:
        note, _ = read_note(work.folder(node.name))
        if note and note.seconds:
            for key in (node.kind, None):
                spent[key] += note.seconds / 3600
                planned[key] += node.hours or 1.0
    factor = {key: spent[key] / planned[key] for key in spent}
    return sum(factor.get(node.kind, factor[None]) * (node.hours or 1.0) for node in left) if factor else None


def free_gib(folder: Path) -> float:
    """Return the free disk space for a folder in GiB; the folder need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free / 2**30


def amount(value: float) -> str:
    """Return hours as text: "14,210", "57.2"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float | None) -> str:
    """Return an estimate as text, "-" if there is none."""
    return "-" if value is None else f"{value:.4g}"


class View:
    """Context manager that shows a runner live on a terminal. Other outputs get one message per line."""

    def __init__(self, work: Work, console: Console) -> None:
        self._work, self._console, self._start = work, console, time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a message above the live part, with the time since the start."""
        seconds = time.monotonic() - self._start
        stamp = f"{seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"
        self._console.print(f"{stamp}  {sentence}", markup=False, highlight=False, soft_wrap=True)

    def draw(self, runner: Runner) -> None:
        """Show the running runs: time since their start, and the last line of output (step, loss, time left)."""
        if self._live is None:
            return
        grid = Table("run", "since", box=None)
        grid.add_column("last line of its output", no_wrap=True)
        for name, each in runner.running.items():
            grid.add_row(
                escape(name), f"{time.monotonic() - each.since:.0f} s", escape(last_line(self._work.folder(name) / LOG))
            )
        self._live.update(Group(grid, Text(self.progress(runner))), refresh=True)

    def progress(self, runner: Runner) -> str:
        """Return the number of runs per state, and the estimated time of the remaining ones."""
        plan, states = self._work.plan, runner.states
        ended = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
        left = [node for name, node in plan.items() if name not in states]
        hours = hours_left(self._work, [plan[name] for name, state in states.items() if state == "done"], left)
        guess = "" if hours is None or not left else f", about {duration(hours / runner.machine.jobs)}"
        return f"{ended or 'none ended'}; {len(left)} left{guess}"


def watch(
    work: Work, console: Console, *, queue: Callable[[], Mapping[str, Queued]] | None = None, every_s: float = 10.0
) -> None:
    """Show the state and the last output of every run until all have ended; once, if the output is no terminal.

    Args:
        queue: returns the queued and running jobs of a cluster, by run; None: the runs are on this machine.
    """
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            jobs = queue() if queue else {}
            notes = {name: read_note(work.folder(name))[0] for name in work.plan}
            states: dict[str, str] = {name: note.state if note else "planned" for name, note in notes.items()}
            running = [name for name, state in states.items() if state == "running" and name not in jobs]
            lost = running if queue else [name for name in running if not is_held(work.folder(name) / ".lock")]
            states |= dict.fromkeys(lost, "interrupted") | {name: job.words for name, job in jobs.items()}
            live.update(table_of(work, states, notes, jobs, console.height), refresh=True)
            if not console.is_terminal or not (jobs or "running" in states.values()):
                return
            time.sleep(every_s)


def table_of(
    work: Work, states: Mapping[str, str], notes: Mapping[str, Note | None], jobs: Mapping[str, Queued], height: int
) -> Group:
    """Return the table of the runs that are not done, those that run first, and the number of runs per state."""
    grid = Table("run", "state", "job", "hours", box=None)
    grid.add_column("last line of its output", no_wrap=True)
    order = ("running", "interrupted", "failed", "skipped", "stopped")
    left = sorted(
        (name for name, state in states.items() if state != "done"),
        key=lambda name: next((place for place, word in enumerate(order) if states[name].startswith(word)), len(order)),
    )
    for name in left[: max(5, height - 4)]:
        note = notes[name]
        tail = (note.reason if note and note.state in ("failed", "skipped") else None) or last_line(
            work.folder(name) / LOG
        )
        spent, job = f"{note.seconds / 3600:.1f}" if note else "", jobs[name].number if name in jobs else ""
        grid.add_row(escape(name), states[name], job, spent, escape(tail))
    return Group(grid, Text(summary(state.partition(" ")[0] for state in states.values())))


def duration(hours: float) -> str:
    """Return a duration as text, in minutes below two hours."""
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours"


def last_line(log: Path) -> str:
    """Return the last non-empty line of a log."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]


def summary(states: Iterable[str]) -> str:
    """Return the number of runs per state, in one line."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))

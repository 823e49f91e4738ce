"""Submits a plan to SLURM. Each job waits only for the jobs of the runs that it needs.

Runs with equal resources and equal needs form one array. A job starts when those before it have ended, successfully or
not, and checks its inputs itself: if they failed, it marks its run as skipped, so no job stays pending forever.
squeue is the only source for what is queued or running: it prints the script of each job, and the script names its
runs.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import levels_of
from mae_transfer.suite.graph.shape import Shape
from mae_transfer.suite.slurm.cluster import (
    ClusterConfig,
    asked,
    largest_array,
    longest_minutes,
    require_commands,
    time_limit,
)
from mae_transfer.suite.slurm.script import Array, runs_of, slurm_script
from mae_transfer.suite.store.records import write_whole
from mae_transfer.suite.store.steps import forced, make_room
from mae_transfer.suite.store.work import Work


class Queued(NamedTuple):
    """The job of a run."""

    number: str  # "41_0"
    state: str  # SLURM's: PENDING, RUNNING ...
    reason: str  # why it is pending
    request: str  # what the suite's file said about the run when it was submitted

    @property
    def words(self) -> str:
        """The state and its reason, if there is one: "pending (Dependency)"."""
        return self.state.lower() + (f" ({self.reason})" if self.reason != "None" else "")


def queue(root: Path) -> dict[str, Queued]:
    """Return the queued and running jobs of the suite in a work dir, by run; ValueError if squeue fails."""
    found: dict[str, Queued] = {}
    format = "--format=%i|%T|%r|%o"
    for line in asked("squeue", "--noheader", "--array", format, "--user", getpass.getuser()).splitlines():
        number, state, reason, command = line.split("|", 3)
        script = Path(command)
        if script.parent == scripts(root) and script.is_file():
            name, request = runs_of(script)[int(number.partition("_")[2])]
            found[name] = Queued(number, state, reason, request)
    return found


def queue_of(root: Path) -> Callable[[], dict[str, Queued]] | None:
    """Return what asks for the jobs of a suite; None if none were submitted."""
    return (lambda: queue(root)) if scripts(root).is_dir() else None


def scripts(root: Path) -> Path:
    """Return the folder of the scripts of a suite."""
    return root.resolve() / "slurm"


def submit(
    work: Work,
    cluster: ClusterConfig,
    shapes: Mapping[str, Shape],
    command: Sequence[str],
    *,
    force: Sequence[str] = (),
    replace: bool = False,
    say: Callable[[str], object] = print,
) -> dict[str, str]:
    """Submit the runs that are not done, queued or running; return the job ids of the submitted runs by name.

    Raises:
        ValueError: SLURM is missing or refuses a job, another suite uses this work dir, finished runs have changed
            (without `replace`), or a run that has changed or is to be repeated is still queued or running.
    """
    require_commands()
    with locked(work.root / ".lock", owner="a suite that is submitting jobs"):
        longest, most = longest_minutes(cluster), largest_array()
        repeated, alive = forced(work.plan, force), queue(work.root)
        for name, job in alive.items():
            changed = name in work.plan and job.request != work.request(name)
            if changed or name in repeated:
                reason = "its config or an input changed" if changed else "--force"
                raise ValueError(
                    f"{name} is queued or running as job {job.number}, submitted before {reason}: cancel it with "
                    f"scancel {job.number}"
                )
        known, submitted = {name: job.number for name, job in alive.items()}, dict[str, str]()
        waiting = make_room(work, repeated, replace=replace, busy=alive)
        levels = levels_of(work.plan, work.plan)
        for level in sorted(set(levels.values())):
            names = [name for name in waiting if levels[name] == level]
            for array in arrays(work, names, known, shapes, cluster, longest, most):
                number = sbatch(work, array, cluster, command)
                ids = {name: f"{number}_{place}" for place, name in enumerate(array.runs)}
                known, submitted = known | ids, submitted | ids
                say(f"submitted {len(ids)} runs as {number}: {', '.join(ids)}")
    if alive:
        say(
            f"{len(alive)} runs are queued or running already: "
            + ", ".join(f"{n} ({j.number})" for n, j in alive.items())
        )
    return submitted


def arrays(
    work: Work,
    names: Sequence[str],
    known: Mapping[str, str],
    shapes: Mapping[str, Shape],
    cluster: ClusterConfig,
    longest: float,
    most: int,
) -> list[Array]:
    """Return the runs of one level as arrays.

    Args:
        known: the jobs of other runs.
        longest: the longest time limit in minutes.
        most: runs of one array.
    """
    groups: dict[tuple[Shape, int, tuple[str, ...]], dict[str, str]] = {}
    for name in names:
        node, shape = work.plan[name], shapes[name]
        after = tuple(sorted({known[need] for need in (*node.needs, *node.points) if need in known}))
        minutes = time_limit(shape.hours, cluster, longest)
        groups.setdefault((shape._replace(hours=None), minutes, after), {})[name] = work.request(name)
    return [
        Array(dict(list(runs.items())[first : first + most]), shape, minutes, after)
        for (shape, minutes, after), runs in groups.items()
        for first in range(0, len(runs), most)
    ]


def sbatch(work: Work, array: Array, cluster: ClusterConfig, command: Sequence[str]) -> str:
    """Submit an array; return its number."""
    folder = scripts(work.root)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{1 + max((int(path.stem) for path in folder.glob('[0-9]*.sh')), default=0)}.sh"
    title = work.suite.replace(" ", "-")
    write_whole(file, slurm_script(array, cluster, command, title=title, folder=folder))
    return asked("sbatch", "--parsable", str(file)).strip().partition(";")[0]

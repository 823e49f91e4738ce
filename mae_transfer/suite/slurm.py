"""Hand a plan to SLURM through submitit: an array of jobs per level of the plan, each level after the ones that it needs.

A job finds its own inputs: where they failed it marks itself skipped, so that a failure leaves no job pending for ever. A preempted or timed-out job
saves and is queued again; torchrun starts a run on the devices of its nodes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mae_transfer.suite.job import LOG, locked
from mae_transfer.suite.plan import levels_of
from mae_transfer.suite.records import read_note
from mae_transfer.suite.steps import close, conclude, forced, obstacle, prepare
from mae_transfer.suite.work import Work

if TYPE_CHECKING:
    import submitit

PORT = 29500  # of torchrun's meeting point on the first node; a job has its nodes for itself
GRACE_S = 300  # between the signal and the end of a job, in which a run saves
OPTIONS: dict[str, Any] = {"timeout_min": 60 * 72, "slurm_signal_delay_s": GRACE_S, "tasks_per_node": 1, "cpus_per_task": 10}


class Cluster(NamedTuple):
    """What each job asks for."""

    nodes: int
    gpus_per_node: int
    options: dict[str, Any]  # of submitit
    name: str = "slurm"  # or submitit's "local", to try it

    @classmethod
    def parse(cls, *, nodes: int, gpus_per_node: int, options: Sequence[str]) -> Self:
        """Return what a command line says; an option that submitit has not itself is SLURM's own ("partition")."""
        own = ("timeout_min", "cpus_per_task", "mem_gb", "stderr_to_stdout")
        pairs = {(key if key in own else f"slurm_{key}"): _value(text) for key, _, text in (option.partition("=") for option in options)}
        return cls(nodes, gpus_per_node, pairs)


class Job:
    """One run as submitit's job: called where it runs, asked to save by `checkpoint` before it is killed."""

    def __init__(self, work: Work, name: str, cluster: Cluster, *, again: bool) -> None:
        self.work, self.name, self.cluster, self.again = work, name, cluster, again
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str:
        """Carry the run out; return how it ended. Of several nodes the first one keeps the records."""
        import submitit

        here = submitit.JobEnvironment()
        folder, node = self.work.folder(self.name), self.work.plan[self.name]
        notes = {need: read_note(self.work.folder(need))[0] for need in (*node.needs, *node.points)}
        reason = obstacle(node, {need: note.state if note else "planned" for need, note in notes.items()})
        words = torchrun(self.cluster, here.hostnames, here.node)
        if here.node > 0:  # the folder is the first node's to make
            command = self.work.command(node, self.work.chosen(node)[0], torchrun=words)
            return "skipped" if reason else f"exit status {self._spawn(command, self.work.root / 'slurm' / f'{here.job_id}_{here.node}.log')}"
        with locked(folder / ".lock"):
            if reason:
                return close(self.work, self.work.note(node, []), "skipped", reason).state
            note, _ = prepare(self.work, node, again=self.again, torchrun=words)
            start = time.monotonic()
            code = self._spawn(note.command, folder / LOG)
            return conclude(self.work, note, code=code, seconds=time.monotonic() - start, stopping=False).state

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the run save and stop, and queue the job again."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(GRACE_S)
        return submitit.helpers.DelayedSubmission(Job(self.work, self.name, self.cluster, again=False))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def _spawn(self, command: list[str], log: Path) -> int:
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            return self._process.wait()


def torchrun(cluster: Cluster, hosts: Sequence[str], rank: int) -> list[str]:
    """Return the words that start a run's processes on one node; none where a run is one process."""
    if cluster.nodes * cluster.gpus_per_node == 1:
        return []
    meeting = ["--node-rank", str(rank), "--master-addr", hosts[0], "--master-port", str(PORT)]
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    return [
        *launcher,
        "--nnodes",
        str(cluster.nodes),
        "--nproc-per-node",
        str(cluster.gpus_per_node),
        *(meeting if cluster.nodes > 1 else ["--standalone"]),
    ]


def submit(work: Work, cluster: Cluster, *, force: Sequence[str] = (), say: Callable[[str], object] = print) -> dict[str, str]:
    """Submit what is not done; return run -> job id.

    Raises:
        ValueError: submitit is not installed, or another suite is at work in this folder.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--launcher slurm needs submitit: pip install 'mae_transfer[slurm]'") from None
    ids: dict[str, str] = {}
    with locked(work.root / ".lock", owner="a suite that submits its jobs"):
        levels = levels_of(work.plan, work.plan)
        for level in sorted(set(levels.values())):
            names = [name for name in work.plan if levels[name] == level and (forced(name, force) or not work.status(name).done)]
            if not names:
                continue
            needs = {need for name in names for need in (*work.plan[name].needs, *work.plan[name].points)} & set(ids)
            executor = submitit.AutoExecutor(folder=work.root / "slurm" / "%j", cluster=cluster.name)
            executor.update_parameters(**parameters(work, cluster, sorted({ids[need].partition("_")[0] for need in needs})))
            jobs = executor.map_array(lambda job: job(), [Job(work, name, cluster, again=forced(name, force)) for name in names])
            ids |= {name: each.job_id for name, each in zip(names, jobs, strict=True)}
            say(f"submitted {len(names)} runs as {ids[names[0]].partition('_')[0]}: {', '.join(names)}")
            if cluster.name == "local":
                [each.result() for each in jobs]
    return ids


def parameters(work: Work, cluster: Cluster, after: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters of a level that starts when the jobs `after` have ended, however they did."""
    shape = {"nodes": cluster.nodes, "gpus_per_node": cluster.gpus_per_node, "name": work.suite.replace(" ", "-")}
    chain = {"slurm_dependency": "afterany:" + ":".join(after)} if after and cluster.name == "slurm" else {}
    return {**OPTIONS, **shape, **chain, **cluster.options}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

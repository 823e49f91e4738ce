"""Submits a plan to SLURM through submitit: one array of jobs per level of the plan, after the levels that it needs.

A job checks its own inputs. If they failed, it marks its run as skipped, so no job stays pending forever. A preempted
or timed-out job saves and is queued again. torchrun starts a run on the devices of its nodes.
WORK_DIR/slurm/jobs.json maps runs to jobs.
"""

from __future__ import annotations

import ast
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import Node, levels_of
from mae_transfer.suite.local.job import TORCHRUN_WAITS
from mae_transfer.suite.store.records import LOG, START, Note, State, read_note, write_whole
from mae_transfer.suite.store.steps import close, conclude, forced, keep_finished, obstacle, prepare
from mae_transfer.suite.store.work import Work

if TYPE_CHECKING:
    import submitit

PORT = 29500  # of torchrun's rendezvous on the first node; jobs do not share nodes
GRACE_S = 300  # between the signal and the end of a job; a run saves in this time
MARGIN_S = 30  # part of the grace time, reserved to queue the job again
TIMEOUTS = 1000  # timeouts after which a job is not queued again; a long pretraining needs many
OPTIONS: dict[str, Any] = {"timeout_min": 60 * 72, "tasks_per_node": 1, "cpus_per_task": 10}


class Cluster(NamedTuple):
    """Resources of each job."""

    nodes: int
    gpus_per_node: int
    options: dict[str, Any]  # parameters of submitit
    name: str = "slurm"  # or "local": submitit on this machine, for tests

    @classmethod
    def parse(cls, *, nodes: int, gpus_per_node: int, options: Sequence[str]) -> Self:
        """Return the cluster of a command line. Options that submitit does not have are SLURM's ("partition")."""
        own = ("timeout_min", "cpus_per_task", "mem_gb", "stderr_to_stdout")
        for option in options:
            if "=" not in option:
                raise ValueError(f"--slurm: {option}: write key=value, for instance partition=gpu")
        pairs = {
            (key if key in own else f"slurm_{key}"): _value(text)
            for key, _, text in (option.partition("=") for option in options)
        }
        if nodes < 1 or gpus_per_node < 1:
            raise ValueError(f"--nodes {nodes} --gpus-per-node {gpus_per_node}: both must be at least 1")
        cluster = cls(nodes, gpus_per_node, pairs)
        if cluster.grace <= MARGIN_S:
            raise ValueError(
                f"--slurm: signal_delay_s={cluster.grace} is too short to save: {MARGIN_S} s of it are needed to queue "
                f"the job again; use {GRACE_S}, for example"
            )
        return cluster

    @property
    def grace(self) -> int:
        """Seconds between the signal and the end of a job."""
        return int(self.options.get("slurm_signal_delay_s", GRACE_S))


class Job:
    """One run as a job of submitit: called on its node; `checkpoint` lets it save before the job is killed."""

    def __init__(self, work: Work, name: str, cluster: Cluster, *, again: bool) -> None:
        self.work, self.name, self.cluster, self.again = work, name, cluster, again
        self._process: subprocess.Popen[bytes] | None = None
        self._note: Note | None = None
        self._since = 0.0

    def __call__(self) -> str:
        """Run; return how the run ended. With several nodes, the first one writes the records."""
        import submitit

        here = submitit.JobEnvironment()
        folder, node = self.work.folder(self.name), self.work.plan[self.name]
        notes = {need: read_note(self.work.folder(need))[0] for need in (*node.needs, *node.points)}
        reason = obstacle(node, {need: note.state if note else "planned" for need, note in notes.items()})
        launcher = torchrun(self.cluster, here.hostnames, here.node)
        if not self.again and self.work.status(self.name).done:  # by a job of an earlier submission
            return "done"
        if here.node > 0:  # only the first node prepares the folder
            if reason:
                return "skipped"
            command = self.work.command(node, self.work.chosen(node)[0], torchrun=launcher)
            return f"exit status {self._spawn(command, self.work.root / 'slurm' / f'{here.job_id}_{here.node}.log')}"
        with locked(folder / ".lock"):
            if reason:
                return close(self.work, self.work.note(node, []), "skipped", reason).state
            state = self._carry_out(node, launcher)
            # Preemption sends SIGTERM to every process. Only a job that is still alive is queued again, so wait.
            if state == "stopped":
                time.sleep(self.cluster.grace)
            return state

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the run save and stop, and queue the job again. Submitit calls this at a signal, on the first node."""
        import submitit

        started = self._process is not None
        if self._process is not None:
            save_and_stop(self._process, self.cluster.grace - MARGIN_S)
        if self._note is not None:
            close(self.work, self._note, "stopped", seconds=time.monotonic() - self._since)
        repeat = self.again and not started
        return submitit.helpers.DelayedSubmission(Job(self.work, self.name, self.cluster, again=repeat))

    def _carry_out(self, node: Node, launcher: Sequence[str]) -> State:
        note, _ = prepare(self.work, node, again=self.again, torchrun=launcher)
        if note.state == "failed":
            return note.state
        self._note, self._since = note, time.monotonic()
        code = self._spawn(note.command, self.work.folder(self.name) / LOG)
        self._note = None
        return conclude(self.work, note, code=code, seconds=time.monotonic() - self._since, stopping=False).state

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def _spawn(self, command: list[str], log: Path) -> int:
        import submitit

        def ignore_signal() -> None:  # SLURM signals every process of the job; without this, the run ends unsaved
            signal.signal(getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}"), signal.SIG_IGN)

        environment = {**os.environ, TORCHRUN_WAITS: str(self.cluster.grace)}
        with log.open("ab", buffering=0) as file:
            file.write(f"{START}{' '.join(command)}\n".encode())
            with subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=ignore_signal
            ) as process:
                self._process = process
                return process.wait()


def save_and_stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a run to save and stop; kill it after `seconds`. It can then continue from its last checkpoint.

    This does not call process.wait(): the signal handler has interrupted that call, which holds its lock.
    """
    with suppress(ProcessLookupError, ChildProcessError):  # the run has already ended
        os.kill(process.pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > end:
                os.kill(process.pid, signal.SIGKILL)
                return
            time.sleep(0.1)


def torchrun(cluster: Cluster, hosts: Sequence[str], rank: int) -> list[str]:
    """Return the arguments that start the processes of a run on one node; empty if a run has one process."""
    if cluster.nodes * cluster.gpus_per_node == 1:
        return []
    shape = ["--nnodes", str(cluster.nodes), "--nproc-per-node", str(cluster.gpus_per_node)]
    rendezvous = ["--node-rank", str(rank), "--master-addr", hosts[0], "--master-port", str(PORT)]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *shape,
        *(rendezvous if cluster.nodes > 1 else ["--standalone"]),
    ]


def submit(
    work: Work,
    cluster: Cluster,
    *,
    force: Sequence[str] = (),
    replace: bool = False,
    say: Callable[[str], object] = print,
) -> dict[str, str]:
    """Submit the runs that are not done, queued or running; return the job ids of the submitted runs by name.

    Raises:
        ValueError: submitit is not installed, another suite uses this work dir, finished runs have changed (without
            `replace`), or a run that has changed or is to be repeated is still queued or running.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from None
    with locked(work.root / ".lock", owner="a suite that is submitting jobs"):
        jobs = Jobs(work, cluster)
        repeated = forced(work.plan, force)
        if not replace:
            keep_finished(work, repeated)
        alive, submitted = jobs.alive(repeated), dict[str, str]()
        levels = levels_of(work.plan, work.plan)
        for level in sorted(set(levels.values())):
            missing = (name for name in work.plan if levels[name] == level and name not in alive)
            names = [name for name in missing if name in repeated or not work.status(name).done]
            if not names:
                continue
            known = alive | submitted
            needs = {
                known[need]
                for name in names
                for need in (*work.plan[name].needs, *work.plan[name].points)
                if need in known
            }
            executor = submitit.AutoExecutor(
                folder=work.root / "slurm" / "%j", cluster=cluster.name, slurm_max_num_timeout=TIMEOUTS
            )
            try:
                executor.update_parameters(**parameters(work, cluster, after=needs))
            except (AssertionError, NameError) as error:  # submitit raises these for a wrong type and an unknown name
                raise ValueError(f"--slurm: {error}") from None
            each = executor.submit_array([Job(work, name, cluster, again=name in repeated) for name in names])
            submitted |= {name: job.job_id for name, job in zip(names, each, strict=True)}
            jobs.remember({name: submitted[name] for name in names})
            say(f"submitted {len(names)} runs as {submitted[names[0]].partition('_')[0]}: {', '.join(names)}")
            if cluster.name == "local":
                [job.result() for job in each]
    if alive:
        running = ", ".join(f"{name} ({number})" for name, number in alive.items())
        say(f"{len(alive)} runs are queued or running already: {running}")
    return submitted


class Jobs:
    """The job of each run, over all submissions from this work dir: WORK_DIR/slurm/jobs.json."""

    def __init__(self, work: Work, cluster: Cluster) -> None:
        self._work, self._cluster, self._file = work, cluster, work.root / "slurm" / "jobs.json"
        self._known: dict[str, dict[str, str]] = (
            json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        )

    def alive(self, repeated: frozenset[str]) -> dict[str, str]:
        """Return the queued and running runs of the plan; ValueError if such a run has changed or is to be repeated."""
        listed = queued() if self._known and self._cluster.name == "slurm" else frozenset()
        alive = {
            name: job["id"] for name, job in self._known.items() if job["id"] in listed and name in self._work.plan
        }
        for name, number in alive.items():
            changed = self._known[name]["identity"] != self._work.identity(name)
            if changed or name in repeated:
                reason = "its config or an input changed" if changed else "--force"
                raise ValueError(
                    f"{name} is queued or running as job {number}, submitted before {reason}: cancel it with "
                    f"scancel {number}"
                )
        return alive

    def remember(self, ids: dict[str, str]) -> None:
        """Add submitted jobs."""
        self._known |= {name: {"id": number, "identity": self._work.identity(name)} for name, number in ids.items()}
        write_whole(self._file, json.dumps(self._known, indent=1) + "\n")


def queued() -> frozenset[str]:
    """Return the ids of the user's queued and running jobs ("41_0"); ValueError if squeue fails."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode:
        raise ValueError(
            f"{' '.join(command)}: {listing.stderr.strip()}; nothing was submitted, because running jobs are "
            "not known: try again when squeue works"
        )
    return frozenset(listing.stdout.split())


def parameters(work: Work, cluster: Cluster, *, after: Iterable[str]) -> dict[str, Any]:
    """Return submitit's parameters of a level that starts when the jobs `after` have ended, successfully or not."""
    shape = {"nodes": cluster.nodes, "gpus_per_node": cluster.gpus_per_node, "name": work.suite.replace(" ", "-")}
    arrays = sorted({number.partition("_")[0] for number in after})
    chain = {"slurm_dependency": "afterany:" + ":".join(arrays)} if arrays and cluster.name == "slurm" else {}
    return {**OPTIONS, "slurm_signal_delay_s": GRACE_S, **shape, **chain, **cluster.options}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

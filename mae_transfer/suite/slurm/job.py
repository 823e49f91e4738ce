"""One run as a job of any scheduler: it starts the run on its node and records how it ended.

SLURM signals a job before its time limit (SIGUSR2) and before preemption (SIGTERM). The run then saves and stops. The
exit status of the job tells its script to queue it again (script.py).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import Node
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.graph.shape import Shape, shape_of
from mae_transfer.suite.local.job import TORCHRUN_WAITS
from mae_transfer.suite.report.page import refresh
from mae_transfer.suite.store.records import LOG, START, Note, read_note
from mae_transfer.suite.store.steps import close, conclude, forced, obstacle, prepare, reuse
from mae_transfer.suite.store.work import Work

PREEMPTED = 128 + signal.SIGTERM  # exit status of a job that saved after SLURM's SIGTERM
STOPPED = 75  # exit status of a job whose run saved and can go on (EX_TEMPFAIL of sysexits.h)
BUSY = 73  # exit status of a job whose run is being done by another job or by another suite for the store
POLL_S = 0.2
FRUITLESS = 0.5  # share of the time limit after which a job that was told to stop must have saved something


class NodeRank(NamedTuple):
    """Where a job runs: the variables of SLURM, or those that the user sets on each node for another scheduler."""

    rank: int  # of the node
    address: str  # of the first node
    port: str
    job: str | None  # SLURM's number

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> NodeRank:
        rank = environment.get("NODE_RANK", environment.get("SLURM_NODEID", "0"))
        address, port = environment.get("MASTER_ADDR", "localhost"), environment.get("MASTER_PORT", "29500")
        return cls(int(rank), address, port, environment.get("SLURM_JOB_ID"))

    @property
    def owner(self) -> str:
        """How messages name this job."""
        return f"{f'job {self.job}' if self.job else f'process {os.getpid()}'} on {socket.gethostname()}"

    def torchrun(self, shape: Shape) -> list[str]:
        """Return the arguments that start the processes of a run on this node; empty if a run has one process."""
        if shape.nodes * shape.gpus == 1:
            return []
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(shape.nodes)]
        words += ["--nproc-per-node", str(shape.gpus)]
        if shape.nodes == 1:
            return [*words, "--standalone"]
        return [*words, "--node-rank", str(self.rank), "--master-addr", self.address, "--master-port", self.port]


class Notice:
    """The first signal that told this job to stop, if any."""

    number: int | None = None

    def listen(self) -> None:
        """Note signals from now on, until the process ends."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def given(self) -> bool:
        return self.number is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number


def do(
    cfg: SuiteConfig,
    work: Work,
    run: str,
    asked: Shape,
    *,
    force: Sequence[str],
    grace: int,
    limit: int | None,
) -> int:
    """Do one run of a suite on this node, and update the report; return the exit status of the job.

    Args:
        run: NAME:REQUEST, the run as the suite's file described it when it was submitted (Work.request).
        asked: the most nodes and GPUs per node that a run may have.
        force: do not take runs with one of these texts in their name from the store.
        grace: seconds between SLURM's signal and the time limit.
        limit: time limit in minutes; None: there is none.
    Raises:
        ValueError: there is no such run, or it has changed since then.
    """
    name, _, request = run.rpartition(":")
    if name not in work.plan or work.request(name) != request:
        raise ValueError(f"{name} has changed after it was submitted: repeat the command that submitted it")
    node = work.plan[name]
    job = Job(work, node, shape_of(node, asked, debug=work.debug), place=NodeRank.here(), grace=grace, limit=limit)
    job.forced = name in forced(work.plan, force)

    def update() -> None:
        try:
            refresh(cfg, work)
        except Exception as error:
            print(f"the report was not updated: {type(error).__name__}: {error}")

    return job.run(update)


class Job:
    """A job.

    Args:
        grace: seconds between SLURM's signal and the time limit.
        limit: time limit in minutes; None: there is none.
    """

    def __init__(
        self, work: Work, node: Node, shape: Shape, *, place: NodeRank, grace: int, limit: int | None = None
    ) -> None:
        self.work, self.node, self.shape, self.place = work, node, shape, place
        self.grace, self.limit, self.forced = grace, limit, False
        self.notice, self.since = Notice(), time.monotonic()

    def run(self, update: Callable[[], None] = lambda: None) -> int:
        """Run what is not done, and update the report; return the exit status of the job."""
        self.notice.listen()
        folder = self.work.folder(self.node.name)
        if self.place.rank >= self.shape.nodes:
            return 0
        if self.place.rank > 0:
            return self._help(folder)
        with ExitStack() as held:
            try:
                lock = held.enter_context(locked(folder / ".lock", owner=self.place.owner))
                if self.work.store:
                    held.enter_context(self.work.store.claim(self.work.identity(self.node.name), self.place.owner))
            except ValueError as error:
                print(error)
                return BUSY
            note = self._carry_out(folder, lock)
        if note.reason and note.state != "done":
            print(f"{note.state} {note.name}: {note.reason}", file=sys.stderr)
        if not self.notice.given():  # else the time left is for others
            update()
        return self._status(note.state)

    def _carry_out(self, folder: Path, lock: int | None) -> Note:
        """Run on the first node, which writes the records."""
        before, _ = read_note(folder)
        if before and self.work.status(self.node.name).done:  # by a job of an earlier submission
            return before
        if reason := self._obstacle():
            return close(self.work, self.work.note(self.node, []), "skipped", reason)
        if not self.forced and (stored := reuse(self.work, self.node)):
            return stored
        note, _ = prepare(self.work, self.node, torchrun=self.place.torchrun(self.shape))
        if note.state == "failed":
            return note
        saved, since = checkpoints(folder), time.monotonic()
        code = self._spawn(note.command, folder / LOG, lock)
        seconds = time.monotonic() - since
        ended = conclude(self.work, note, code=code, seconds=seconds, stopping=self.notice.given())
        if ended.state == "stopped" and self._fruitless(saved == checkpoints(folder)):
            reason = f"it saved nothing within the time limit of its job ({self.limit} minutes): allow more time"
            return close(self.work, ended, "failed", reason)
        return ended

    def _help(self, folder: Path) -> int:
        """Run the processes of a further node."""
        if self._obstacle() or self.work.status(self.node.name).done:
            return 0
        chosen, _ = self.work.chosen(self.node)
        command = self.work.command(self.node, chosen, torchrun=self.place.torchrun(self.shape))
        folder.mkdir(parents=True, exist_ok=True)
        code = self._spawn(command, folder / f"output.{self.place.rank}.log", None)
        return 0 if self.notice.given() else int(code != 0)

    def _obstacle(self) -> str | None:
        """Return why the run cannot start."""
        notes = {need: read_note(self.work.folder(need))[0] for need in (*self.node.needs, *self.node.points)}
        return obstacle(self.node, {need: note.state if note else "planned" for need, note in notes.items()})

    def _spawn(self, command: Sequence[str], log: Path, lock: int | None) -> int:
        """Run a command until it ends; return its exit status. If the job is told to stop, let it save."""
        if self.notice.given():
            return 0
        with log.open("ab", buffering=0) as file:
            file.write(f"{START}{' '.join(command)}\n".encode())
            with subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, TORCHRUN_WAITS: str(self.grace)},
                pass_fds=() if lock is None else (lock,),  # the lock is held as long as the run lives
                preexec_fn=ignore_the_warning,
            ) as process:
                told: float | None = None
                while (code := process.poll()) is None:
                    if told is None and self.notice.given():
                        told = time.monotonic()
                        if not self._everyone_was_told:
                            process.terminate()
                    if told is not None and time.monotonic() - told > self.grace - min(30, self.grace / 4):
                        process.kill()  # it continues from its last checkpoint
                    time.sleep(POLL_S)
                return code

    @property
    def _everyone_was_told(self) -> bool:
        """SLURM sends SIGTERM to every process of a job. A second one would interrupt torchrun while it waits."""
        return self.notice.number == signal.SIGTERM and self.place.job is not None

    def _fruitless(self, unchanged: bool) -> bool:
        """Return whether a job would stop here again and again."""
        if self.notice.number != signal.SIGUSR2 or self.limit is None:
            return False
        late = time.monotonic() - self.since > 60 * self.limit * FRUITLESS
        return late and (unchanged or not self.node.tool.trains)

    def _status(self, state: str) -> int:
        """Return the exit status for the state of the run."""
        if state == "stopped":
            return PREEMPTED if self._everyone_was_told else STOPPED
        return 0 if state == "done" else 1


def ignore_the_warning() -> None:
    """Ignore SIGUSR2, which SLURM sends to every process of a job; a run would end unsaved."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def checkpoints(folder: Path) -> frozenset[str]:
    """Return the names of the training states of a run."""
    return frozenset(path.name for path in (folder / "checkpoints").glob("*"))

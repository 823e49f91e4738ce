"""Carry a plan out on this machine: one run after the other, or several at a time on named devices.

A failed run marks what depends on it as skipped and the rest goes on. A signal stops the running tools, which save; starting again continues.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import Any, NamedTuple

from mae_transfer.disk import locked
from mae_transfer.suite import job
from mae_transfer.suite.plan import Node
from mae_transfer.suite.records import Note, State
from mae_transfer.suite.steps import close, conclude, forced, obstacle, prepare
from mae_transfer.suite.toolbox import TOOLBOX
from mae_transfer.suite.work import Work

POLL_S = 0.5
SAVE_S = 600  # for the processes of a torchrun to save in
Say = Callable[[str], None]


class Machine(NamedTuple):
    """How many runs at a time, and where."""

    jobs: int = 1
    devices: tuple[str, ...] = ()  # CUDA devices by number; each run gets one of them, where any are named
    processes: int = 1  # of each run, under torchrun where more than one

    def check(self) -> None:
        """Raise ValueError for what would run nothing, or two runs on one device."""
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: at least one run at a time, or nothing would ever run")
        if self.processes < 1:
            raise ValueError(f"--gpus-per-node {self.processes}: each run has at least one process")
        if self.devices and self.jobs > len(self.devices):
            raise ValueError(
                f"--jobs {self.jobs} on {len(self.devices)} devices (--devices): each run has one for itself"
            )
        if self.jobs > 1 and self.processes > 1:
            raise ValueError(
                f"--jobs {self.jobs} with --gpus-per-node {self.processes}: the runs would share the devices; take --jobs 1"
            )
        if self.devices and self.processes > 1:
            raise ValueError(
                f"--gpus-per-node {self.processes} on one named device (--devices): name no devices, or start one process"
            )

    @property
    def torchrun(self) -> list[str]:
        """The words that start a run on several devices."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        return [*launcher, str(self.processes)] if self.processes > 1 else []

    @property
    def threads(self) -> int | None:
        """The CPU's threads for each run; None: all."""
        return max(1, (os.cpu_count() or 1) // self.jobs) if self.jobs > 1 else None


class Running(NamedTuple):
    """A run in its process."""

    note: Note
    process: ForkServerProcess
    device: str | None
    since: float


class Runner:
    """Runs a plan: `states` says of each run how it ended, `running` what runs now.

    Args:
        say: takes a sentence whenever a run starts or ends.
        force: repeat runs with one of these in their name, though they are done, and what takes from them.
        refresh: called after runs have ended, to write the report of what there is.
    """

    def __init__(
        self,
        work: Work,
        machine: Machine,
        *,
        say: Say,
        force: Sequence[str] = (),
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        machine.check()
        self.refresh = refresh
        self.work, self.machine, self.say, self.force = work, machine, say, forced(work.plan, force)
        self.states: dict[str, State] = {}
        self.running: dict[str, Running] = {}
        self.stopping = False
        self.modules: tuple[str, ...] = ()  # what runs import, for the process that they are forked from
        self._free = list(machine.devices)

    def run(self, *, poll: Callable[[], None] = lambda: None) -> dict[str, State]:
        """Run what is not done; return how each run ended. `poll` is called about twice a second.

        Raises:
            ValueError: another suite is at work in this folder.
        """
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with locked(self.work.root / ".lock", owner=owner), Signals(self.stop):
            try:
                self.go_through(poll)
            finally:  # a full disk, say: nothing goes on unseen
                self.stop()
                for each in self.running.values():
                    each.process.join()
        return self.states

    def go_through(self, poll: Callable[[], None]) -> None:
        """Start what can start and take note of what ends, until nothing is left or the suite is stopped."""
        waiting = [name for name in self.work.plan if name in self.force or not self.work.status(name).done]
        self.states = {name: "done" for name in self.work.plan if name not in waiting}
        self.modules = () if self.machine.torchrun else modules_of(self.work.plan[name] for name in waiting)
        told = len(self.states)
        while (waiting and not self.stopping) or self.running:
            waiting = [name for name in waiting if not self.begun(self.work.plan[name])]
            if len(self.states) > told:  # after the next runs have started, which need not wait for it
                self.report()
                told = len(self.states)
            if self.running:
                wait([each.process.sentinel for each in self.running.values()], timeout=POLL_S)
            for name in [name for name, each in self.running.items() if not each.process.is_alive()]:
                self.end(name)
            poll()
        for name in waiting:
            self.states[name] = "stopped"

    def begun(self, node: Node) -> bool:
        """Start a run if its inputs are there and there is room; skip it if they never will be. Return whether it has left the queue."""
        needs = {need: self.states[need] for need in (*node.needs, *node.points) if need in self.states}
        if self.stopping or len(needs) < len({*node.needs, *node.points}):
            return False
        if reason := obstacle(node, needs):
            self.tell(close(self.work, self.work.note(node, []), "skipped", reason))
            return True
        if len(self.running) >= self.machine.jobs:
            return False
        self.start(node)
        return True

    def start(self, node: Node) -> None:
        """Start a run."""
        note, why = prepare(self.work, node, again=node.name in self.force, torchrun=self.machine.torchrun)
        if note.state == "failed":
            self.tell(note)
            return
        device = self._free.pop(0) if self._free else None
        environment = {job.TORCHRUN_WAITS: str(SAVE_S)} | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        self.say(f"start {node.name} ({why})")
        folder = self.work.folder(node.name)
        process = job.start(
            note.command, folder, environment=environment, modules=self.modules, threads=self.machine.threads
        )
        self.running[node.name] = Running(note, process, device, time.monotonic())

    def end(self, name: str) -> None:
        """Take note of a run whose process has ended."""
        ended = self.running.pop(name)
        ended.process.join()
        self._free += [] if ended.device is None else [ended.device]
        seconds = time.monotonic() - ended.since
        self.tell(conclude(self.work, ended.note, code=ended.process.exitcode, seconds=seconds, stopping=self.stopping))

    def report(self) -> None:
        """Write the report of what has ended so far; the suite goes on whatever becomes of it."""
        try:
            self.refresh()
        except Exception as error:
            self.say(f"the report is not up to date: {type(error).__name__}: {error}")

    def tell(self, note: Note) -> None:
        """Remember and say how a run ended."""
        self.states[note.name] = note.state
        self.say(
            f"{note.state} {note.name}"
            + (f" after {note.seconds:.0f} s" if note.seconds else "")
            + (f": {note.reason}" if note.reason else "")
        )

    def stop(self) -> None:
        """Start nothing more, and ask what runs to save and stop."""
        self.stopping = True
        for each in self.running.values():
            if each.process.is_alive():
                each.process.terminate()


def modules_of(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return all that runs import."""
    found: dict[str, None] = {}
    for kind, config in dict.fromkeys((node.kind, node.config) for node in nodes):
        with suppress(ValueError):  # a config that cannot be read is the failure of its run
            found |= dict.fromkeys(TOOLBOX[kind].modules(config))
    return tuple(found)


class Signals:
    """Turns SIGTERM and Ctrl-C into a call. Context manager."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._call()

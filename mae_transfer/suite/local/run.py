"""Runs a plan on this machine: one run after the other, or several at a time on named devices.

If a run fails, the runs that depend on it are skipped and the others go on. A signal stops the running tools, which
save. The same command continues.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import Any, NamedTuple

from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import Node
from mae_transfer.suite.graph.toolbox import TOOLBOX
from mae_transfer.suite.local import job
from mae_transfer.suite.store.records import Note, State, read_note
from mae_transfer.suite.store.steps import close, conclude, forced, keep_finished, obstacle, prepare, publish, reuse
from mae_transfer.suite.store.work import Work

POLL_S = 0.5
SAVE_S = 600  # time that torchrun gives its processes to save
Say = Callable[[str], None]


class Machine(NamedTuple):
    """The number of runs at a time, and their devices."""

    jobs: int = 1
    devices: tuple[str, ...] = ()  # numbers of CUDA devices; each run gets one of them; empty: all runs see all
    processes: int = 1  # per run; more than one are started by torchrun

    def check(self) -> None:
        """Raise ValueError if nothing could run, or if two runs would share a device."""
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: must be at least 1")
        if self.processes < 1:
            raise ValueError(f"--gpus-per-node {self.processes}: must be at least 1")
        if self.devices and self.jobs > len(self.devices):
            raise ValueError(
                f"--jobs {self.jobs} on {len(self.devices)} devices: each run needs its own device; "
                f"use --jobs {len(self.devices)}, or name more devices with --devices"
            )
        if self.jobs > 1 and self.processes > 1:
            raise ValueError(
                f"--jobs {self.jobs} with --gpus-per-node {self.processes}: the runs would share the devices; "
                "use --jobs 1"
            )
        if self.devices and self.processes > 1:
            raise ValueError(
                f"--gpus-per-node {self.processes} with --devices: a run gets only one named device; "
                "remove --devices, or use --gpus-per-node 1"
            )

    @property
    def torchrun(self) -> list[str]:
        """Arguments that start a run on several devices; empty for one process."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        return [*launcher, str(self.processes)] if self.processes > 1 else []

    @property
    def threads(self) -> int | None:
        """CPU threads of each run; None: all."""
        return max(1, (os.cpu_count() or 1) // self.jobs) if self.jobs > 1 else None


class Running(NamedTuple):
    """A run and its process."""

    note: Note
    process: ForkServerProcess
    device: str | None
    since: float
    claim: ExitStack  # of its identity in the store


class Runner:
    """Runs a plan. `states` holds the final state of each ended run, `running` the runs in progress.

    Args:
        say: called with a message whenever a run starts or ends.
        force: repeat runs with one of these texts in their name, and the runs that depend on them.
        replace: also repeat finished runs that have changed; otherwise they are an error.
        refresh: called after runs have ended, to update the report.
    """

    def __init__(
        self,
        work: Work,
        machine: Machine,
        *,
        say: Say,
        force: Sequence[str] = (),
        replace: bool = False,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        machine.check()
        self.refresh, self.replace = refresh, replace
        self.work, self.machine, self.say, self.force = work, machine, say, forced(work.plan, force)
        self.states: dict[str, State] = {}
        self.running: dict[str, Running] = {}
        self.stopping = False
        self.modules: tuple[str, ...] = ()  # imports of all runs, for the process that they are forked from
        self._free = list(machine.devices)
        self._told: set[str] = set()  # the runs whose waiting was reported

    def run(self, *, poll: Callable[[], None] = lambda: None) -> dict[str, State]:
        """Run what is not done; return how each run ended. `poll` is called about twice a second.

        Raises:
            ValueError: another suite uses this work dir, or finished runs have changed.
        """
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with locked(self.work.root / ".lock", owner=owner), Signals(self.stop):
            if not self.replace:
                keep_finished(self.work, self.force)
            try:
                self._run_all(poll)
            finally:  # after an error (such as a full disk), no run continues in the background
                self.stop()
                for each in self.running.values():
                    each.process.join()
        return self.states

    def _run_all(self, poll: Callable[[], None]) -> None:
        """Start runs and record their ends until none is left or the suite is stopped."""
        waiting = [name for name in self.work.plan if name in self.force or not self.work.status(name).done]
        self.states = {name: "done" for name in self.work.plan if name not in waiting}
        for name in self.states if self.work.store else ():
            note, _ = read_note(self.work.folder(name))
            if note and (problem := publish(self.work, note)):
                self.say(problem)
        self.modules = () if self.machine.torchrun else modules_of(self.work.plan[name] for name in waiting)
        reported = len(self.states)
        while (waiting and not self.stopping) or self.running:
            waiting = [name for name in waiting if not self._start_or_skip(self.work.plan[name])]
            if len(self.states) > reported:  # the next runs have started already and do not wait for the report
                self.report()
                reported = len(self.states)
            if self.running:
                wait([each.process.sentinel for each in self.running.values()], timeout=POLL_S)
            elif waiting:  # for runs of another suite
                time.sleep(POLL_S)
            for name in [name for name, each in self.running.items() if not each.process.is_alive()]:
                self.end(name)
            poll()
        for name in waiting:
            self.states[name] = "stopped"

    def _start_or_skip(self, node: Node) -> bool:
        """Start a run if its inputs and a slot are free, or skip it if its inputs failed.

        Return whether the run has left the queue.
        """
        needs = {need: self.states[need] for need in (*node.needs, *node.points) if need in self.states}
        if self.stopping or len(needs) < len({*node.needs, *node.points}):
            return False
        if reason := obstacle(node, needs):
            self._report_end(close(self.work, self.work.note(node, []), "skipped", reason))
            return True
        if node.name not in self.force and (note := reuse(self.work, node)):
            self._report_end(note)
            return True
        if len(self.running) >= self.machine.jobs:
            return False
        return self.start(node)

    def start(self, node: Node) -> bool:
        """Start a run. Return False if another suite makes it just now."""
        claim = ExitStack()
        if self.work.store is not None:
            try:
                claim.enter_context(self.work.store.claim(self.work.identity(node.name), f"suite {self.work.suite!r}"))
            except ValueError:
                if node.name not in self._told:
                    self.say(f"wait for {node.name}: another suite runs it for the store")
                    self._told.add(node.name)
                return False
            if node.name not in self.force and (note := reuse(self.work, node)):  # finished since the last look
                claim.close()
                self._report_end(note)
                return True
        note, why = prepare(self.work, node, again=node.name in self.force, torchrun=self.machine.torchrun)
        if note.state == "failed":
            claim.close()
            self._report_end(note)
            return True
        device = self._free.pop(0) if self._free else None
        environment = {job.TORCHRUN_WAITS: str(SAVE_S)} | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        self.say(f"start {node.name} ({why})")
        folder = self.work.folder(node.name)
        process = job.start(
            note.command, folder, environment=environment, modules=self.modules, threads=self.machine.threads
        )
        self.running[node.name] = Running(note, process, device, time.monotonic(), claim)
        return True

    def end(self, name: str) -> None:
        """Record the end of a run whose process has ended."""
        ended = self.running.pop(name)
        ended.process.join()
        self._free += [] if ended.device is None else [ended.device]
        seconds = time.monotonic() - ended.since
        code = ended.process.exitcode
        with ended.claim:
            note = conclude(self.work, ended.note, code=code, seconds=seconds, stopping=self.stopping)
        self._report_end(note)

    def report(self) -> None:
        """Write the report of the runs that have ended so far. Errors are printed and do not stop the suite."""
        try:
            self.refresh()
        except Exception as error:
            self.say(f"the report was not updated: {type(error).__name__}: {error}")

    def _report_end(self, note: Note) -> None:
        """Store and print how a run ended."""
        self.states[note.name] = note.state
        self.say(
            f"{note.state} {note.name}"
            + (f" after {note.seconds:.0f} s" if note.seconds else "")
            + (f": {note.reason}" if note.reason else "")
        )

    def stop(self) -> None:
        """Start no further runs, and ask the running ones to save and stop."""
        self.stopping = True
        for each in self.running.values():
            if each.process.is_alive():
                each.process.terminate()


def modules_of(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return the modules that runs import."""
    found: dict[str, None] = {}
    for kind, config in dict.fromkeys((node.kind, node.config) for node in nodes):
        with suppress(ValueError):  # a config that cannot be read fails its run later
            found |= dict.fromkeys(TOOLBOX[kind].modules(config))
    return tuple(found)


class Signals:
    """Context manager that calls a function on SIGTERM and Ctrl-C."""

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

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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import MappingProxyType
from typing import NamedTuple, Self

from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import Node
from mae_transfer.suite.graph.shape import Shape
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
    devices: tuple[str, ...] = ()  # CUDA devices to choose from; empty: each run sees all
    processes: int = 1  # the most per run; more than one are started by torchrun
    named: bool = True  # the devices were named, so that no two runs share one

    @classmethod
    def parse(cls, *, jobs: int | None, devices: str, processes: int, cuda: bool = True) -> Self:
        """Return the machine of a command line. Several runs without named devices share the visible ones evenly.

        cuda: whether the runs may use CUDA devices.
        """
        named = tuple(filter(None, devices.split(",")))
        jobs = max(1, len(named) // max(1, processes)) if jobs is None else jobs
        return cls(jobs, named or (visible_devices() if jobs > 1 and cuda else ()), processes, bool(named))

    def check(self) -> None:
        """Raise ValueError if nothing could run, or if two runs would share a device that was named for one."""
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: must be at least 1")
        if self.processes < 1:
            raise ValueError(f"--gpus-per-node {self.processes}: must be at least 1")
        most = len(self.devices) // self.processes
        if self.devices and self.named and most < 1:
            raise ValueError(
                f"--gpus-per-node {self.processes} with --devices {','.join(self.devices)}: name more devices, or use "
                f"--gpus-per-node {len(self.devices)}"
            )
        if self.jobs > most and (self.devices and self.named if self.processes == 1 else self.jobs > 1):
            raise ValueError(
                f"--jobs {self.jobs} with --gpus-per-node {self.processes} on {len(self.devices)} devices: the runs "
                f"would share devices; use --jobs {max(1, most)}, or name more devices with --devices"
            )

    @property
    def threads(self) -> int | None:
        """CPU threads of each run; None: all that this process may use."""
        return max(1, cores() // self.jobs) if self.jobs > 1 else None


def torchrun(gpus: int) -> list[str]:
    """Return the arguments that start a run on several devices of this machine; empty for one process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*launcher, str(gpus)] if gpus > 1 else []


def cores() -> int:
    """Return how many CPU cores this process may use, which is fewer than the machine has in a job or a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> tuple[str, ...]:
    """Return the CUDA devices that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    count = torch.cuda.device_count()
    return named[:count] or tuple(map(str, range(count)))


class Running(NamedTuple):
    """A run and its process."""

    note: Note
    process: ForkServerProcess
    devices: tuple[str, ...]  # empty: it sees all
    since: float
    claim: ExitStack  # of its identity in the store


class Runner:
    """Runs a plan. `states` holds the final state of each ended run, `running` the runs in progress.

    Args:
        shapes: the number of GPUs of each run; runs that are left out get `machine.processes`.
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
        shapes: Mapping[str, Shape] = MappingProxyType({}),
        force: Sequence[str] = (),
        replace: bool = False,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        machine.check()
        if (
            work.device in (None, "auto", "cuda")
            and not machine.devices
            and 0 < (seen := len(visible_devices())) < machine.processes
        ):
            raise ValueError(
                f"--gpus-per-node {machine.processes}: this machine shows {seen} CUDA devices; "
                f"use --gpus-per-node {seen}"
            )
        self.refresh, self.shapes, self.replace = refresh, shapes, replace
        self.work, self.machine, self.say, self.force = work, machine, say, forced(work.plan, force)
        self.states: dict[str, State] = {}
        self.running: dict[str, Running] = {}
        self.stopping = False
        self.modules: tuple[str, ...] = ()  # imports of all runs, for the process that they are forked from
        self._told: set[str] = set()  # the runs whose waiting was reported

    def run(self, *, poll: Callable[[], None] = lambda: None) -> dict[str, State]:
        """Run what is not done; return how each run ended. `poll` is called about twice a second.

        Raises:
            ValueError: another suite uses this work dir, or finished runs have changed.
        """
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with locked(self.work.root / ".lock", owner=owner), on_signals(self.stop):
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
        for name in self.states:
            note, _ = read_note(self.work.folder(name))
            if note and not self.work.archived(name) and (problem := publish(self.work, note)):
                self.say(problem)
        self.modules = modules_of(self.work.plan[name] for name in waiting if self._gpus(name) == 1)
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
        gpus = self._gpus(node.name)
        note, why = prepare(self.work, node, again=node.name in self.force, torchrun=torchrun(gpus))
        if note.state == "failed":
            claim.close()
            self._report_end(note)
            return True
        devices = self._least_used(gpus)
        environment = {job.TORCHRUN_WAITS: str(SAVE_S)}
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        self.say(f"start {node.name} ({why})")
        folder = self.work.folder(node.name)
        process = job.start(
            note.command, folder, environment=environment, modules=self.modules, threads=self.machine.threads
        )
        self.running[node.name] = Running(note, process, devices, time.monotonic(), claim)
        if self.stopping:  # the signal came while the process started
            self.stop()
        return True

    def _gpus(self, name: str) -> int:
        return self.shapes[name].gpus if name in self.shapes else self.machine.processes

    def _least_used(self, count: int) -> tuple[str, ...]:
        """Return the devices with the fewest runs."""
        used = Counter(device for each in self.running.values() for device in each.devices)
        return tuple(sorted(self.machine.devices, key=lambda device: used[device])[:count])

    def end(self, name: str) -> None:
        """Record the end of a run whose process has ended."""
        ended = self.running.pop(name)
        ended.process.join()
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


@contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call a function on SIGTERM and Ctrl-C."""
    before = {number: signal.signal(number, lambda *_: call()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

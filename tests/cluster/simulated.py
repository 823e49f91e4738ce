"""A SLURM cluster on this machine: the user's commands, and a controller that really runs the job scripts.

This program is every command: the name that it is called by says which (STATE/bin/sbatch). STATE/cluster.json holds
the settings (class Settings), STATE/jobs.json all jobs. Nodes are addresses of the loopback network, so torchrun's
processes find each other by the names of their nodes. Faults are drawn from a seed: preemptions, node failures and
early time limits. What real SLURM does was checked against its sources and against Debian's 22.05.8:

- A script and its steps see the same SLURM_* variables as there. SLURM_RESTART_COUNT is only set after a requeue.
- srun does not inherit --cpus-per-task (22.05 to 23.02): a step without it runs on one CPU.
- `--signal`, preemption and scancel signal every process of the steps; a time limit ends the script, too.
- A preempted job is queued again only if it is still alive when its grace time ends.
- `--dependency` can never be satisfied again if an `afterok` failed: the job stays pending.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "srun", "sinfo", "scontrol")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
MARK = "SIMULATED_JOB"  # environment variable of every process of a job
KNOWN = (  # options of sbatch that are accepted; any other is an error, as in the real one
    "account", "array", "chdir", "comment", "constraint", "container", "cpus-per-task", "dependency", "error",
    "exclude", "export", "gpus-per-node", "gres", "job-name", "mem", "nodelist", "nodes", "ntasks-per-node",
    "open-mode", "output", "partition", "qos", "signal", "time",
)  # fmt: skip
SWITCHES = ("requeue", "no-requeue", "exclusive", "parsable")
TASK_OPTIONS = (
    "ntasks-per-node", "cpus-per-task", "nodes", "ntasks", "output", "error", "kill-on-bad-exit", "container-image",
)  # fmt: skip


@dataclass
class Settings:
    """The cluster and its faults."""

    nodes: tuple[str, ...] = ("127.0.0.1", "127.0.0.2")
    cpus: int = 128  # per node, as gpus and gib
    gpus: int = 8
    gib: int = 512
    partitions: dict[str, float | None] = field(default_factory=lambda: {"gpu": 1440.0})  # maximum minutes of a job
    accounts: tuple[str, ...] = ("vision",)
    array_size: int = 1001  # MaxArraySize
    slots: int = 2  # jobs at a time on a node
    minute_s: float = 60.0  # real seconds of a minute of a time limit
    kill_wait_s: float = 2.0  # between SIGTERM and SIGKILL
    grace_s: float = 2.0  # the same for a preempted job
    skew_s: float = 0.0  # the clock of each node is ahead of that of the node before by this (forked.py)
    seed: int | None = None  # of the faults; None: none happen
    faults: int = 3  # at most, for each job
    window_s: float = 3.0  # a fault happens this long after a start at the latest


class State:
    """The folder of a cluster."""

    def __init__(self, root: Path) -> None:
        self.root, self.settings = root, Settings(**json.loads((root / "cluster.json").read_text()))

    @contextmanager
    def jobs(self) -> Iterator[list[dict[str, Any]]]:
        """Yield all jobs; changes are kept."""
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.root / "jobs.json"
            jobs = json.loads(file.read_text()) if file.exists() else []
            before = json.dumps(jobs)
            yield jobs
            if (after := json.dumps(jobs)) != before:
                (self.root / "jobs.tmp").write_text(after)
                (self.root / "jobs.tmp").replace(file)


def install(root: Path, **settings: Any) -> Path:
    """Make a cluster in a folder; return the folder with its commands."""
    programs = root / "bin"
    programs.mkdir(parents=True)
    (root / "cluster.json").write_text(json.dumps(asdict(Settings(**settings))))
    for name in COMMANDS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "{__file__}" "{root}" {name} "$@"\n')
        program.chmod(0o755)
    return programs


def identity(job: dict[str, Any]) -> str:
    return str(job["array"]) if job["element"] is None else f"{job['array']}_{job['element']}"


def matches(job: dict[str, Any], number: str) -> bool:
    """Return whether a job has this number: of its array, of its element or its own."""
    return number in (str(job["array"]), identity(job), str(job["raw"]))


def sbatch(state: State, arguments: list[str]) -> int:
    switches, pairs, rest = [], [], list(arguments)
    script = Path(next(word for word in rest if not word.startswith("-")))
    rest.remove(str(script))
    lines = script.read_text().splitlines()
    for word in [line.removeprefix("#SBATCH ").strip() for line in lines if line.startswith("#SBATCH ")] + rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if key not in (KNOWN if equals else SWITCHES):
            return refuse(f"sbatch: unrecognized option '{word}'")
        (pairs if equals else switches).append((key, value.strip("'\"")))
    options = dict(pairs)
    if reason := reason_to_refuse(state.settings, options):
        return refuse(f"sbatch: error: {reason}")
    given = options.get("array", "").partition("%")
    elements = [int(n) for span in given[0].split(",") for n in spread(span)] if given[0] else [None]
    with state.jobs() as jobs:
        first = max((job["raw"] for job in jobs), default=40) + 1
        spool = state.root / "spool"
        spool.mkdir(exist_ok=True)
        shutil.copy(script, spool / f"{first}.sh")
        (spool / f"{first}.json").write_text(json.dumps(dict(os.environ)))
        for place, element in enumerate(elements):
            jobs.append(
                {
                    "raw": first + place, "array": first, "element": element, "script": str(script.resolve()),
                    "options": options, "requeue": ("no-requeue", "") not in switches, "folder": str(Path.cwd()),
                    "name": options.get("job-name", script.name), "state": "PENDING", "reason": "None", "restarts": 0,
                    "throttle": int(given[2] or 0), "nodes": [], "starts": [], "history": [],
                }
            )  # fmt: skip
    print(f"{first}" if ("parsable", "") in switches else f"Submitted batch job {first}")
    return 0


def spread(span: str) -> range:
    low, _, high = span.partition("-")
    return range(int(low), int(high or low) + 1)


def reason_to_refuse(settings: Settings, options: dict[str, str]) -> str | None:
    """Return the message of real sbatch for a job that can never run."""
    failed = "Batch job submission failed: "
    partition = options.get("partition", next(iter(settings.partitions)))
    if partition not in settings.partitions:
        return f"invalid partition specified: {partition}\nsbatch: error: {failed}Invalid partition name specified"
    if options.get("account", settings.accounts[0]) not in settings.accounts:
        return failed + "Invalid account or account/partition combination specified"
    last = options.get("array", "0").partition("%")[0].rpartition("-")[2]
    if int(last.rpartition(",")[2]) >= settings.array_size:
        return failed + "Invalid job array specification"
    most, asked = settings.partitions[partition], minutes(options.get("time", "0"))
    if most is not None and asked > most:
        return failed + "Requested time limit is invalid (missing or exceeds some limit)"
    gpus = int(options.get("gpus-per-node", options.get("gres", "0")).split(":")[-1])
    gib = float(re.sub(r"G$", "", options.get("mem", "0")))
    wide = int(options.get("nodes", 1)) > len(settings.nodes)
    if wide or gpus > settings.gpus or gib > settings.gib or int(options.get("cpus-per-task", 1)) > settings.cpus:
        return failed + "Requested node configuration is not available"
    return None


def minutes(text: str) -> float:
    """Return the minutes of a time limit: "90", "1:30:00" or "1-00:00:00"."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) == 1:
        return parts[0] * (60 if dash else 1) + 1440 * int(days or 0)
    hours, mins, seconds = parts if len(parts) == 3 else (0, *parts)
    return 1440 * int(days or 0) + 60 * hours + mins + seconds / 60


def refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def listing(state: State, arguments: list[str], *, command: str) -> int:
    """Squeue and sacct."""
    parser = argparse.ArgumentParser(prog=command, add_help=False)
    for option in ("--noheader", "-h", "--array", "-r", "--me", "--parsable2", "-P", "-X"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("-o", "--format", default="%i %T" if command == "squeue" else "JobID,State")
    parser.add_argument("-j", "--jobs", action="append")
    parser.add_argument("-u", "--user")
    args = parser.parse_args(arguments)
    if (state.root / "deaf").exists():
        return refuse(f"{command}: error: slurm_load_jobs error: Socket timed out on send/recv operation")
    wanted = ",".join(args.jobs or ()).split(",")
    with state.jobs() as jobs:
        found = [job for job in jobs if wanted == [""] or any(matches(job, number) for number in wanted)]
    if command == "squeue":
        for job in found:
            if job["state"] not in ENDED:
                print(filled(args.format, fields(job)))
        return 0
    keys = args.format.split(",")
    if not (args.noheader or args.h):
        print("|".join(keys))
    for job in found:
        names = {"JobID": identity(job), "State": job["state"], "JobName": job["name"], "ExitCode": "0:0"}
        print("|".join(names[key] for key in keys))
    return 0


def filled(text: str, values: dict[str, str]) -> str:
    """Return a format of squeue or sinfo with its letters replaced."""
    return re.sub(r"%[.\d]*(\w)", lambda code: values[code[1]], text)


def fields(job: dict[str, Any]) -> dict[str, str]:
    """Return what squeue's format letters stand for."""
    nodes = ",".join(job["nodes"])
    return {
        "i": identity(job), "A": str(job["raw"]), "F": str(job["array"]), "K": str(job["element"]), "o": job["script"],
        "T": job["state"], "j": job["name"], "k": job["options"].get("comment", ""), "N": nodes,
        "R": nodes or f"({job['reason']})", "r": job["reason"], "P": job["options"].get("partition", ""),
    }  # fmt: skip


def scancel(state: State, arguments: list[str]) -> int:
    number = next((word.partition("=")[2] for word in arguments if word.startswith("--signal=")), "")
    with state.jobs() as jobs:
        for job in jobs:
            if job["state"] in ENDED or not any(matches(job, word) for word in arguments):
                continue
            if number:
                send(job, signal.Signals[f"SIG{number.removeprefix('SIG')}"])
            elif job["state"] == "PENDING":
                job["state"] = "CANCELLED"
            else:
                end_soon(job, "CANCELLED", state.settings.kill_wait_s)
    return 0


def scontrol(state: State, arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        prefix, _, spans = arguments[2].rstrip("]").partition("[")
        print("\n".join(f"{prefix}{n}" for s in spans.split(",") for n in spread(s)) if spans else prefix)
        return 0
    if arguments == ["show", "config"]:
        print(f"Configuration data\nMaxArraySize            = {state.settings.array_size}\nMaxJobCount  = 10000")
        return 0
    if arguments[0] == "requeue":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be a process of the job itself
        with state.jobs() as jobs:
            job = next(job for job in jobs if matches(job, arguments[1]))
            if job["state"] != "RUNNING" or not job["requeue"]:
                return refuse("Requested operation is presently disabled for job " + arguments[1])
            end_soon(job, "PENDING", state.settings.kill_wait_s)
        return 0
    if arguments[0] == "update":
        values = dict(word.split("=") for word in arguments[1:])
        with state.jobs() as jobs:
            job = next(job for job in jobs if matches(job, values["JobId"]))
            seconds = float(values["StartTime"].removeprefix("now+")) * state.settings.minute_s / 60
            job["begin"] = time.monotonic() + seconds
        return 0
    return refuse(f"scontrol: the simulated cluster does not know {' '.join(arguments)}")


def sinfo(state: State, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="sinfo", add_help=False)
    parser.add_argument("-h", "--noheader", action="store_true")
    parser.add_argument("-o", "--format", default="%P %l")
    parser.add_argument("-p", "--partition")
    args = parser.parse_args(arguments)
    for place, (name, most) in enumerate(state.settings.partitions.items()):
        if args.partition in (None, name):
            spell = "infinite" if most is None else f"{most // 1440:.0f}-{most % 1440 // 60:02.0f}:{most % 60:02.0f}:00"
            values = {"P": name + ("" if place else "*"), "R": name, "l": spell, "a": "up"}
            print(filled(args.format, values))
    return 0


def srun(state: State, arguments: list[str]) -> int:
    """Run a command once per node, as a step of the job around it."""
    words, options = list(arguments), {}
    while words and words[0].startswith("-"):
        key, _, value = words.pop(0).removeprefix("--").partition("=")
        if key not in (*TASK_OPTIONS, "unbuffered", "export"):
            return refuse(f"srun: unrecognized option '--{key}'")
        options[key] = value
    hosts = os.environ["SIMULATED_NODES"].split(",")
    tasks = []
    for rank, host in enumerate(hosts):
        own = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0, "SLURMD_NODENAME": host}
        own |= {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_NODES": len(hosts), "SIMULATED_STEP": 1}
        environment = {key: value for key, value in os.environ.items() if key != "SLURM_CPUS_PER_TASK"}
        environment |= {key: str(value) for key, value in own.items()}
        if "cpus-per-task" in options:
            environment["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
        narrow = None if "cpus-per-task" in options else on_one_cpu
        tasks.append(subprocess.Popen(words, env=environment, start_new_session=True, preexec_fn=narrow))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
    return max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks])


def on_one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def processes(job: dict[str, Any], *, steps: bool = True) -> Iterator[int]:
    """Yield the processes of a job; of its steps, or all."""
    mark, step = f"{MARK}={job['mark']}".encode(), b"SIMULATED_STEP=1"
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found = (folder / "environ").read_bytes().split(b"\0")
            if mark in found and (not steps or step in found):
                yield int(folder.name)


def send(job: dict[str, Any], number: int, *, steps: bool = True) -> None:
    for process in processes(job, steps=steps):
        with suppress(ProcessLookupError):
            os.kill(process, number)


def end_soon(job: dict[str, Any], then: str, seconds: float, *, steps: bool = True, again: bool = False) -> None:
    """Send SIGTERM, and SIGKILL after some seconds; `then` is the state of the job after that.

    Args:
        again: the job is queued again only if it is alive to be killed.
    """
    job |= {"then": then, "kill_at": time.monotonic() + seconds, "alive": again}
    send(job, signal.SIGTERM, steps=steps)


class Controller:
    """Starts, signals, ends and requeues the jobs until STATE/stop exists or its parent ends."""

    def __init__(self, state: State) -> None:
        self.state, self.settings = state, state.settings
        self.scripts: dict[int, subprocess.Popen[bytes]] = {}

    def run(self) -> int:
        parent = os.getppid()
        while not (self.state.root / "stop").exists() and os.getppid() == parent:
            with self.state.jobs() as jobs:
                for job in jobs:
                    if job["state"] == "PENDING":
                        self.consider(job, jobs)
                    elif job["state"] == "RUNNING":
                        self.watch(job)
            time.sleep(0.05)
        with self.state.jobs() as jobs:
            for job in jobs:
                if job["state"] == "RUNNING":
                    send(job, signal.SIGKILL, steps=False)
        return 0

    def consider(self, job: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
        """Start a job if its dependencies are satisfied and enough nodes are free."""
        job["reason"] = "BeginTime" if job.get("begin", 0) > time.monotonic() else dependency(job, jobs)
        if job["reason"] != "None":
            return
        running = [other for other in jobs if other["state"] == "RUNNING"]
        if job["throttle"] and sum(other["array"] == job["array"] for other in running) >= job["throttle"]:
            job["reason"] = "JobArrayTaskLimit"
            return
        load = [node for other in running for node in other["nodes"]]
        free = [node for node in self.settings.nodes if load.count(node) < self.settings.slots]
        wanted = int(job["options"].get("nodes", 1))
        if len(free) < wanted:
            job["reason"] = "Resources"
            return
        self.start(job, sorted(free, key=load.count)[:wanted])

    def start(self, job: dict[str, Any], nodes: list[str]) -> None:
        options, now, spool = job["options"], time.monotonic(), self.state.root / "spool"
        most = self.settings.partitions[options.get("partition", next(iter(self.settings.partitions)))]
        limit = minutes(options["time"]) if "time" in options else most
        name, _, before = options.get("signal", "").partition("@")
        job |= {
            "state": "RUNNING", "nodes": sorted(nodes), "mark": f"{job['raw']}.{job['restarts']}.{self.state.root}",
            "then": None, "kill_at": None, "fault": self.fault(job, now),
            "limit_at": None if limit is None else now + limit * self.settings.minute_s,
            "signal": [name.removeprefix("B:"), float(before or 60)] if name else None,
        }  # fmt: skip
        job["starts"].append(now)
        environment = json.loads((spool / f"{job['array']}.json").read_text()) | variables(job)
        environment["SIMULATED_SKEW"] = str(self.settings.skew_s * self.settings.nodes.index(job["nodes"][0]))
        script = subprocess.Popen(
            ["/bin/bash", str(spool / f"{job['array']}.sh")],
            env=environment, cwd=job["folder"], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=output(job, "output"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.scripts[job["raw"]] = script

    def fault(self, job: dict[str, Any], now: float) -> list[Any] | None:
        """Return what goes wrong with this start of a job, and when."""
        if self.settings.seed is None or job["restarts"] >= self.settings.faults:
            return None
        rng = random.Random(f"{self.settings.seed} {job['raw']} {job['restarts']}")
        kind = rng.choice(("none", "preemption", "node failure", "time limit"))
        return None if kind == "none" else [kind, now + rng.uniform(0, self.settings.window_s)]

    def watch(self, job: dict[str, Any]) -> None:
        """Send a running job the signals that are due, and record its end."""
        now, code = time.monotonic(), self.scripts[job["raw"]].poll()
        if code is not None:
            self.end(job, code)
            return
        if job["kill_at"] is not None:
            if now > job["kill_at"]:
                job["alive"] = False
                send(job, signal.SIGKILL, steps=False)
            return
        # A real time limit does not come before the first step, which could not be warned.
        if job["fault"] and now > job["fault"][1] and (job["fault"][0] != "time limit" or any(processes(job))):
            kind, job["fault"] = job["fault"][0], None
            job["history"].append(kind)
            if kind == "preemption":
                end_soon(job, "PENDING", self.settings.grace_s, again=True)
            elif kind == "node failure":
                job |= {"then": "PENDING" if job["requeue"] else "NODE_FAIL", "kill_at": now, "alive": False}
                send(job, signal.SIGKILL, steps=False)
            else:
                job["limit_at"] = now + (job["signal"][1] if job["signal"] else 0)
        if job["limit_at"] is not None and job["signal"] and now > job["limit_at"] - job["signal"][1]:
            send(job, signal.Signals[f"SIG{job['signal'][0].removeprefix('SIG')}"])
            job["signal"] = None
        if job["limit_at"] is not None and now > job["limit_at"]:
            end_soon(job, "TIMEOUT", self.settings.kill_wait_s, steps=False)

    def end(self, job: dict[str, Any], code: int) -> None:
        send(job, signal.SIGKILL, steps=False)
        then = None if job.get("alive") else job["then"]
        job["state"] = then or ("COMPLETED" if code == 0 else "FAILED")
        job["nodes"] = []
        if then == "PENDING":
            job["restarts"] += 1


def dependency(job: dict[str, Any], jobs: list[dict[str, Any]]) -> str:
    """Return why a job waits for others: SLURM's reason, "None" if it does not."""
    for condition in filter(None, job["options"].get("dependency", "").split(",")):
        kind, *numbers = condition.split(":")
        needs = [other for other in jobs if any(matches(other, number) for number in numbers)]
        if kind == "aftercorr":
            needs = [other for other in needs if other["element"] == job["element"]]
        states = [other["state"] for other in needs]
        if kind in ("afterok", "aftercorr") and any(state in ENDED[1:] for state in states):
            return "DependencyNeverSatisfied"
        if any(state not in ENDED for state in states):
            return "Dependency"
    return "None"


def variables(job: dict[str, Any]) -> dict[str, str]:
    """Return the environment that SLURM gives a script."""
    options, nodes = job["options"], job["nodes"]
    prefix = nodes[0].rpartition(".")[0] + "."
    several = f"{prefix}[{','.join(node.removeprefix(prefix) for node in nodes)}]" if len(nodes) > 1 else nodes[0]
    found = {
        MARK: job["mark"], "SIMULATED_NODES": ",".join(nodes), "SLURM_JOB_ID": job["raw"], "SLURM_JOBID": job["raw"],
        "SLURM_JOB_NAME": job["name"], "SLURM_JOB_NODELIST": several, "SLURM_NODELIST": several, "SLURM_PROCID": 0,
        "SLURM_JOB_NUM_NODES": len(nodes), "SLURM_NNODES": len(nodes), "SLURM_NODEID": 0, "SLURM_LOCALID": 0,
        "SLURMD_NODENAME": nodes[0], "SLURM_SUBMIT_DIR": job["folder"], "SLURM_CLUSTER_NAME": "simulated",
    }  # fmt: skip
    if job["element"] is not None:
        found |= {"SLURM_ARRAY_JOB_ID": job["array"], "SLURM_ARRAY_TASK_ID": job["element"]}
    if job["restarts"]:
        found["SLURM_RESTART_COUNT"] = job["restarts"]
    for option in ("cpus-per-task", "ntasks-per-node"):
        if option in options:
            found[f"SLURM_{option.upper().replace('-', '_')}"] = options[option]
    return {key: str(value) for key, value in found.items()}


def output(job: dict[str, Any], option: str) -> int:
    """Open the file that a script writes to."""
    names = {"A": job["array"], "a": job["element"], "j": job["raw"], "x": job["name"]}
    path = re.sub(r"%([Aajx])", lambda code: str(names[code[1]]), job["options"].get(option, "slurm-%j.out"))
    how = os.O_APPEND if job["options"].get("open-mode") == "append" else os.O_TRUNC
    return os.open(Path(job["folder"]) / path, os.O_CREAT | os.O_WRONLY | how, 0o644)


def main() -> int:
    state, command, arguments = State(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
    if command == "controller":
        return Controller(state).run()
    if command in ("squeue", "sacct"):
        return listing(state, arguments, command=command)
    commands = {"sbatch": sbatch, "scancel": scancel, "srun": srun, "sinfo": sinfo, "scontrol": scontrol}
    return commands[command](state, arguments)


if __name__ == "__main__":
    sys.exit(main())

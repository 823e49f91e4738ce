"""The script of a job: bash that sets up a node and starts a run with tools/reproduce.py --run.

Scripts are readable and can be run by hand. WORK_DIR/slurm/ holds those of SLURM, WORK_DIR/jobs/ those for other
schedulers (`--launcher jobfile`) and their manifest, jobs.json.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mae_transfer.suite.graph.plan import Node
from mae_transfer.suite.graph.shape import Shape
from mae_transfer.suite.slurm.cluster import ClusterConfig
from mae_transfer.suite.slurm.job import BUSY, PREEMPTED, STOPPED
from mae_transfer.suite.store.records import write_whole
from mae_transfer.suite.store.steps import forced, make_room
from mae_transfer.suite.store.work import Work

FIRST_PORT, PORTS = 20000, 10000  # of torchrun's rendezvous: below the ports that systems give to outgoing connections
RUN = re.compile(r"^ {4}(\S+):(\w+)$", re.MULTILINE)
AGAIN_S = 600  # until a job looks again whether its run is free
END = f"""\
status=$?
job="${{{{SLURM_ARRAY_JOB_ID}}}}_$SLURM_ARRAY_TASK_ID"
case $status in
    # It has saved before the time limit, or the warning came before it had started: queue it again.
    {STOPPED} | {128 + signal.SIGUSR2}) scontrol requeue "$job" ;;
    # Another job or suite does this run: look again later.
    {BUSY}) scontrol requeue "$job"; scontrol update JobId="$job" StartTime=now+{AGAIN_S} ;;
    # It is being preempted. SLURM queues it again only if it is alive when its time is up.
    {PREEMPTED}) sleep {{grace}} ;;
esac
exit $status
"""


class Array(NamedTuple):
    """Runs that are submitted together: they need the same resources and wait for the same jobs."""

    runs: Mapping[str, str]  # name -> Work.request
    shape: Shape
    minutes: int  # time limit
    after: Sequence[str]  # ids of jobs


def sbatch_options(array: Array, cluster: ClusterConfig, *, title: str, log: Path) -> dict[str, str | int | bool]:
    """Return the options of sbatch."""
    shape = array.shape
    gpus = cluster.gpu_option.replace("{gpus}", str(shape.gpus)).partition("=")
    throttle = f"%{cluster.jobs}" if cluster.jobs else ""
    memory = cluster.memory_per_gpu * shape.gpus if cluster.memory_per_gpu else shape.memory
    options: dict[str, str | int | bool | None] = {
        "job-name": title,
        "array": f"0-{len(array.runs) - 1}{throttle}",
        "output": f"{log}/%A_%a.log",
        "open-mode": "append",
        "requeue": True,
        "signal": f"USR2@{cluster.grace_seconds}",
        "time": array.minutes,
        "nodes": shape.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus_per_gpu * shape.gpus if cluster.cpus_per_gpu else shape.cpus,
        "mem": f"{memory:.0f}G" if memory else None,
        gpus[0]: gpus[2] or None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "dependency": f"afterany:{':'.join(array.after)}" if array.after else None,
        **cluster.sbatch,
    }
    return {key: value for key, value in options.items() if value is not None and value is not False}


def slurm_script(array: Array, cluster: ClusterConfig, command: Sequence[str], *, title: str, folder: Path) -> str:
    """Return the script of an array.

    Args:
        command: tools/reproduce.py with the options of the suite.
        folder: for the output of the jobs.
    """
    options = sbatch_options(array, cluster, title=title, log=folder)
    lines = ["#!/bin/bash"]
    lines += [
        f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}") for key, value in options.items()
    ]
    lines += ["runs=(", *(f"    {name}:{request}" for name, request in array.runs.items()), ")"]
    lines += ['export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"']
    lines += [f"export MASTER_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"]
    lines += environment(cluster)
    cpus = [f"--cpus-per-task={options['cpus-per-task']}"] if "cpus-per-task" in options else []
    words = ["srun", "--ntasks-per-node=1", *cpus, *cluster.srun, *starting(cluster, command)]
    lines += [f'{shlex.join(words)} --limit {array.minutes} --run "${{runs[$SLURM_ARRAY_TASK_ID]}}"']
    return "\n".join([*lines, END.format(grace=cluster.grace_seconds)])


def runs_of(script: Path) -> dict[int, tuple[str, str]]:
    """Return name and request of each run of a script, by its place in the array."""
    return dict(enumerate(RUN.findall(script.read_text(encoding="utf-8"))))


def write_jobs(
    work: Work,
    shapes: Mapping[str, Shape],
    cluster: ClusterConfig,
    command: Sequence[str],
    *,
    force: Sequence[str] = (),
    replace: bool = False,
) -> Path:
    """Write one script per run that is not done or is to be repeated, and jobs.json, which lists them; return its path.

    Raises:
        ValueError: finished runs have changed (without `replace`).
    """
    folder, listed = work.root / "jobs", []
    waiting = make_room(work, forced(work.plan, force), replace=replace)
    for name in waiting:
        file = folder / f"{name.replace('/', '.')}.sh"
        write_whole(file, jobfile(work.plan[name], shapes[name], cluster, command, work.request(name)))
        needs = [need for need in (*work.plan[name].needs, *work.plan[name].points) if need in waiting]
        listed.append({"run": name, "script": file.name, "needs": needs, **shapes[name]._asdict()})
    write_whole(folder / "jobs.json", json.dumps(listed, indent=1) + "\n")
    return folder / "jobs.json"


def jobfile(node: Node, shape: Shape, cluster: ClusterConfig, command: Sequence[str], request: str) -> str:
    """Return the script of one run for any scheduler."""
    needs = ", ".join((*node.needs, *node.points)) or "nothing"
    lines = ["#!/bin/bash", f"# Run: {node.name}", f"# Needs: {needs}"]
    lines += [f"# Resources: {shape}"]
    lines += [
        f"# Exit status: 0 done; 1 failed; {STOPPED} saved and stopped, {BUSY} being done elsewhere: start it again"
    ]
    if shape.nodes > 1:
        lines += ["# Start it on every node, with NODE_RANK, MASTER_ADDR and MASTER_PORT set."]
        lines += [": ${NODE_RANK:?} ${MASTER_ADDR:?}", "export MASTER_PORT=${MASTER_PORT:-29500}"]
    lines += [f"cd {shlex.quote(str(Path.cwd()))}", *environment(cluster)]  # for relative paths in the suite
    words = [*starting(cluster, command), "--run", f"{node.name}:{request}"]
    return "\n".join([*lines, f"exec {shlex.join(words)}", ""])


def environment(cluster: ClusterConfig) -> list[str]:
    """Return the lines that prepare a node."""
    modules = [f"module load {' '.join(map(shlex.quote, cluster.modules))}"] if cluster.modules else []
    exports = [f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items()]
    return [*modules, *exports, *cluster.setup]


def starting(cluster: ClusterConfig, command: Sequence[str]) -> list[str]:
    """Return the words that start tools/reproduce.py on a node."""
    return [*cluster.container, cluster.python or sys.executable, *command, "--grace", str(cluster.grace_seconds)]

"""What a suite must know about a SLURM cluster: cluster.toml, and the partition's maximum of time."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mae_transfer.bounds import Count, Positive, Whole
from mae_transfer.config import Schema, literal, nearest, validate

FILE = "cluster.toml"
COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "srun")
MARGIN = 1.5  # of the time limit over the estimate
START_MINUTES = 30  # of the time limit, for imports, a cold file system and the report
ARRAY_SIZE = 1001  # SLURM's own default of MaxArraySize
ANSWER_S = 60.0  # seconds to wait for the answer of a command
LONGEST_HOURS = 72.0  # time limit of a run without an estimate in a partition without a maximum


class ClusterConfig(Schema):
    """A SLURM cluster: the content of cluster.toml."""

    partition: str | None = None
    """Partition of the jobs, or several ("gpu,long"); None: the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have, for example "a100"."""
    cpus_per_gpu: Count | None = None
    """CPUs for each GPU; None: what the run needs."""
    memory_per_gpu: Positive | None = None
    """Memory for each GPU in GiB; None: what the run needs."""
    gpu_option: str = "gpus-per-node={gpus}"
    """Option of sbatch that asks for GPUs: "gres=gpu:{gpus}", "gpus-per-node=a100:{gpus}"; "": it asks for none."""
    max_hours: Positive | None = None
    """Longest time limit of a job in hours; None: the partition's maximum. A longer run is queued again and resumes."""
    grace_seconds: Annotated[int, Field(ge=4, le=86400)] = 300
    """Time before the time limit at which a run saves and is queued again."""
    jobs: Count | None = None
    """Jobs of one array that run at a time; None: as many as SLURM allows."""
    modules: tuple[str, ...] = ()
    """Modules that a job loads: ("cuda/12.4",)."""
    setup: tuple[str, ...] = ()
    """Lines of bash at the beginning of a job, after the modules."""
    environment: dict[str, str] = Field(default={})
    """Environment variables of a job: {"NCCL_SOCKET_IFNAME": "ib0"}."""
    container: tuple[str, ...] = ()
    """Words before the command on a node: ("apptainer", "exec", "--nv", "mae.sif")."""
    python: str | None = None
    """The interpreter of a job, if it is not the one that submits: "python" inside a container."""
    sbatch: dict[str, str | Whole | bool] = Field(default={})
    """Further options of sbatch; they replace those of this package: {"exclude": "node7", "exclusive": true}."""
    srun: tuple[str, ...] = ()
    """Further options of srun: ("--cpu-bind=none",)."""


RENAMED: Mapping[str, Callable[[float], dict[str, Any]]] = {
    "timeout_min": lambda value: {"max_hours": value / 60},
    "signal_delay_s": lambda value: {"grace_seconds": value},
    "mem_gb": lambda value: {"sbatch": {"mem": f"{value}G"}},
    "cpus_per_task": lambda value: {"sbatch": {"cpus-per-task": value}},
}
"""Names of --slurm in earlier versions."""
SBATCH = (
    "begin", "comment", "exclude", "exclusive", "gres", "licenses", "mail-type", "mail-user", "mem", "nice",
    "nodelist", "reservation", "wckey",
)  # fmt: skip
"""Options of sbatch that --slurm takes besides the keys of cluster.toml."""


def open_cluster(file: Path | None, work_dir: Path, *, pairs: Sequence[str] = ()) -> ClusterConfig:
    """Return the cluster of a file, of WORK_DIR/cluster.toml or of ~/.config/mae_transfer/cluster.toml.

    Args:
        pairs: values of --slurm, "key=value"; they replace those of the file.
    Raises:
        ValueError: names the file, the key and the remedy.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    around = (work_dir / FILE, home / "mae_transfer" / FILE)
    found = file or next((path for path in around if path.is_file()), None)
    values: dict[str, Any] = {}
    if found is not None:
        try:
            values = tomllib.loads(found.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"--cluster {found}: no such file; docs/multi_node.md shows one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{found} is no valid TOML: {error}; docs/multi_node.md shows a valid file") from None
    options = dict(values.get("sbatch", {}))
    for pair in pairs:
        given = _named(pair)
        options |= given.pop("sbatch", {})
        values |= given
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    where = " and ".join([*([str(found)] if found else []), *(["--slurm"] if pairs else [])])
    return validate({**lists, "sbatch": options}, ClusterConfig, where=where)


def _named(pair: str) -> dict[str, Any]:
    """Return the values of cluster.toml that KEY=VALUE of --slurm stands for."""
    key, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"--slurm {pair}: write key=value, for instance --slurm partition=gpu")
    value = literal(text)
    if key in RENAMED:
        if not isinstance(value, int | float):
            raise ValueError(f"--slurm {pair}: {text!r} is not a number")
        return RENAMED[key](value)
    option = key.replace("_", "-")
    return {"sbatch": {option: value}} if option in SBATCH else {key: value}


def require_commands() -> None:
    """Raise ValueError if this machine has no SLURM."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"--launcher slurm: {missing[0]} is not on PATH: start the suite on a login node of the cluster, "
            "or use --launcher jobfile"
        )


def asked(*command: str) -> str:
    """Return the output of a command of SLURM; ValueError with its message if it fails or does not answer."""
    said = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{said}: SLURM did not answer in {ANSWER_S:.0f} s; repeat the command when it does") from None
    if done.returncode:
        raise ValueError(f"{said}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def longest_minutes(cluster: ClusterConfig) -> float:
    """Return the longest time limit of a job: of cluster.toml and of the partition, whichever is shorter.

    Raises:
        ValueError: the cluster has no such partition, or a job could not save in its time.
    """
    rows = [line.split("|") for line in asked("sinfo", "--noheader", "--format=%P|%l").splitlines()]
    limits = {name.rstrip("*"): minutes(limit) for name, limit in rows}
    chosen = (cluster.partition or next((name for name, _ in rows if name.endswith("*")), rows[0][0])).rstrip("*")
    for name in chosen.split(","):
        if name not in limits:
            raise ValueError(f"partition {name!r}: this cluster has no such partition; {nearest(name, limits)}")
    most = min(limits[name] for name in chosen.split(","))
    most = min(most, 60 * cluster.max_hours if cluster.max_hours else math.inf)
    if 60 * most <= cluster.grace_seconds:
        raise ValueError(
            f"grace_seconds = {cluster.grace_seconds} is not below the longest time limit of a job, {60 * most:.0f} s "
            f"(partition {chosen}): lower it, or use another partition"
        )
    return most


def largest_array() -> int:
    """Return the most jobs of one array that the cluster accepts."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", asked("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else ARRAY_SIZE


def minutes(text: str) -> float:
    """Return the minutes of a time limit that sinfo prints: "1-12:00:00", "30:00", "infinite"."""
    if text.lower() in ("infinite", "unlimited", "n/a"):
        return math.inf
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return 1440 * int(days or 0) + seconds / 60


def time_limit(hours: float | None, cluster: ClusterConfig, longest: float) -> int:
    """Return the time limit of a run in minutes: its estimate with a margin, at most the longest of the cluster."""
    if hours is None:
        return int(60 * LONGEST_HOURS if math.isinf(longest) else longest)
    return int(min(longest, math.ceil(60 * MARGIN * hours + START_MINUTES + cluster.grace_seconds / 60)))

"""Suites on a real SLURM of one node (Debian: apt-get install slurm-wlm munge), whose daemons these tests start."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mae_transfer.suite.slurm.submit import queue
from tests.cluster.conftest import Bench
from tests.integration.test_suite import ROOT, values

pytestmark = pytest.mark.slow
CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,batch_sched_delay=1,requeue_delay=1
{node} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=short Nodes={host} MaxTime=3 State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=10 State=UP PriorityTier=10 PreemptMode=OFF
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with slurm.conf; SLURM runs, and its commands use it."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("slurmd needs root")
    root, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for folder in ("state", "spool"):
        (root / folder).mkdir()
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{key}={root}/munge.{name}" for key, name in files.items())]
    node = subprocess.run(["slurmd", "-C"], capture_output=True, text=True).stdout.splitlines()[0]
    config = CONFIG.format(host=host, root=root, ports=free_ports(2), node=node)
    (root / "slurm.conf").write_text(config)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    daemons = [subprocess.Popen(munged, stderr=subprocess.DEVNULL)]
    wait_until(lambda: (root / "munge.socket").exists(), seconds=30)
    for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
        daemons.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    try:
        wait_until(lambda: "idle" in called("sinfo", "--noheader", "--format=%T"), seconds=60)
        yield root
    finally:
        called("scancel", "--user", "root")
        time.sleep(2)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def called(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


def bench(folder: Path, *lines: str) -> Bench:
    """Return a suite that runs in processes of the usual kind: SLURM must find those of a job by their parents."""
    found = Bench(folder, Path(sys.executable))
    (folder / "cluster.toml").write_text(
        "\n".join(['gpu_option = ""', "cpus_per_gpu = 1", 'sbatch = {mem = "0"}', *lines])
    )
    return found


def test_a_suite_runs_and_survives_preemption(slurm: Path, tmp_path: Path) -> None:
    here, work_dir = bench(tmp_path, 'partition = "low"'), tmp_path / "d"
    here.suite.write_text(here.suite.read_text().replace('"epochs": 4,', '"epochs": 80,'))
    here.submit(work_dir)
    assert len(queue(work_dir)) == 4
    assert "submitted" not in here.submit(work_dir)
    log = work_dir / "pixels" / "pretrain" / "seed0" / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size > 0, seconds=300)
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\n#SBATCH --partition=high --exclusive --output=/dev/null\nsleep 1\n")
    called("sbatch", str(urgent))
    wait_until(lambda: not queue(work_dir), seconds=2400)
    assert re.search(r"Restarts=[1-9]", called("scontrol", "show", "job")), "no job was preempted"
    assert (work_dir / "report.html").is_file()
    here.reproduce(tmp_path / "local")
    assert values(work_dir) == values(tmp_path / "local")


def test_the_demo_suite_runs_in_jobs_that_are_shorter_than_its_runs(slurm: Path, tmp_path: Path) -> None:
    here = bench(tmp_path, 'partition = "short"', "grace_seconds = 90")
    here.suite = ROOT / "configs" / "suites" / "mini.py"
    here.submit(tmp_path / "d")
    wait_until(lambda: not queue(tmp_path / "d"), seconds=3600)
    here.reproduce(tmp_path / "local")
    assert values(tmp_path / "d") == values(tmp_path / "local")

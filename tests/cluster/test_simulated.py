"""The simulated cluster behaves as real SLURM does, in what this package depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Simulation

Start = Callable[..., Simulation]


def script(folder: Path, body: str, *options: str) -> str:
    file = folder / f"{len(list(folder.glob('*.sh')))}.sh"
    lines = [f"#SBATCH --{option}" for option in ("open-mode=append", f"output={folder}/%A_%a.out", *options)]
    file.write_text("\n".join(["#!/bin/bash", *lines, body, ""]))
    return str(file)


def states(cluster: Simulation) -> dict[str, str]:
    return {f"{job['array']}_{job['element']}": job["state"] for job in cluster.wait()}


def test_an_element_waits_for_the_elements_that_it_depends_on(simulation: Start, tmp_path: Path) -> None:
    cluster = simulation(slots=4)
    wait = f"[ $SLURM_ARRAY_TASK_ID = 0 ] || until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    first = script(tmp_path, wait, "array=0-1")
    assert cluster.run("sbatch", "--parsable", first).stdout == "41\n"
    second = script(tmp_path, f"touch {tmp_path}/go", "array=0-0", "dependency=afterok:41_0")
    third = script(tmp_path, "exit $SLURM_ARRAY_TASK_ID", "array=0-1", "dependency=aftercorr:41")
    fourth = script(tmp_path, "true", "array=0-0", "dependency=afterany:45_1")
    never = script(tmp_path, "true", "array=0-0", "dependency=afterok:45_1")
    listed = ("squeue", "--noheader", "--array", "--format=%i|%T|%o")
    cluster.run("sbatch", third)
    assert cluster.run(*listed).stdout.splitlines()[-1] == f"43_1|PENDING|{third}"
    cluster.run("scancel", "43_1")
    for one in (third, second, fourth, never):
        cluster.run("sbatch", one)
    cluster.wait(lambda jobs: jobs[-1]["reason"] == "DependencyNeverSatisfied")
    cluster.run("scancel", "49_0")
    found = states(cluster)
    ended = dict.fromkeys(("41_0", "41_1", "43_0", "45_0", "47_0", "48_0"), "COMPLETED")
    assert found == ended | {"43_1": "CANCELLED", "45_1": "FAILED", "49_0": "CANCELLED"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["partition=nosuch"], "invalid partition specified: nosuch"),
        (["account=nosuch"], "Invalid account"),
        (["time=2-00:00:00"], "Requested time limit is invalid"),
        (["gpus-per-node=9"], "Requested node configuration is not available"),
        (["partitoin=gpu"], "unrecognized option '--partitoin=gpu'"),
    ],
)
def test_what_can_never_run_is_refused(options: list[str], message: str, simulation: Start, tmp_path: Path) -> None:
    done = simulation().run("sbatch", script(tmp_path, "true", *options))
    assert done.returncode == 1
    assert message in done.stderr


def test_a_step_has_the_cpus_that_srun_asks_for(simulation: Start, tmp_path: Path) -> None:
    cluster = simulation()
    body = "echo $SLURM_CPUS_PER_TASK $SLURM_RESTART_COUNT; srun sh -c 'echo step $SLURM_CPUS_PER_TASK $SLURM_NODEID'"
    wide = "srun --cpus-per-task=4 sh -c 'echo wide $SLURM_CPUS_PER_TASK'"
    cluster.run("sbatch", script(tmp_path, f"{body}; {wide}", "cpus-per-task=4", "nodes=2", "array=0-0"))
    cluster.wait()
    lines = (tmp_path / "41_0.out").read_text().splitlines()
    assert lines[0] == "4"
    assert sorted(lines[1:]) == ["step 0", "step 1", "wide 4", "wide 4"]


WAITING = """
trap 'echo warned; scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID' USR2
trap 'echo told; exit' TERM
echo start $SLURM_RESTART_COUNT
[ -z "$SLURM_RESTART_COUNT" ] || exit 0
for i in $(seq 600); do sleep 0.1; done
"""


def test_a_job_is_warned_before_its_time_is_up_and_can_queue_itself_again(simulation: Start, tmp_path: Path) -> None:
    cluster = simulation(minute_s=30.0, kill_wait_s=20.0)  # long, for a busy machine; the warning comes after 5 s
    (tmp_path / "step").write_text(WAITING)
    options = ("time=1", "signal=USR2@25", "array=0-0", "requeue")
    cluster.run("sbatch", script(tmp_path, f"srun bash {tmp_path}/step", *options))
    assert states(cluster) == {"41_0": "COMPLETED"}
    lines = (tmp_path / "41_0.out").read_text().splitlines()
    assert [line for line in lines if line[0].islower()] == ["start", "warned", "told", "start 1"]


@pytest.mark.parametrize(("stays", "restarts"), [(True, 1), (False, 0)])
def test_a_preempted_job_is_queued_again_if_it_lives(
    stays: bool, restarts: int, simulation: Start, tmp_path: Path
) -> None:
    cluster = simulation(grace_s=0.5)
    body = ("trap '' TERM; " if stays else "") + f"touch {tmp_path}/on; [ -z $SLURM_RESTART_COUNT ] || exit 0; "
    (tmp_path / "step").write_text(body + "for i in $(seq 100); do sleep 0.1; done")
    cluster.run("sbatch", script(tmp_path, f"srun bash {tmp_path}/step", "array=0-0"))
    cluster.wait(lambda _: (tmp_path / "on").exists())
    with cluster.state() as jobs:
        jobs[0]["fault"] = ["preemption", 0.0]
    assert cluster.wait()[0]["restarts"] == restarts

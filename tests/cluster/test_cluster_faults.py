"""A suite on a simulated cluster ends with the numbers of an undisturbed local run, whatever happens to its jobs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mae_transfer.suite.store.records import read_note
from tests.cluster.conftest import Bench, Simulation
from tests.integration.test_suite import ROOT, values

Start = Callable[..., Simulation]
SEEDS = range(20)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed else [], id=f"seed{seed}") for seed in SEEDS]
)
def test_preempted_killed_and_out_of_time_it_ends_with_the_same_values(
    seed: int, simulation: Start, python: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster, bench = simulation(seed=seed, skew_s=3600.0), Bench(tmp_path, python)
    bench.submit(tmp_path / "d")
    jobs = cluster.wait()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    assert (tmp_path / "d" / "report.html").is_file()
    assert values(tmp_path / "d") == values(undisturbed)
    assert "submitted" not in bench.submit(tmp_path / "d")


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow, id=f"seed{seed}") for seed in SEEDS])
def test_two_suites_with_one_store_do_each_run_once(
    seed: int, simulation: Start, python: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster, bench = simulation(seed=seed, minute_s=0.2, partitions={"gpu": None}), Bench(tmp_path, python)
    folders = [tmp_path / "d0", tmp_path / "d1"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda folder: bench.submit(folder, f"--store={tmp_path / 'store'}"), folders))
    assert {job["state"] for job in cluster.wait()} == {"COMPLETED"}
    for folder in folders:
        assert values(folder) == values(undisturbed)
    taken = [note for file in tmp_path.glob("d?/**/node.json") if (note := read_note(file.parent)[0]) and note.reason]
    assert len(taken) == len({note.name for note in taken}) == 4, "one suite does a run, the other takes it"


def test_job_files_run_in_their_order_end_with_the_same_values(python: Path, undisturbed: Path, tmp_path: Path) -> None:
    bench, work_dir = Bench(tmp_path, python), tmp_path / "d"
    bench.reproduce(work_dir, "--launcher", "jobfile", "--cluster", f"{tmp_path}/cluster.toml")
    for job in json.loads((work_dir / "jobs" / "jobs.json").read_text()):
        subprocess.run(["bash", work_dir / "jobs" / job["script"]], check=True)
    assert values(work_dir) == values(undisturbed)


@pytest.mark.slow
def test_two_jobs_on_the_same_two_nodes_do_not_meet_each_other(simulation: Start, python: Path, tmp_path: Path) -> None:
    cluster, bench, work_dir = simulation(), Bench(tmp_path, python), tmp_path / "d"
    bench.submit(work_dir, "--nodes", "2")
    assert {job["state"] for job in cluster.wait()} == {"COMPLETED"}
    notes = {file.parent: read_note(file.parent)[0] for file in work_dir.rglob("node.json")}
    assert {note.state for note in notes.values() if note} == {"done"}
    assert [folder.parts[-3:-1] for folder in notes if not (folder / "output.1.log").exists()] == [("pixels", "knn")]


@pytest.mark.slow
def test_the_demo_suite_survives_faults(simulation: Start, python: Path, tmp_path: Path) -> None:
    cluster, bench = simulation(seed=0, window_s=60.0), Bench(tmp_path, python)
    bench.suite = ROOT / "configs" / "suites" / "mini.py"
    bench.submit(tmp_path / "d")
    assert {job["state"] for job in cluster.wait(seconds=3600)} == {"COMPLETED"}
    bench.reproduce(tmp_path / "local")
    assert values(tmp_path / "d") == values(tmp_path / "local")

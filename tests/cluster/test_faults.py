"""A suite on a simulated cluster ends with the numbers of an undisturbed local run, whatever happens to its jobs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Simulation
from tests.integration.test_suite import ROOT, SUITE, values

Start = Callable[..., Simulation]
SEEDS = range(20)


class Bench:
    """A suite and the interpreter that runs it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.suite = folder / "suite.py"
        self.suite.write_text(SUITE)
        (folder / "cluster.toml").write_text(f'gpu_option = ""\ngrace_seconds = 60\npython = "{python}"\n')

    def reproduce(self, work_dir: Path, *options: str) -> str:
        """Run tools/reproduce.py; return its output."""
        command = [self.python, ROOT / "tools" / "reproduce.py", self.suite, "--work-dir", work_dir, *options]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, work_dir: Path, *options: str) -> str:
        return self.reproduce(work_dir, "--launcher", "slurm", "--cluster", f"{self.folder}/cluster.toml", *options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Bench(folder, python).reproduce(folder / "d")
    return folder / "d"


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed else [], id=f"seed{seed}") for seed in SEEDS]
)
def test_preempted_killed_and_out_of_time_it_ends_with_the_same_values(
    seed: int, simulation: Start, python: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster, bench = simulation(seed=seed), Bench(tmp_path, python)
    bench.submit(tmp_path / "d")
    jobs = cluster.wait()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    assert values(tmp_path / "d") == values(undisturbed)
    assert "submitted" not in bench.submit(tmp_path / "d")

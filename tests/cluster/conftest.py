"""Fixtures: a simulated cluster, and a suite that nothing disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import simulated
from tests.integration.test_suite import ROOT, SUITE

PATIENCE_S = 600


class Simulation:
    """A running simulated cluster."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.programs = root, simulated.install(root, **settings)
        self.controller = subprocess.Popen([sys.executable, simulated.__file__, str(root), "controller"])

    def state(self) -> AbstractContextManager[list[dict[str, Any]]]:
        """Return what yields all jobs and keeps changes."""
        return simulated.State(self.root).jobs()

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs."""
        with self.state() as jobs:
            return jobs

    def wait(
        self, until: Callable[[list[dict[str, Any]]], bool] | None = None, *, seconds: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """Wait until all jobs have ended, or for a condition; return the jobs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            jobs = self.jobs()
            if (until or (lambda jobs: all(job["state"] in simulated.ENDED for job in jobs)))(jobs):
                return jobs
            assert self.controller.poll() is None
            time.sleep(0.1)
        raise AssertionError(f"jobs did not end: {[(job['name'], job['state'], job['reason']) for job in self.jobs()]}")

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call a command of the cluster."""
        return subprocess.run([self.programs / name, *arguments], capture_output=True, text=True, cwd=self.root)

    def stop(self) -> None:
        (self.root / "stop").touch()
        self.controller.wait()


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


@pytest.fixture
def simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Simulation]]:
    """simulation(partitions=..., seed=...) -> a cluster whose commands are on PATH."""
    running: list[Simulation] = []

    def start(**settings: Any) -> Simulation:
        running.append(Simulation(tmp_path / f"cluster{len(running)}", **settings))
        monkeypatch.setenv("PATH", f"{running[-1].programs}:{os.environ['PATH']}")
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Bench(folder, python).reproduce(folder / "d")
    return folder / "d"

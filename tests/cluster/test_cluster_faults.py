"""A suite on a simulated cluster ends with the numbers of an undisturbed local run, whatever happens to its jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Bench, Simulation
from tests.integration.test_suite import values

Start = Callable[..., Simulation]
SEEDS = range(20)


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

"""MAE and CrossMAE on two gloo processes and on one.

Losses, every reduced gradient, and parameters after five float64 steps.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).with_name("mae_steps.py")


def steps(out: Path, *launcher: str) -> dict[str, Any]:
    command = [sys.executable, *launcher, str(SCRIPT), str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    alone = steps(tmp_path / "one.pt")
    ranks = steps(tmp_path / "two.pt", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert alone.keys() == ranks.keys() == {"self", "cross"}
    for kind, one in alone.items():
        two = ranks[kind]
        torch.testing.assert_close(torch.tensor(one["losses"]), torch.tensor(two["losses"]), rtol=1e-10, atol=0)
        assert one["gradients"].keys() == two["gradients"].keys()
        assert len(one["gradients"]) > 40
        for part in ("gradients", "model"):
            for name, value in one[part].items():
                where = f"{kind} {name}: "
                torch.testing.assert_close(
                    two[part][name], value, rtol=1e-9, atol=1e-12, msg=lambda text, where=where: where + text
                )

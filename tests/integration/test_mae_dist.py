"""MAE and CrossMAE on two gloo processes and on one.

Losses, every reduced gradient, and parameters after five float64 steps.
"""

import sys
from pathlib import Path

import torch

from tests.integration.conftest import Torchrun

SCRIPT = Path(__file__).with_name("mae_steps.py")


def test_two_processes_have_the_gradients_of_one(torchrun: Torchrun, tmp_path: Path) -> None:
    torchrun(SCRIPT, tmp_path / "two.pt", python=sys.executable)  # each with its own hashes, as in real runs
    torchrun(SCRIPT, tmp_path / "one.pt", processes=1)
    alone, ranks = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
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

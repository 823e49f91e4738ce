"""COCO's figures and mIoU on two gloo processes equal those of one, although the sampler repeats an image to pad."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("coco_iou_ranks.py")


def evaluated(out: Path, *launcher: str) -> list[dict[str, float]]:
    command = [sys.executable, *launcher, str(SCRIPT), str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted(out.parent.glob(f"{out.stem}.[0-9].json"))]


def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    (one,) = evaluated(tmp_path / "one.json")
    two = evaluated(tmp_path / "two.json", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert len(two) == 2
    assert 0.2 < one["bbox/AP"] < 0.9
    assert 0.2 < one["mIoU"] < 0.9
    for rank in two:
        assert rank.keys() == one.keys()
        np.testing.assert_array_equal(list(rank.values()), list(one.values()))
    assert (tmp_path / "one.predictions.json").read_bytes() == (tmp_path / "two.predictions.json").read_bytes()

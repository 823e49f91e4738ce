"""COCO's figures and mIoU on two gloo processes equal those of one, although the sampler repeats an image to pad."""

import json
from pathlib import Path

import numpy as np

from tests.integration.conftest import Torchrun

SCRIPT = Path(__file__).with_name("coco_iou_ranks.py")


def test_two_processes_evaluate_as_one(torchrun: Torchrun, tmp_path: Path) -> None:
    torchrun(SCRIPT, tmp_path / "one.json", processes=1)
    torchrun(SCRIPT, tmp_path / "two.json")
    (one,), two = (
        [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{name}.[0-9].json"))]
        for name in ("one", "two")
    )
    assert len(two) == 2
    assert 0.2 < one["bbox/AP"] < 0.9
    assert 0.2 < one["mIoU"] < 0.9
    for rank in two:
        assert rank.keys() == one.keys()
        np.testing.assert_array_equal(list(rank.values()), list(one.values()))
    assert (tmp_path / "one.predictions.json").read_bytes() == (tmp_path / "two.predictions.json").read_bytes()

"""Segmentation can learn: the first 8 training images of CamVid by heart, from random weights (about ten minutes)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mae_transfer.config import load
from mae_transfer.tasks import segment
from mae_transfer.tasks.segment import SegmentConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.data
def test_eight_real_images_are_learned_by_heart(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    cfg = load(
        ROOT / "configs" / "segment" / "overfit8.py",
        SegmentConfig,
        overrides=[f"data.root={str(real_data('camvid'))!r}"],
    )
    written = segment.Segment.launch(cfg, tmp_path / "run")
    assert written[0].metric == "mIoU"
    value = written[0].value
    assert value is not None
    assert value >= 70

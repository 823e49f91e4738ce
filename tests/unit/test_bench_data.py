"""The data benchmark: that it runs, and that what it compares is the same work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.bench.data import pixel_difference, run, time_feeds
from mae_transfer.data import regions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:60, 0:80]
    for index in range(6):
        waves = [np.sin(x / (4 + index)), np.sin(y / 5), np.sin((x + y) / 7)]
        picture = Image.fromarray((np.stack(waves, axis=-1) * 90 + 128).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + index  # turned and mirrored in different ways
        picture.save(tmp_path / f"{index}.jpg", exif=exif)
    return tmp_path


def test_every_contestant_gets_a_row_and_the_machine_is_left_as_it_was(folder: Path) -> None:
    threads = torch.get_num_threads()
    rows = run(folder, seconds=0.1, size=32, rounds=2, repeats=2)
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", "ours"]
    assert len(rows) == 9
    assert all(0 < row["low"] <= row["images_per_s"] <= row["high"] for row in rows)
    assert rows[0]["ratio"] == 1
    assert torch.get_num_threads() == threads


def test_views_are_timed_beside_the_classic_ones(folder: Path) -> None:
    rows = run(folder, seconds=0.01, rounds=1, multi_crop=True)
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", "ours"]
    assert len(rows) == 4


def test_fine_tuning_crops_are_timed_beside_the_classic_ones(folder: Path) -> None:
    rows = run(folder, seconds=0.01, size=32, rounds=1, augmented=True)
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", "ours"]
    assert len(rows) == 3


def test_our_crops_are_the_classic_ones_to_a_tenth_of_a_grey_level(folder: Path) -> None:
    assert pixel_difference([path.read_bytes() for path in sorted(folder.iterdir())], 32) < 0.1


@pytest.mark.parametrize("installed", [True, False])
def test_the_training_input_is_timed_with_both_decoders(
    folder: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(device: torch.device) -> None:
        if not installed:
            raise ValueError("needs nvImageCodec")

    monkeypatch.setattr("mae_transfer.data.config.check_decoder", check)
    monkeypatch.setattr(regions, "_decoder", lambda *_: lambda regions: [None] * len(regions))
    rows = time_feeds(folder, torch.device("cpu"), workers=0, seconds=0.02, size=32)
    assert [row["name"] for row in rows] == ["decoded by the workers", "decoded on the device"]
    assert rows[0]["images_per_s"] > 0
    assert rows[0]["batch"] == 6
    assert (rows[1].get("images_per_s", 0) > 0) == installed
    assert rows[1].get("failure") == (None if installed else "needs nvImageCodec")

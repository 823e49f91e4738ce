"""The data benchmark: that it runs, and that what it compares is the same work."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.bench.data import pixel_difference, run, time_feeds
from mae_transfer.data import decode, regions


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


LATE, WHOLE = "ours, decoded at the crop", "ours, whole images decoded"


def box_of_pil(data: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.crop((left, top, left + width, top + height)))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("decoder", [None, box_of_pil])
def test_rows_say_what_is_decoded_and_the_machine_is_left_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, decoder: Any
) -> None:
    monkeypatch.setattr(decode, "_region_decoder", lambda _: decoder)
    for path in folder.glob("*.jpg") if suffix == "png" else ():
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    threads = torch.get_num_threads()
    rows = run(folder, seconds=0.1, size=32, rounds=2, repeats=2)
    ours = LATE if decoder and suffix == "jpg" else WHOLE
    names = [row["name"] for row in rows]
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", ours]
    assert [row["name"] for row in rows if row["pixel_difference"] is not None] == [ours]
    assert {WHOLE, f"{ours}, from files", f"{ours}, from a pack"} <= set(names)
    assert ("ours, decoding left to the device" in names) == (suffix == "jpg")
    assert len(names) == len(set(names)) == 7 + (ours == LATE) + (suffix == "jpg")
    assert all(0 < row["low"] <= row["images_per_s"] <= row["high"] for row in rows)
    assert rows[0]["ratio"] == 1
    assert torch.get_num_threads() == threads


def test_views_are_timed_beside_the_classic_ones(folder: Path) -> None:
    rows = run(folder, seconds=0.01, rounds=1, multi_crop=True)
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", WHOLE]
    assert len(rows) == 4


def test_fine_tuning_crops_are_timed_beside_the_classic_ones(folder: Path) -> None:
    rows = run(folder, seconds=0.01, size=32, rounds=1, augmented=True)
    ours = LATE if decode._region_decoder(0) else WHOLE
    assert [row["name"] for row in rows if row["counted"]] == ["classic: PIL, v1 transforms, float", ours]
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

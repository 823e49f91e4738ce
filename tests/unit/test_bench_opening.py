"""The benchmark of opening many images: a folder and its pack are the same data. No assertion is about time."""

from __future__ import annotations

import argparse

import pytest

from mae_transfer.bench import opening


@pytest.mark.parametrize("images", [3, 1007])
def test_folder_and_pack_are_opened_and_compared(images: int) -> None:
    records = opening.run(argparse.Namespace(images=images, rounds=2))
    assert [record["images"] for record in records] == [images] * 3
    assert records[0]["ratio"] == 1.0
    for record in records:
        assert record["seconds_range"][0] <= record["seconds"] <= record["seconds_range"][1]


def test_a_pack_with_another_fingerprint_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_images", lambda root: root.name)
    with pytest.raises(RuntimeError, match=r"the fingerprints differ: .*images\.zip"):
        opening.run(argparse.Namespace(images=3, rounds=1))

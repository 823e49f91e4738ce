"""Faults of the loader: busy workers, full shared memory, and images that an evaluation cannot read."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae_transfer.data import (
    CentreCrop,
    Crops,
    EvalKeys,
    Sample,
    Shapes,
    ShapesConfig,
    Source,
    Unreadable,
    UnreadableImage,
    batches,
)
from mae_transfer.interfaces import ViewSpec

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Odd:
    """Shapes of which some cannot be read, or never return from the second batch on."""

    bad: frozenset[int] = frozenset()
    slow: bool = False
    shapes: Shapes = field(default_factory=lambda: ShapesConfig(size=24, length=20).open())
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> Sample:
        if index in self.bad:
            raise UnreadableImage(f"{self.where(index)}: cut off")
        if self.slow and index >= 4:
            time.sleep(600)
        return self.shapes.read(index)

    def where(self, index: int) -> str:
        return f"img{index}.jpg"


def crops(source: Source) -> Crops:
    return Crops(source=source, augmentation=CentreCrop().build((ViewSpec(16, "bicubic"),)), seed=0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bad", [{3, 9}, {4, 5, 6, 7}])
def test_evaluation_leaves_out_unreadable_images_and_counts_none_twice(workers: int, bad: set[int]) -> None:
    policy = Unreadable(limit=10)
    seen = [
        batch.index
        for batch in batches(
            crops(Odd(frozenset(bad))), EvalKeys(images=20, batch=4), workers=workers, unreadable=policy
        )
    ]
    assert torch.cat(seen).tolist() == [index for index in range(20) if index not in bad]
    assert set(policy.files) == bad


def test_a_busy_worker_ends_with_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae_transfer.data.loader.GRACE_S", 0.2)
    feed = batches(crops(Odd(slow=True)), EvalKeys(images=20, batch=4), workers=2)
    next(feed)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    feed.close()
    assert not any(worker.is_alive() for worker in workers)


def test_shared_memory_that_is_full_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's thread would only print a traceback, and this process would wait forever."""

    def full(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)  # the workers are forks
    with pytest.raises(OSError, match=r"no shared memory for its batch .*No space left.*--shm-size.*run\.workers=0"):
        next(batches(crops(ShapesConfig(size=24, length=20).open()), EvalKeys(images=20, batch=4), workers=1))


def test_a_process_ends_even_if_an_error_keeps_its_loader_alive() -> None:
    script = """
import sys
from mae_transfer.data import CentreCrop, Crops, Order, ShapesConfig, TrainKeys, batches
from mae_transfer.interfaces import ViewSpec

def run():
    crop = CentreCrop().build((ViewSpec(16, "bicubic"),))
    crops = Crops(source=ShapesConfig(size=24, length=20).open(), augmentation=crop, seed=0)
    feed = batches(crops, TrainKeys(order=Order(images=20, batch=4, seed=0)), workers=1)
    next(feed)
    try:
        raise OSError(28, "full")
    except OSError as error:
        kept = error
        raise

run()
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=300).returncode == 1

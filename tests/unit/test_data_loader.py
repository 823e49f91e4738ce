"""The loader: bitwise equal batches for any workers, start, ranks and micro-batches; broken files and workers."""

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.core.masks import AnyMask, Grid, Random
from mae_transfer.core.masks import Block as BlockMask
from mae_transfer.data import (
    Crops,
    EvalKeys,
    FolderConfig,
    Masking,
    Order,
    RandomCrop,
    Sample,
    Shapes,
    ShapesConfig,
    Source,
    TrainKeys,
    Unreadable,
    UnreadableImage,
    batches,
    pick_evenly,
)
from mae_transfer.data.loader import Key, Workers
from mae_transfer.interfaces import Batch, ViewSpec

VIEWS = (ViewSpec(16, "bicubic"), ViewSpec(8, "lanczos"))


class HalfMask:
    """Hides a random half of the patches."""

    def visible(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1] // 2

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(grid[0] * grid[1])


@dataclass(frozen=True)
class Broken:
    """Shapes of which some cannot be read."""

    bad: frozenset[int]
    shapes: Shapes = field(default_factory=lambda: ShapesConfig(size=24, length=20).open())
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> Sample:
        if index in self.bad:
            raise UnreadableImage(f"{self.where(index)}: cut off")
        return self.shapes.read(index)

    def where(self, index: int) -> str:
        return f"img{index}.jpg"


def crops(source: Source | None = None) -> Crops:
    return Crops(
        source=source or ShapesConfig(size=24, length=20).open(),
        augmentation=RandomCrop(jitter=0.4).build(VIEWS),
        seed=0,
        masking=Masking(HalfMask(), (2, 2)),
        predicted=1,
    )


def order(crops_per_image: int = 1) -> Order:
    return Order(images=20, batch=8, seed=0, crops_per_image=crops_per_image)


def take(iterator: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(iterator, count))


def tensors(batch: Batch | None) -> list[Tensor]:
    assert batch is not None
    assert batch.mask is not None
    mask = batch.mask
    return [batch.image, *batch.views, mask.ids_keep, mask.ids_masked, batch.label, batch.index, mask.ids_predicted]


def joined(parts: list[Batch]) -> list[Tensor]:
    return [torch.cat(group) for group in zip(*map(tensors, parts), strict=True)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_has_the_promised_shapes() -> None:
    (batch,) = take(batches(crops(), TrainKeys(order=order())), 1)
    assert batch.mask is not None
    assert [(tuple(t.shape), t.dtype) for t in tensors(batch)] == [
        ((8, 3, 16, 16), torch.uint8),
        ((8, 3, 8, 8), torch.uint8),
        ((8, 2), torch.int64),
        ((8, 2), torch.int64),
        ((8,), torch.int64),
        ((8,), torch.int64),
        ((8, 1), torch.int64),
    ]
    assert torch.cat([batch.mask.ids_keep, batch.mask.ids_masked], dim=1).sort().values.tolist() == [[0, 1, 2, 3]] * 8
    assert batch.label.tolist() == [crops().source.read(int(i)).label for i in batch.index]


@pytest.mark.parametrize("mask", [Random(), BlockMask(min_block=2), Grid()])
def test_the_patches_to_predict_are_a_uniform_draw_of_the_hidden_ones(mask: AnyMask) -> None:
    """Whatever the order in which a sampler names them; and the mask is the one of a run that predicts all."""
    pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
    share = replace(crops(), augmentation=lambda image: (pixel,), masking=Masking(mask, (4, 4)), predicted=3)
    plain = replace(share, predicted=None)
    keys = [Key(0, 0, repeat) for repeat in range(1200)]
    whole, part = (made[keys].batch for made in (plain, share))
    assert whole.mask.ids_predicted is whole.mask.ids_masked
    assert torch.equal(whole.mask.ids_keep, part.mask.ids_keep)
    assert torch.equal(whole.mask.ids_masked.sort().values, part.mask.ids_masked.sort().values)
    blank, mask_of = torch.zeros(len(keys), 16), part.mask
    hidden, drawn = (blank.scatter(1, ids, 1.0) for ids in (mask_of.ids_masked, mask_of.ids_drawn))
    assert part.mask.ids_predicted is part.mask.ids_drawn
    assert drawn.sum(dim=1).eq(3).all()
    assert (drawn <= hidden).all()
    often = hidden.sum(dim=0) > 100
    shares = (drawn.sum(dim=0) / hidden.sum(dim=0))[often]
    assert len(shares) >= 12
    torch.testing.assert_close(shares, torch.full_like(shares, 3 / part.mask.ids_masked.shape[1]), rtol=0, atol=0.08)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_bit(workers: int) -> None:
    alone, helped = (take(batches(crops(), TrainKeys(order=order()), workers=n), 5) for n in (0, workers))
    assert equal(joined(alone), joined(helped))


@pytest.mark.parametrize(
    "helpers",
    [
        Workers(2, prefetch=5),
        pytest.param(Workers(1, start_method="forkserver"), marks=pytest.mark.slow),
        pytest.param(Workers(1, start_method="spawn"), marks=pytest.mark.slow),
    ],
)
def test_prefetching_and_the_start_method_do_not_change_a_bit(helpers: Workers) -> None:
    keys = TrainKeys(order=order())
    alone, helped = (take(batches(crops(), keys, workers=workers), 5) for workers in (0, helpers))
    assert equal(joined(alone), joined(helped))


def test_a_later_start_with_other_workers_continues_bit_for_bit() -> None:
    whole = take(batches(crops(), TrainKeys(order=order(), accumulate=2)), 10)
    rest = take(batches(crops(), TrainKeys(order=order(), accumulate=2, start=3), workers=2), 4)
    assert equal(joined(whole[6:]), joined(rest))


@pytest.mark.parametrize("crops_per_image", [1, 2])
def test_two_ranks_and_two_micro_steps_see_what_one_process_sees(crops_per_image: int) -> None:
    o = order(crops_per_image)
    whole = joined(take(batches(crops(), TrainKeys(order=o)), 2))
    micro = joined(take(batches(crops(), TrainKeys(order=o, accumulate=2)), 4))
    ranks = [take(batches(crops(), TrainKeys(order=o, rank=rank, world=2)), 2) for rank in range(2)]
    assert equal(whole, micro)
    assert equal(whole, joined([ranks[0][0], ranks[1][0], ranks[0][1], ranks[1][1]]))


def test_repeated_crops_share_the_image_and_differ() -> None:
    (batch,) = take(batches(crops(), TrainKeys(order=order(4))), 1)
    assert batch.index[:4].unique().numel() == 1
    assert len({tuple(image.flatten().tolist()) for image in batch.image}) == 8


def test_epochs_crop_the_same_image_differently() -> None:
    first, later = (joined(take(batches(crops(), TrainKeys(order=order(), start=2 * epoch)), 2)) for epoch in (0, 1))
    for image in set(first[5].tolist()) & set(later[5].tolist()):
        assert not torch.equal(first[0][first[5] == image], later[0][later[5] == image])


def test_loading_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3), np.random.seed(3)
    for workers in (0, 1):
        take(batches(crops(), TrainKeys(order=order()), workers=workers), 2)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_evaluation_ends_after_one_pass_with_a_smaller_last_batch() -> None:
    whole = list(batches(crops(), EvalKeys(images=20, batch=8)))
    assert [len(batch.image) for batch in whole] == [8, 8, 4]
    ranks = [list(batches(crops(), EvalKeys(images=20, batch=8, rank=rank, world=3), workers=1)) for rank in range(3)]
    assert equal(joined(whole), joined([batch for rank in ranks for batch in rank]))


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_names_the_file(workers: int) -> None:
    bad = order().keys(1)[3].image
    loader = batches(crops(Broken(frozenset({bad}))), TrainKeys(order=order()), workers=workers)
    assert len(take(loader, 1)) == 1
    with pytest.raises(UnreadableImage, match=rf"^img{bad}\.jpg: cut off"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_replaces_reports_each_file_once_and_stays_exact(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    source, record = Broken(frozenset({1, 2, 3})), Unreadable(limit=3)
    with caplog.at_level(logging.WARNING):
        seen = take(batches(crops(source), TrainKeys(order=order()), workers=workers, unreadable=record), 12)
    assert sorted(record.files) == [1, 2, 3]
    assert sorted(message.split(": ")[1] for message in caplog.messages) == ["img1.jpg", "img2.jpg", "img3.jpg"]
    assert all("skipped: img" in message for message in caplog.messages)
    assert not set(joined(seen)[5].tolist()) & {1, 2, 3}
    again = take(
        batches(crops(source), TrainKeys(order=order(), start=5), workers=2 - workers, unreadable=Unreadable(limit=3)),
        2,
    )
    assert equal(joined(seen[5:7]), joined(again))


def test_skip_keeps_the_crops_of_readable_images() -> None:
    whole = joined(take(batches(crops(Broken(frozenset())), TrainKeys(order=order())), 2))
    holed = joined(
        take(batches(crops(Broken(frozenset({4}))), TrainKeys(order=order()), unreadable=Unreadable(limit=1)), 2)
    )
    kept = whole[5] != 4
    assert equal([t[kept] for t in whole], [t[kept] for t in holed])


def test_skip_stops_above_its_limit() -> None:
    with pytest.raises(UnreadableImage, match="unreadable file number 3, max_unreadable = 2"):
        take(
            batches(crops(Broken(frozenset({1, 2, 3}))), TrainKeys(order=order()), unreadable=Unreadable(limit=2)),
            12,
        )


def test_a_data_set_without_a_readable_file_ends_in_an_error() -> None:
    with pytest.raises(UnreadableImage, match="files in a row are unreadable"):
        take(
            batches(crops(Broken(frozenset(range(20)))), TrainKeys(order=order()), unreadable=Unreadable(limit=100)),
            1,
        )


def test_a_killed_worker_is_one_clear_error() -> None:
    loader = batches(crops(), TrainKeys(order=order()), workers=1)
    next(loader)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a loader worker died"):
        take(loader, 50)


def test_workers_leave_sigterm_to_the_main_process() -> None:
    loader = batches(crops(), TrainKeys(order=order()), workers=1)
    next(loader)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert len(take(loader, 10)) == 10
    loader.close()  # type: ignore[attr-defined]
    worker.join(timeout=10)
    assert not worker.is_alive()


def test_crops_travel_to_a_freshly_started_worker() -> None:
    keys = order().keys(0)
    here, there = crops()[keys].batch, pickle.loads(pickle.dumps(crops()))[keys].batch
    assert equal(tensors(here), tensors(there))


def test_a_file_that_vanished_is_unreadable_too(tmp_path: Path) -> None:
    for index in range(8):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(tmp_path / f"{index}.png")
    folder = FolderConfig(root=str(tmp_path), labelled=False).open()
    (tmp_path / "3.png").unlink()
    share = TrainKeys(order=Order(images=8, batch=8, seed=0))
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        take(batches(crops(folder), share), 1)
    record = Unreadable(limit=1)
    (batch,) = take(batches(crops(folder), share, unreadable=record), 1)
    assert list(record.files) == [3]
    assert 3 not in batch.index


@pytest.mark.parametrize(
    ("count", "images"), [(4, [0, 5, 10, 15]), (1, [0]), (20, list(range(20))), (99, list(range(20)))]
)
def test_a_spread_covers_the_source_evenly(count: int, images: list[int]) -> None:
    source = Broken(frozenset())
    spread = pick_evenly(source, count)
    assert [spread.where(i) for i in range(len(spread))] == [source.where(i) for i in images]
    assert torch.equal(spread.read(0).image, source.read(0).image)

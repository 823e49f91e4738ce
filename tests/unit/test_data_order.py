"""Order, TrainKeys and EvalKeys: the samples of each step and rank."""

from itertools import islice

import pytest

from mae_transfer.data import EvalKeys, Key, Order, TrainKeys


def order(**options: int) -> Order:
    return Order(**{"images": 20, "batch": 8, "seed": 0, **options})


def first(share: TrainKeys, count: int) -> list[list[Key]]:
    return list(islice(share, count))


def test_an_epoch_sees_no_image_twice_and_drops_the_rest() -> None:
    assert order().steps_per_epoch == 2
    for epoch in range(3):
        keys = [key for step in (2 * epoch, 2 * epoch + 1) for key in order().keys(step)]
        assert len({key.image for key in keys}) == 16
        assert {key.epoch for key in keys} == {epoch}


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    images = [[key.image for key in o.keys(step)] for o, step in ((order(), 0), (order(), 2), (order(seed=1), 0))]
    assert images[0] != images[1] != images[2] != images[0]


def test_repeats_are_neighbours_and_lengthen_the_epoch() -> None:
    repeated = order(crops_per_image=4)
    assert repeated.steps_per_epoch == 10
    keys = [key for step in range(10) for key in repeated.keys(step)]
    assert len(set(keys)) == 80
    assert [key.repeat for key in keys] == [0, 1, 2, 3] * 20
    assert [key.image for key in keys[::4]] == [key.image for key in keys[3::4]]


def test_the_order_can_start_at_any_step() -> None:
    assert first(TrainKeys(order=order(), start=3), 4) == first(TrainKeys(order=order()), 7)[3:]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_ranks_and_micro_steps_share_the_same_global_batches(world: int, accumulate: int) -> None:
    shares = [TrainKeys(order=order(), rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step in range(5):
        parts = [first(share, accumulate * (step + 1))[accumulate * step :] for share in shares]
        assert [key for micros in parts for micro in micros for key in micro] == order().keys(step)


def test_a_data_set_smaller_than_the_batch_is_an_error_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"20 images x 1 crops < batch = 32; lower batch"):
        order(batch=32)
    assert order(batch=32, crops_per_image=2).steps_per_epoch == 1


def test_a_batch_that_cannot_be_split_is_an_error_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"batch = 8 cannot be split.*3 processes.*multiple of 3"):
        TrainKeys(order=order(), world=3)
    with pytest.raises(ValueError, match=r"4 crops per image.*multiple of 16"):
        TrainKeys(order=order(crops_per_image=4), world=4)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [1, 5, 20])
def test_evaluation_sees_every_image_once_whatever_the_ranks(world: int, images: int) -> None:
    sweeps = [EvalKeys(images=images, batch=3, rank=rank, world=world) for rank in range(world)]
    assert [key.image for sweep in sweeps for keys in sweep for key in keys] == list(range(images))
    assert [len(sweep) for sweep in sweeps] == [len(list(sweep)) for sweep in sweeps]
    assert all(0 < len(keys) <= 3 for sweep in sweeps for keys in sweep)

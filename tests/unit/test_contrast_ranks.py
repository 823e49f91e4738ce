"""Contrast over two processes, and over micro-steps, is contrast of the whole batch.

SyncBN needs a GPU, so there are no heads here: the objective gets what they would return.
"""

from __future__ import annotations

import multiprocessing
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import Tensor

from mae_transfer.engine.dist import Dist, gather_equal, mean_over_ranks
from mae_transfer.interfaces import Embedded, World
from mae_transfer.objectives import Contrast, ContrastConfig

B, K, Q = 8, 6, 20
Found = dict[str, Tensor]


def objective(queue: int, world: World) -> Contrast:
    torch.manual_seed(0)
    return ContrastConfig(out=K, queue=queue).build(world).double()


def step(contrast: Contrast, seed: int, parts: list[Tensor]) -> Found:
    """Take a step over micro-batches of the images with these numbers; return loss and gradient, averaged over them."""
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(2, B, K, dtype=torch.float64, generator=draw) for _ in range(2))
    queries.requires_grad_()
    losses = [
        contrast(Embedded(queries[0], queries[:, part]), Embedded(keys[0], keys[:, part]), None, 0.0) for part in parts
    ]
    contrast.settle()  # before the backward pass, as in a run
    loss = torch.stack(losses).mean()
    loss.backward()
    assert queries.grad is not None
    return {"loss": loss.detach(), "gradient": queries.grad}


def run(queue: int, world: World, parts: list[Tensor]) -> Found:
    contrast = objective(queue, world)
    steps = [step(contrast, seed, parts) for seed in range(3)]
    found = {name: torch.stack([one[name] for one in steps]) for name in steps[0]}
    return found | ({"queue": contrast.queue} if queue else {})


def of_a_rank(queue: int, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", store=td.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    dist = Dist(torch.device("cpu"), rank=rank, world=2)
    world = World(rank, partial(gather_equal, dist=dist), partial(mean_over_ranks, dist=dist))
    found = run(queue, world, list(torch.arange(B).chunk(2)[rank].chunk(2 if queue else 1)))
    found["loss"], found["gradient"] = (world.mean(found[name]) for name in ("loss", "gradient"))  # as DDP does
    torch.save(found, folder / f"{rank}.pt")
    td.destroy_process_group()


@pytest.mark.parametrize("queue", [0, Q], ids=["batch", "queue"])
def test_two_processes_contrast_as_one(queue: int, tmp_path: Path) -> None:
    """A step has a micro-step of 4 images per process; with a queue, two of 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks
        ranks = [
            multiprocessing.get_context("fork").Process(target=of_a_rank, args=(queue, rank, tmp_path))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    one, (first, second) = run(queue, World(), [torch.arange(B)]), (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    for found in (first, second):
        torch.testing.assert_close(found, one)


def test_a_queue_does_not_depend_on_micro_steps() -> None:
    """1 x 8 images against 4 x 2: equal losses, gradients and queues."""
    whole, parts = (run(Q, World(), list(torch.arange(B).chunk(count))) for count in (1, 4))
    torch.testing.assert_close(parts, whole)
    assert not torch.equal(whole["queue"], objective(Q, World()).queue)


def test_a_queue_is_newest_first_and_of_unit_length() -> None:
    queue = run(Q, World(), [torch.arange(B)])["queue"]
    draw = torch.Generator().manual_seed(2)
    keys = [torch.randn(2, B, K, dtype=torch.float64, generator=draw) for _ in range(2)][1]
    torch.testing.assert_close(queue[:, :B], keys / keys.norm(dim=2, keepdim=True))
    torch.testing.assert_close(queue.norm(dim=2), torch.ones(2, Q, dtype=torch.float64))

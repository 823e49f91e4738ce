"""Contrast over two processes, and over micro-steps, is contrast of the whole batch.

torch's SyncBN needs a GPU, so the objective gets what heads would return, and heads have a batch norm written here.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
from torch import Tensor, nn

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


def of_a_rank(rank: int, folder: Path) -> None:
    """Save what this process finds with a batch alone, with a queue and with heads, averaged over both, as DDP does."""
    torch.set_num_threads(1)
    td.init_process_group("gloo", store=td.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    dist = Dist(torch.device("cpu"), rank=rank, world=2)
    world = World(rank, partial(gather_equal, dist=dist), partial(mean_over_ranks, dist=dist))
    images = torch.arange(B).chunk(2)[rank]
    found = {"batch": run(0, world, [images]), "queue": run(Q, world, list(images.chunk(2)))}
    found["heads"] = train_heads(world, images, 2)
    for part in found.values():
        part.update({name: world.mean(value) for name, value in part.items() if name != "queue"})
    torch.save(found, folder / f"{rank}.pt")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """What each of two processes finds. A process that is forked after torch.compile ran cannot compute gradients."""
    folder, spawn = tmp_path_factory.mktemp("ranks"), multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=of_a_rank, args=(rank, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{r}.pt") for r in range(2)]


@pytest.mark.parametrize(("kind", "queue"), [("batch", 0), ("queue", Q)])
def test_two_processes_contrast_as_one(ranks: list[dict[str, Found]], kind: str, queue: int) -> None:
    """A step has a micro-step of 4 images per process; with a queue, two of 2."""
    one = run(queue, World(), [torch.arange(B)])
    for found in ranks:
        torch.testing.assert_close(found[kind], one)


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


class Summed(torch.autograd.Function):
    """The sum of a tensor over the processes, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        td.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Summed.forward(ctx, gradient)


class Averaged(nn.Module):
    """A batch norm over the images of all processes, as SyncBN computes it on cuda."""

    def __init__(self, norm: nn.BatchNorm1d, processes: int) -> None:
        super().__init__()
        self.norm, self.processes = norm, processes

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.stack([x.sum(dim=0), x.square().sum(dim=0)])
        mean, square = (Summed.apply(sums) if self.processes > 1 else sums) / (len(x) * self.processes)
        centred = (x - mean) / (square - mean.square() + self.norm.eps).sqrt()
        return centred if self.norm.weight is None else centred * self.norm.weight + self.norm.bias


def train_heads(world: World, images: Tensor, processes: int) -> Found:
    """Return loss and gradients of MoCo v3's heads, of student and teacher, over a part of the features."""
    torch.manual_seed(1)
    cfg = ContrastConfig(out=K, hidden=12)
    student, teacher = (cfg.heads(10) for _ in range(2))
    heads = nn.ModuleList([student.image, student.predictor, teacher.image]).double()
    for parent in list(heads.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.BatchNorm1d):
                setattr(parent, name, Averaged(part, processes))
    features = torch.randn(2, B, 10, dtype=torch.float64)[:, images]
    with torch.no_grad():
        keys = heads[2](features)
    loss = objective(0, world)(
        Embedded(features[0], heads[1](heads[0](features))), Embedded(features[0], keys), None, 0.0
    )
    loss.backward()
    trained = {name: p.grad for name, p in heads.named_parameters() if p.grad is not None}
    assert len(trained) > 6
    return {"loss": loss.detach()} | trained


def test_heads_with_batch_norms_over_two_processes_train_as_those_of_one(ranks: list[dict[str, Found]]) -> None:
    one = train_heads(World(), torch.arange(B), 1)
    for found in ranks:
        torch.testing.assert_close(found["heads"], one)

"""Errors of one rank reach all of them: no rank waits for one that has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as td

from mae_transfer.config import validate
from mae_transfer.engine.dist import Dist, agree, on_all, on_main
from mae_transfer.tasks.evaluation import Evaluation, LabelledFeatures
from mae_transfer.tasks.knn import KNN, KnnConfig
from mae_transfer.tasks.logreg import LogisticRegression
from mae_transfer.tasks.ridge import Ridge

CPU = torch.device("cpu")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Dist], object]], list[str]]:
    """Run a function on two ranks, which are threads, and return their errors."""
    barrier, sent = threading.Barrier(2, timeout=20), [None, None]

    def exchange(value: Any) -> list[Any]:
        sent[int(threading.current_thread().name)] = value
        barrier.wait()
        found = list(sent)
        barrier.wait()
        return found

    def broadcast(values: list[Any], **_: Any) -> None:
        values[:] = exchange(values)[0]

    def gather(values: list[Any], value: Any, **_: Any) -> None:
        values[:] = exchange(value)

    monkeypatch.setattr(td, "broadcast_object_list", broadcast)
    monkeypatch.setattr(td, "all_gather_object", gather)

    def run(function: Callable[[Dist], object]) -> list[str]:
        errors = ["", ""]

        def one(rank: int) -> None:
            try:
                function(Dist(CPU, rank, 2))
            except (ValueError, OSError) as error:
                errors[rank] = str(error)

        threads = [threading.Thread(target=one, args=(rank,), name=str(rank)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors

    return run


@pytest.mark.parametrize("error", [ValueError("no"), PermissionError(13, "no")])
def test_what_fails_on_one_rank_fails_on_all(ranks: Any, error: Exception) -> None:
    def failing() -> None:
        raise error

    assert ranks(lambda dist: on_main(dist, failing)) == [str(error)] * 2
    assert ranks(lambda dist: agree(failing, dist)) == [str(error)] * 2
    assert ranks(lambda dist: on_all(dist, failing if dist.rank else lambda: None)) == [str(error)] * 2
    assert ranks(lambda dist: on_all(dist, lambda: None)) == ["", ""]


@pytest.mark.parametrize("evaluator", [KNN((1,)), Ridge(), LogisticRegression((1.0,))])
def test_features_of_one_rank_that_are_not_finite_stop_all(ranks: Any, evaluator: Any) -> None:
    train = LabelledFeatures(torch.randn(8, 2), torch.arange(8) % 2)

    def judge(dist: Dist) -> None:
        val = LabelledFeatures(torch.full((3, 2), torch.nan if dist.rank else 1.0), torch.zeros(3, dtype=torch.int64))
        evaluator(train, val, classes=2, dist=dist)

    first, second = ranks(judge)
    assert "3 of 3" in first
    assert first == second


def test_fewer_images_than_processes_are_refused() -> None:
    sets = {"train": {"name": "shapes", "length": 6, "size": 32}, "val": {"name": "shapes", "length": 2, "size": 32}}
    values = {"task": "knn", "scale": "mini", "ks": (1,), "data": {**sets, "size": 32}}
    cfg = validate(values, KnnConfig, where="test")
    with pytest.raises(ValueError, match=r"a set has 2 images for 3 processes: start fewer processes"):
        Evaluation(cfg, Dist(CPU, 0, 3)).open()

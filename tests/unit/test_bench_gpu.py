"""The benchmark of all tasks: its cases name contestants that exist, ours first; the tiny form runs on a CPU."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch

from mae_transfer.bench import benchmark, detect, gpu
from mae_transfer.models.vit import ViTConfig

CPU = torch.device("cpu")


def test_each_case_races_ours_against_a_peer_on_images_that_its_patches_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    own: list[int] = []

    def compare(comparison: Any, work: Any, **options: Any) -> list[dict[str, Any]]:
        seen.append((list(comparison.contestants), work, options))
        own.append(comparison.own)
        return [{"name": name, "images_per_s": 1.0} for name in comparison.contestants]

    monkeypatch.setattr(gpu, "compare", compare)
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, dtype: 1e12)
    records = gpu.run(CPU, tiny=False, rounds=3, steps=10)
    assert [record["name"] for record in records[:2]] == ["bfloat16", "float32"]
    assert [record["step"] for record in records[2:]] == [case.step for case in gpu.CASES for _ in case.contestants]
    assert own == [3 if detect.FLEX in case.contestants else 1 for case in gpu.CASES]
    for names, work, options in seen:
        assert len(names) >= 2
        assert options["steps"] == 10
        ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image}).grid()
    assert {name for names, *_ in seen for name in names[1:]} >= {
        "transformers", "lightly + timm", "timm.task", "detectron2's ViTDet", "mmseg.train_step",
    }  # fmt: skip


def test_without_a_gpu_only_the_tiny_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run", lambda device, *, tiny, **options: [{"tiny": tiny}])
    args = {"device": "cpu", "rounds": 1, "steps": 1}
    assert benchmark.everything(Namespace(tiny=True, **args)) == [{"tiny": True}]
    with pytest.raises(ValueError, match="gpu needs a CUDA device, and --device cpu is cpu: --tiny"):
        benchmark.everything(Namespace(tiny=False, **args))


@pytest.mark.slow
@pytest.mark.parametrize("case", gpu.CASES, ids=lambda case: case.step)
def test_the_tiny_form_runs_on_a_cpu_and_names_what_is_not_installed(case: gpu.Case) -> None:
    records = gpu.run(CPU, tiny=True, rounds=1, steps=1, cases=[case])[1:]
    assert [record["name"] for record in records] == list(case.contestants)
    for number, record in enumerate(records):
        ran = record.get("images_per_s", 0) > 0 and record["peak_memory_gib"] > 0
        assert ran or (number > 0 and "not installed" in record["failure"])

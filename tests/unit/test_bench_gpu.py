"""The benchmark of all tasks: its cases name contestants that exist, ours first; the tiny form runs on a CPU."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_transfer.bench import benchmark, gpu
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
    records = list(gpu.run(CPU, tiny=False, rounds=3, steps=10))
    assert [record["name"] for record in records[:2]] == ["bfloat16", "float32"]
    assert [record["step"] for record in records[2:]] == [case.step for case in gpu.CASES for _ in case.contestants]
    several = ("pretrain B/16", "ViTDet-B, 1024 px")
    assert own == [3 if case.step in several else 1 for case in gpu.CASES]
    for names, work, options in seen:
        modes = options["modes"]
        assert {len(modes[name]) for name in names if name.startswith("mae_transfer")} <= {1}
        if work.image == 1024:  # each is a process with its memory on one GPU
            assert (work.batch, sum(map(len, modes.values()))) == (1, 5)
        assert len(names) >= 2
        assert options["steps"] == 10
        ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image}).grid()
    assert {name for names, *_ in seen for name in names[1:]} >= {
        "transformers", "lightly + timm", "timm.task", "detectron2's ViTDet", "mmseg.train_step",
    }  # fmt: skip


def test_without_a_gpu_only_the_tiny_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run", lambda device, *, tiny, **options: [{"tiny": tiny}])
    args = {"device": "cpu", "rounds": 1, "steps": 1, "only": None}
    assert benchmark.everything(Namespace(tiny=True, **args)) == [{"tiny": True}]
    with pytest.raises(ValueError, match="gpu needs a CUDA device, and --device cpu is cpu: --tiny"):
        benchmark.everything(Namespace(tiny=False, **args))


def test_only_some_cases_run_and_what_is_found_is_on_the_disk_if_the_next_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def compare(comparison: Any, work: Any, **options: Any) -> list[dict[str, Any]]:
        if len(ran) == 2:
            raise RuntimeError("the GPU is gone")
        ran.append(work.size)
        return [{"name": name} for name in comparison.contestants]

    monkeypatch.setattr(gpu, "compare", compare)
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, dtype: 1e12)
    args = {"benchmark": "gpu", "tiny": True, "device": "cpu", "rounds": 1, "steps": 1, "json": tmp_path / "gpu.json"}
    wanted = ["pretrain L/16", "DINO S/16", "UperNet-B, 512 px"]
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        benchmark.run(Namespace(only=wanted, **args))
    written = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert [record["step"] for record in written] == ["matmul", *["pretrain L/16"] * 2, *["DINO S/16"] * 2]
    with pytest.raises(ValueError, match=r"--only 'pretrain B' is not a case: name some of \['pretrain B/16', "):
        benchmark.run(Namespace(only=["pretrain B"], **args))


@pytest.mark.slow
@pytest.mark.parametrize("case", gpu.CASES, ids=lambda case: case.step)
def test_the_tiny_form_runs_on_a_cpu_and_names_what_is_not_installed(case: gpu.Case) -> None:
    records = list(gpu.run(CPU, tiny=True, rounds=1, steps=1, cases=[case]))[1:]
    assert [record["name"] for record in records] == list(case.contestants)
    for number, record in enumerate(records):
        ran = record.get("images_per_s", 0) > 0 and record["peak_memory_gib"] > 0
        assert ran or (number > 0 and "not installed" in record["failure"])

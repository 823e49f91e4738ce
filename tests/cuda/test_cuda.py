"""Every task on a GPU: debug runs, precisions, resume, compilation, no waiting in a step, several processes.

Each test has a twin on the CPU, which runs the same code and fails where the test itself is wrong. The twins that take
longer are slow tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mae_transfer.config import load
from mae_transfer.data import DataConfig, FolderConfig, Order, TrainKeys, batches, training_crops
from mae_transfer.engine.dist import compile_blocks, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, train
from mae_transfer.models import attention
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.task import Task

ROOT = Path(__file__).parents[2]


class Run(NamedTuple):
    """A task as a config of this project has it."""

    config: str
    task: str  # "module:class" in mae_transfer.tasks; its schema is named class + "Config"
    tool: tuple[str, ...] = ("pretrain",)
    waits: bool = False  # whether a step waits for the device: the regions of a detector depend on values


RUNS = {
    "pretrain": Run("pretrain/mae_vit_base_16_800e", "pretrain:Pretrain"),
    "tokens": Run("pretrain/beit_vit_base", "pretrain:Pretrain"),
    "dino": Run("pretrain/dino_vit_base", "joint:JointEmbedding"),
    "moco": Run("pretrain/moco_v3_vit_base", "joint:JointEmbedding"),
    "tokenizer": Run("mini/tokenizer", "tokenizer:Tokenizer", ("tokenizer_train", "dvae")),
    "finetune": Run("classify/finetune_vit_base", "classify:Classify", ("cls_train",)),
    "probes": Run("classify/linear_probe_row", "classify:Classify", ("cls_train",)),
    "detect": Run("detect/mini", "detect:Detect", ("det_train",), waits=True),
    "segment": Run("segment/mini", "segment:Segment", ("seg_train",)),
}
SCHEMAS = {"joint:JointEmbedding": "joint:JointConfig"}


def cuda(*values: Any) -> Any:
    """Return a parameter set with the device "cuda"; it is skipped without one.

    Not every warning of torch's compiler, or of a GPU's libraries, is an error there.
    """
    return pytest.param("cuda", *values, marks=[pytest.mark.cuda, pytest.mark.filterwarnings("default")])


CUDA = cuda()
SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)
every_task = pytest.mark.parametrize("name", RUNS)


def config_of(run: Run, device: str, *changes: str) -> Any:
    """Return the config of a debug run: a tiny model, two steps."""
    schema = resolve_name(f"mae_transfer.tasks.{SCHEMAS.get(run.task, run.task + 'Config')}")
    overrides = (f"run.device={device}", "run.progress=False", *changes)
    return load(ROOT / "configs" / f"{run.config}.py", schema, overrides=overrides, debug=True)


def task_of(run: Run) -> type[Task[Any]]:
    found: type[Task[Any]] = resolve_name(f"mae_transfer.tasks.{run.task}")
    return found


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def launch(name: str, folder: Path, device: str, *changes: str, resume: bool = False) -> dict[int, float]:
    """Train a debug run to its end and return its losses by step; all are finite."""
    results = task_of(RUNS[name]).launch(config_of(RUNS[name], device, *changes), folder, resume=resume)
    assert results
    if device == "cuda":
        assert {result.device for result in results} == {torch.cuda.get_device_name()}
    found = losses(folder)
    assert max(found) == 2
    assert all(loss == loss for loss in found.values())
    return found


@every_task
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_in_each_precision(name: str, device: str, precision: str, tmp_path: Path) -> None:
    if precision == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported(False):
        pytest.skip("this GPU has no bfloat16")
    launch(name, tmp_path, device, f"precision={precision}", "run.compile=False")


@every_task
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA])
def test_a_resumed_run_ends_where_the_whole_one_does(name: str, device: str, tmp_path: Path) -> None:
    changes = ("run.save_every=1", "precision=float32", "run.compile=False")
    whole = launch(name, tmp_path, device, *changes)
    (tmp_path / "checkpoints" / "step_00000002.pt").unlink()
    (tmp_path / "results.jsonl").unlink()
    resumed = launch(name, tmp_path, device, *changes, resume=True)
    # some kernels of a GPU sum in no fixed order
    assert resumed == (whole if device == "cpu" else pytest.approx(whole, rel=1e-3))


@pytest.fixture
def light_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU the compiler only captures graphs: its code takes minutes to build."""
    torch._dynamo.reset()
    if request.getfixturevalue("device") == "cpu":
        find = torch._dynamo.lookup_backend
        monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: find("eager"))
    yield
    torch._dynamo.reset()


@every_task
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
@pytest.mark.usefixtures("light_compiler")
def test_a_compiled_run_starts_as_an_eager_one(
    name: str, device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The losses of the first step agree without drop path, whose draws differ in compiled code."""
    runs = [
        launch(name, tmp_path / str(compiled), device, "precision=float32", f"run.compile={compiled}")
        for compiled in (False, True)
    ]
    if name not in ("finetune", "detect", "segment", "dino"):
        assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-3)
    assert not [record for record in caplog.records if "the compiler failed" in record.getMessage()]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
@pytest.mark.usefixtures("light_compiler")
def test_compiled_blocks_with_drop_path_can_recompute_their_activations(
    device: str, skip: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}
    vit = ViT(ViTConfig(**small, drop_path=0.5, skip_dropped=skip)).to(device).train()
    vit.set_grad_checkpointing(True)
    compile_blocks(vit)
    for images in torch.randn(3, 8, 3, 32, 32, device=device):
        vit(images, norm=True).maps[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters() if p.requires_grad)
    assert not [record for record in caplog.records if "the compiler failed" in record.getMessage()]


@pytest.mark.parametrize("options", [
    {"relative_positions": "decomposed", "windows": 7, "global_blocks": (1,), "class_token": False},
    {"relative_positions": "shared"},
])  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
@pytest.mark.usefixtures("light_compiler", "flex_with_gradients")
def test_flex_attention_is_the_bias_without_its_memory(
    options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU, a step takes less memory than the bias of one image in float32. The first step also compiles."""
    side, heads = (64 if device == "cuda" else 8), 2
    size = {"size": None, "dim": 32, "depth": 2, "heads": heads, "patch": 8, "image_size": 8 * side}
    torch.manual_seed(0)
    vit = ViT(ViTConfig.model_validate(size | options)).to(device)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 8 * side, 8 * side, device=device)

    def step() -> list[Tensor]:
        vit.zero_grad()
        out = vit(images).maps[0]
        out.square().mean().backward()
        return [out.detach(), *(p.grad.clone() for p in vit.parameters() if p.grad is not None)]

    expected = step()
    attention.set_position_bias(vit, "flex", device=torch.device("cuda"), compiled=True)
    compile_blocks(vit)
    monkeypatch.setattr(attention, "attend", None)  # calling it fails
    for one, other in zip(step(), expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    assert not [message for message in caplog.messages if "the compiler failed" in message]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        assert torch.cuda.max_memory_allocated() - before < 4 * heads * side**4


def forbid_waiting(device: str) -> Callable[[bool], None]:
    """Return a function that forbids synchronisation, or allows it again; on a CPU it does nothing."""
    if device == "cpu":
        return lambda forbidden: None
    return lambda forbidden: torch.cuda.set_sync_debug_mode("error" if forbidden else "default")


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if not run.waits])
@pytest.mark.parametrize(("device", "compiled"), [
    ("cpu", False), pytest.param("cpu", True, marks=pytest.mark.slow), cuda(False), cuda(True),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
@pytest.mark.usefixtures("light_compiler")
def test_a_real_step_that_does_not_log_never_waits_for_the_device(
    name: str, device: str, compiled: bool, tmp_path: Path
) -> None:
    """Loader, task and loop take part; the first two steps may wait: lazy parts are made there, and graphs compiled."""
    where = "device" if name in ("dino", "moco", "finetune") else "worker"
    changes = ("run.log_every=1000000", "epochs=3", f"run.compile={compiled}", f"run.augment_on={where}")
    cfg, seen = config_of(RUNS[name], device, *changes), []
    forbid = forbid_waiting(device)
    with session(cfg.run.device) as dist:
        task = task_of(RUNS[name])(cfg, dist)
        task.open()
        loop = task.loop().model_copy(update={"evaluate_every": None})
        task.prepare(loop)
        task.state = task.build_state(loop)

        def loss(model: nn.Module, batch: Any, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
            forbid(at.number > 1 and not at.logs)
            seen.append((at.number, at.logs))
            return task.loss(model, batch, at)

        try:
            with closing(task.feed(loop)) as feed, Logger(tmp_path, steps=loop.steps, progress=False) as log:
                train(task.state, feed, loss, loop, rates_at=task.rates_at(loop), log=log, checkpoints=None)
        finally:
            forbid(False)
    assert len([number for number, logs in seen if number > 1 and not logs]) >= 2


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_crops_decoded_on_the_device_are_close_to_those_of_the_workers(device: str, tmp_path: Path) -> None:
    """Equal on CPU. A GPU's decoder rounds in another way, and a process of its own may crash."""
    codec = pytest.importorskip("nvidia.nvimgcodec")
    if device == "cuda" and codec.__version__.startswith("0.9."):
        pytest.skip("nvImageCodec 0.9 crashes on GPUs; runs refuse it")
    y, x = np.mgrid[0:600, 0:800]
    for index in range(8):
        waves = [np.sin(x / (9 + index)), np.sin(y / 8), np.sin((x + y) / 12)]
        picture = Image.fromarray((np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8))
        picture.save(tmp_path / f"{index}.jpg", quality=95)
    if device == "cpu":
        assert gaps_of_decoders(tmp_path, device) == [0, 0, 0]
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert max(process.submit(gaps_of_decoders, tmp_path, device).result(300)) < 1


def gaps_of_decoders(folder: Path, device: str) -> list[float]:
    """Return the mean difference of the crops of three batches in grey levels."""
    cfg, source = DataConfig(size=224), FolderConfig(root=str(folder), labelled=False).open()
    keys = TrainKeys(order=Order(images=8, batch=8, seed=1))
    here, there = (
        batches(training_crops(cfg, source, seed=1, decode_on=where), keys) for where in (None, torch.device(device))
    )
    found = [(next(here).image, next(there).image) for _ in range(3)]
    assert {images.device.type for _, images in found} == {device}
    return [(one.int() - other.cpu().int()).abs().float().mean().item() for one, other in found]


def on_two_processes(name: str, folder: Path, device: str) -> dict[int, float]:
    run = RUNS[name]
    tool, *words = run.tool
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"tools/{tool}.py",
        *words, f"configs/{run.config}.py", "--debug", "--work-dir", str(folder),
        "--set", f"run.device={device}", "--set", "precision=float32", "--set", "run.progress=False",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return losses(folder)


@every_task
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA])
def test_two_processes_start_as_one_does(name: str, device: str, tmp_path: Path) -> None:
    """With NCCL, and with batch norms over both processes (MoCo v3's heads), the loss of the first step is that of one.

    Not where a process draws its own random numbers (drop path, mixup, regions), and not for batch norms on a CPU.
    """
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    two = on_two_processes(name, tmp_path / "two", device)
    assert max(two) == 2
    if name in ("pretrain", "tokens") or (name == "moco" and device == "cuda"):
        one = launch(name, tmp_path / "one", device, "precision=float32")
        assert two[1] == pytest.approx(one[1], rel=1e-4)

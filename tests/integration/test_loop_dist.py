"""Two gloo processes do what one does on the same global batch, agree on when to stop, and fail together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import equal, rows

from mae_transfer.engine import checkpoint
from mae_transfer.engine import dist as engine_dist
from mae_transfer.engine.dist import (
    Dist,
    SyncBatchNorm,
    assemble,
    peak_memory_gib,
    pick_device,
    read_mean,
    session,
    synchronized,
    unwrap_model,
)
from tests.integration.conftest import Torchrun

SCRIPT = Path(__file__).with_name("toy.py")
CPU = Dist(torch.device("cpu"))


def start(python: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, folder, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def saved(folder: Path) -> dict:
    return checkpoint.load_newest(folder / "checkpoints").payload


def test_two_processes_train_as_one_on_the_same_global_batch(torchrun: Torchrun, tmp_path: Path) -> None:
    """float64, SGD, 5 steps, accumulation 2 and 4, clipping (which compares the reduced gradient's norm), averaging."""
    for world in (1, 2):
        torchrun(SCRIPT, tmp_path / str(world), "--exact", "--steps", "5", processes=world)
    one, two = saved(tmp_path / "1"), saved(tmp_path / "2")
    for part in ("model", "ema"):
        for name, value in one[part].items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(two[part][name], value, rtol=1e-12, atol=1e-12)
    assert one["images_seen"] == two["images_seen"]
    for a, b in zip(rows(tmp_path / "1"), rows(tmp_path / "2"), strict=True):
        assert a["step"] == b["step"]
        assert [b["loss"], b["grad_norm"]] == pytest.approx([a["loss"], a["grad_norm"]], rel=1e-10)
    resumed = torchrun(SCRIPT, tmp_path / "2", "--exact", "--steps", "8", processes=1).stdout
    assert resumed.strip().endswith("ended at step 8 stopped=False")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(python: Path, tmp_path: Path) -> None:
    process = start(python, tmp_path, "--steps", "100000", "--step", "slow")
    deadline = time.monotonic() + 600
    while checkpoint.newest(tmp_path / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "rank1.pid").read_text()), signal.SIGTERM)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    step = saved(tmp_path)["step"]
    assert f"rank 0 ended at step {step} stopped=True" in output
    assert f"rank 1 ended at step {step} stopped=True" in output
    assert output.count("continue with --resume") == 1


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(python: Path, tmp_path: Path) -> None:
    process = start(python, tmp_path, "--step", "nan")
    output = process.communicate(timeout=600)[0]
    assert process.returncode != 0
    assert "not finite at step 6" in output
    assert "sample ids on rank 1: [52, 53, 54, 55]" in output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.pt"]


def test_without_torchrun_a_session_is_one_process() -> None:
    with session("cpu") as dist:
        assert (dist.rank, dist.world, dist.is_main) == (0, 1, True)
        assert read_mean({"b": torch.tensor(2), "a": torch.tensor(0.5)}, dist) == {"a": 0.5, "b": 2.0}


@pytest.mark.parametrize(("device", "left"), [("cpu", 1), ("cuda", 0)])
def test_an_error_does_not_wait_for_the_other_processes_of_nccl(
    device: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, name=name, **__: calls.append(name))
    monkeypatch.setattr(engine_dist, "pick_device", lambda *_, **__: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="of this rank alone"), session():
        raise ValueError("of this rank alone")
    assert calls.count("destroy_process_group") == left
    with session():
        pass
    assert calls.count("destroy_process_group") == left + 1


def test_a_device_that_is_absent_is_an_error_that_names_what_is_there() -> None:
    absent = next(
        name
        for name, here in (("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available()))
        if not here
    )
    with pytest.raises(ValueError, match=rf"device '{absent}' is not available.*'cpu'"):
        pick_device(absent)
    assert pick_device("auto").type in {"cuda", "mps", "cpu"}


def test_assembling_keeps_the_names_and_switches_what_is_asked_for() -> None:
    class Model(nn.Sequential):
        checkpointing = False

        def set_grad_checkpointing(self, enable: bool) -> None:
            self.checkpointing = enable

    model = Model(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = list(model.state_dict())
    ready = assemble(model, dist=CPU, compile=True, checkpoint_activations=True)
    assert unwrap_model(ready) is model
    assert model.checkpointing
    assert list(ready.state_dict()) == names
    with pytest.raises(ValueError, match=r"Linear has no set_grad_checkpointing"):
        assemble(nn.Linear(2, 2), dist=CPU, checkpoint_activations=True)


def test_batch_norms_of_several_processes_are_synchronised_or_the_user_hears_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_dist, "_parallel", lambda model, _: model)
    two, notice = Dist(CPU.device, world=2), "SyncBN needs several cuda processes; on cpu x 2"
    with caplog.at_level(logging.WARNING):
        assemble(nn.BatchNorm1d(2), dist=CPU)
        assemble(nn.Linear(2, 2), dist=two)
        assert not caplog.messages
        assert type(assemble(nn.BatchNorm1d(2), dist=two)) is nn.BatchNorm1d
    assert [message.startswith(notice) for message in caplog.messages] == [True]
    monkeypatch.setattr(Dist, "sync_bn", True)
    assert type(assemble(nn.BatchNorm1d(2), dist=two)) is SyncBatchNorm


def test_synchronised_batch_norm_keeps_names_values_and_types_and_what_it_saves_is_no_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks must send the same type, whether their batch is empty or not; that the sums are right needs two GPUs."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = synchronized(model)
    assert type(ready[1]) is SyncBatchNorm  # type: ignore[index]
    assert equal(before, ready.state_dict())
    given: list[torch.Tensor] = []
    plain = nn.SyncBatchNorm.forward
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, input: plain(self, given.append(input) or input))
    saved: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        hidden = ready[0](torch.randn(6, 2))  # type: ignore[index]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
        ):  # type: ignore[func-returns-value]
            out = ready[1](hidden)  # type: ignore[index]
        empty = ready.eval()(torch.randn(0, 2))
    assert [value.dtype for value in (*given, out, empty)] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    assert [tensor.dtype for tensor in saved if tensor.shape == hidden.shape] == [torch.bfloat16]
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ready.parameters())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compares with Linux's own account of the process")
def test_peak_memory_of_a_cpu_run_is_the_process_high_water_mark_in_gib() -> None:
    kib = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    assert peak_memory_gib(CPU.device) == pytest.approx(kib / 2**20, rel=0.05)

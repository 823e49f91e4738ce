"""How a run ends early: signals, kill -9, numbers that are no longer finite. What is on disk is good in every case."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import BATCH, QUIET, Toy, ToyBatch, config, equal, go, new_state, rows, toy_step, weights

from mae_transfer import disk
from mae_transfer.engine import checkpoint, interrupt
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import NonFiniteLoss
from mae_transfer.engine.loop import Step

CPU = Dist(torch.device("cpu"))
SCRIPT = Path(__file__).with_name("toy.py")


def start(python: Path, folder: Path, *options: str, steps: int) -> subprocess.Popen[str]:
    command = [str(python), str(SCRIPT), str(folder), "--steps", str(steps), "--step", "slow", *options]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while checkpoint.newest(folder / "checkpoints") is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signalling(number: signal.Signals, at: int) -> Any:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        if step.number == at:
            os.kill(os.getpid(), number)
        return toy_step(model, batch, step)

    return step_fn


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_continue(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    state = go(tmp_path / "cut", config(), new_state(config(), CPU), step_fn=signalling(number, 6))
    assert (state.stopped, state.step) == (True, 7)
    assert "saved at step 7 of 10; continue with --resume" in capsys.readouterr().out
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    rest = go(tmp_path / "cut", config(), new_state(config(), CPU))
    assert (rest.stopped, rest.step) == (False, 10)
    assert equal(weights(rest), weights(go(tmp_path / "whole", config(), new_state(config(), CPU))))


@pytest.mark.parametrize(("every", "at"), [(4, 4), (None, 10)])
def test_a_signal_ends_an_evaluation_between_two_batches_and_the_next_sitting_repeats_it(
    tmp_path: Path, every: int | None, at: int
) -> None:
    cfg, seen = config(evaluate_every=every), []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        for batch in range(3):
            seen.append((step, batch))
            if len(seen) == 2:
                assert checkpoint.newest(tmp_path / "cut" / "checkpoints").name == f"step_{at:08d}.pt", "saved first"
                os.kill(os.getpid(), signal.SIGTERM)
            if interrupt.Interrupt.active is not None:
                interrupt.Interrupt.active.check()
        return {"figure": float(step)}

    cut = go(tmp_path / "cut", cfg, new_state(cfg, CPU), evaluate=evaluate)
    assert (cut.stopped, cut.step, seen) == (True, at, [(at, 0), (at, 1)])
    assert interrupt.Interrupt.active is None
    rest = go(tmp_path / "cut", cfg, new_state(cfg, CPU), evaluate=evaluate)
    assert seen[2:5] == [(at, 0), (at, 1), (at, 2)]
    whole = go(tmp_path / "whole", cfg, new_state(cfg, CPU), evaluate=lambda model, step: {"figure": float(step)})
    assert equal(weights(rest), weights(whole))
    assert rest.metrics == whole.metrics == {"figure": 10.0}
    marks = [[(row["kind"], row["step"]) for row in rows(tmp_path / name)] for name in ("cut", "whole")]
    assert marks[0] == marks[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_work_dir_that_is_removed_stops_the_run(tmp_path: Path) -> None:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        if step.number == 2:
            shutil.rmtree(tmp_path / "run")
        return toy_step(model, batch, step)

    with pytest.raises(OSError, match=r"run/\S+ was not written \(No such file or directory\): its folder"):
        go(tmp_path / "run", config(), new_state(config(), CPU), step_fn=step_fn)
    assert not (tmp_path / "run").exists()


def test_a_second_signal_acts_as_it_always_does(tmp_path: Path) -> None:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(interrupt.ECHO * 1.1)
        os.kill(os.getpid(), signal.SIGINT)
        return toy_step(model, batch, step)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts its background jobs with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, config(), new_state(config(), CPU), step_fn=step_fn)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loss_scale_that_has_vanished_stops_the_run(tmp_path: Path) -> None:
    """Finite losses with gradients that are not: GradScaler skips every step, and nothing is learned."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * float("nan")

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = toy_step(model, batch, step)
        return Broken.apply(loss), metrics

    cfg = config(steps=100, precision="float16")
    with pytest.raises(NonFiniteLoss, match=r"the loss scale is .*: no gradient was finite for a long time"):
        go(tmp_path, cfg, new_state(cfg, CPU), step_fn=step_fn)


def test_states_that_are_kept_for_good_are_saved_for_that(tmp_path: Path) -> None:
    cfg = config(steps=10, run=QUIET.model_copy(update={"save_every": None, "keep_every": 4, "keep_last": 1}))
    go(tmp_path, cfg, new_state(cfg, CPU))
    assert sorted(path.name for path in tmp_path.rglob("step_*.pt")) == [
        "step_00000004.pt",
        "step_00000008.pt",
        "step_00000010.pt",
    ]


def test_echoes_of_a_signal_are_that_signal(tmp_path: Path) -> None:
    """torchrun and batch systems send SIGTERM to the group and to each process; the terminal sends Ctrl-C to all."""

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return toy_step(model, batch, step)

    state = go(tmp_path, config(), new_state(config(), CPU), step_fn=step_fn)
    assert (state.stopped, state.step) == (True, 1)
    assert list(tmp_path.rglob("step_00000001.pt"))


def test_sigterm_ends_a_process_with_exit_status_0_and_a_resumable_state(python: Path, tmp_path: Path) -> None:
    process = start(python, tmp_path, steps=100_000)
    wait_for_checkpoint(tmp_path, process)
    process.terminate()
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    step = checkpoint.load_newest(tmp_path / "checkpoints").payload["step"]
    assert f"saved at step {step} of 100000; continue with --resume" in output
    assert f"ended at step {step} stopped=True" in output


def kill_at_a_random_moment(python: Path, folder: Path, seed: int) -> None:
    process = start(python, folder, steps=100_000)
    wait_for_checkpoint(folder, process)
    time.sleep(random.Random(seed).uniform(0.0, 0.4))
    process.kill()
    process.communicate(timeout=600)
    loaded = checkpoint.load_newest(folder / "checkpoints")
    assert loaded.notices == []
    reached = rows(folder)[-1]["step"]  # logged every 4 steps, saved every 5
    assert loaded.payload["step"] >= reached - QUIET.save_every
    assert loaded.payload["images_seen"] == loaded.payload["step"] * BATCH
    (folder / "checkpoints" / ".step_99999999.pt.tmp").write_bytes(b"as if killed within a write")
    more = config(steps=loaded.payload["step"] + 5)
    assert go(folder, more, new_state(more, CPU)).step == more.steps
    assert all(path.name.startswith("step_") for path in (folder / "checkpoints").iterdir())
    steps = [row["step"] for row in rows(folder)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_at_most_the_steps_since_the_last_save(python: Path, tmp_path: Path, seed: int) -> None:
    kill_at_a_random_moment(python, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_kill_9_twenty_times(python: Path, tmp_path: Path, seed: int) -> None:
    kill_at_a_random_moment(python, tmp_path, seed)


def kill_within_a_write(python: Path, folder: Path, seed: int) -> None:
    """Kill a run while its second or a later state is half written; the state before it is the one that counts."""
    process, states = start(python, folder, "--slow-writes", steps=100_000), folder / "checkpoints"
    wait_for_checkpoint(folder, process)
    wait, deadline = random.Random(seed).uniform(0.0, 0.15), time.monotonic() + 600
    while not any(states.glob(".step_*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(wait)
    process.kill()
    process.communicate(timeout=600)
    loaded = checkpoint.load_newest(states)
    step = loaded.payload["step"]
    assert loaded.notices == []
    half = [int(path.name.split("_")[1].split(".")[0]) for path in states.glob(".step_*.tmp")]
    assert half in ([], [step + QUIET.save_every])  # a busy machine may have killed it too late
    long = config(steps=100_000)
    whole = go(folder / "whole", long, new_state(long, CPU), step_fn=signalling(signal.SIGTERM, step - 1))
    assert equal(weights(whole), loaded.payload["model"])
    rest = go(folder, long, new_state(long, CPU), step_fn=signalling(signal.SIGTERM, step + 1))
    assert rest.step == step + 2
    assert not any(states.glob(".step_*.tmp"))


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_within_a_write_leaves_the_state_before_it(python: Path, tmp_path: Path, seed: int) -> None:
    kill_within_a_write(python, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_kill_9_within_a_write_twenty_times(python: Path, tmp_path: Path, seed: int) -> None:
    kill_within_a_write(python, tmp_path, seed)


def test_training_goes_on_while_a_state_is_written_and_a_failed_write_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 5 fails while the loop is in step 7; the run ends after that step with the usual error."""
    begun, proceed, failed, seen = threading.Event(), threading.Event(), threading.Event(), []

    def full(descriptor: int) -> None:
        seen.append("writing")
        begun.set()
        proceed.wait(600)
        failed.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        if step.number == 7:
            begun.wait(600)  # the other thread may be late
        seen.append(step.number)
        if step.number == 7:
            proceed.set()
            failed.wait(600)
            time.sleep(1.0)  # until the loop can see it, on a busy machine, too
        return toy_step(model, batch, step)

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match=r"checkpoint .*step_00000005\.pt was not written .*No space left on device"):
        go(tmp_path, config(), new_state(config(), CPU), step_fn=step_fn)
    assert seen[-1] == 7
    assert seen.count("writing") == 1
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_naming_step_rate_samples_and_the_last_good_checkpoint(
    tmp_path: Path, accumulate: int
) -> None:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = toy_step(model, batch, step)
        return loss * (float("inf") if step.number == 6 and step.micro == accumulate - 1 else 1.0), metrics

    cfg = config(accumulate=accumulate)
    ids = ", ".join(str(index) for index in range(6 * BATCH, 7 * BATCH))
    with pytest.raises(
        NonFiniteLoss,
        match=rf"not finite at step 6 \(lr 4\.\d+e-02; sample ids on rank 0: \[{ids}\]\).*step_00000005\.pt",
    ):
        go(tmp_path, cfg, new_state(cfg, CPU), step_fn=step_fn)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.pt"]
    loaded = checkpoint.load_newest(tmp_path / "checkpoints").payload
    assert all(torch.isfinite(value).all() for value in loaded["model"].values())
    assert rows(tmp_path)[-1]["step"] == 4


def test_a_loss_that_is_not_finite_is_named_beside_the_failure_of_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = toy_step(model, batch, step)
        if step.number == 6:
            proceed.set()
        return loss * (float("inf") if step.number == 6 else 1.0), metrics

    def fail(*_: Any, **__: Any) -> Path:
        proceed.wait(600)
        raise RuntimeError("the writer failed")

    proceed = threading.Event()
    monkeypatch.setattr(checkpoint, "save", fail)
    monkeypatch.setattr(checkpoint.Writer, "check", lambda writer: None)
    with pytest.raises(NonFiniteLoss, match=r"at step 6 .*good checkpoint is none \(the writer failed\): lower"):
        go(tmp_path, config(), new_state(config(), CPU), step_fn=step_fn)


def test_a_save_between_two_log_lines_finds_the_loss_too(tmp_path: Path) -> None:
    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = toy_step(model, batch, step)
        return loss * (float("nan") if step.number == 4 else 1.0), metrics

    with pytest.raises(NonFiniteLoss, match=r"not finite at step 4 .*checkpoint is none"):
        go(tmp_path, config(), new_state(config(), CPU), step_fn=step_fn)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("where", ["parameter", "buffer", "average", "moment"])
def test_no_checkpoint_ever_holds_a_number_that_is_not_finite(tmp_path: Path, where: str) -> None:
    cfg = config(steps=5, ema_decay=0.9)
    state = new_state(cfg, CPU)

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        if step.number == 4:
            moment = state.optimizer.state[model[0].weight]["exp_avg"]
            victim = {
                "parameter": model[4].weight,
                "buffer": model[1].running_var,
                "average": state.ema.module[0].bias,
                "moment": moment,
            }[where]
            result = toy_step(model, batch, step)
            victim.data[0] = float("nan")
            return result
        return toy_step(model, batch, step)

    with pytest.raises(NonFiniteLoss, match="parameter, buffer or moment is not finite after step 4"):
        go(tmp_path, cfg, state, step_fn=step_fn)
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_stops_the_run_with_one_sentence_and_the_older_checkpoint_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = config(steps=5)
    go(tmp_path, half, new_state(half, CPU, model=Toy()))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step_00000010\.pt was not written .* continue with --resume"):
        go(tmp_path, config(), new_state(config(), CPU))
    monkeypatch.undo()
    assert go(tmp_path, config(), new_state(config(), CPU)).step == 10

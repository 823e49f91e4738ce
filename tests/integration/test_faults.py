"""Faults that a run survives: lost and damaged files, other data, a second run.

The slow tests kill processes and limit their disk and memory. They repeat each fault MAE_TRANSFER_FAULTS times (default
2) at other moments and with other sizes and bits.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_runs import ROOT, config, run_options, values

from mae_transfer import locks, results
from mae_transfer.checkpoints import sha256
from mae_transfer.config import validate
from mae_transfer.results import Result
from mae_transfer.tasks import pretrain, tokenizer
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.tokenizer import TokenizerConfig
from mae_transfer.tasks.workdir import WorkDir

TIMES = int(os.environ.get("MAE_TRANSFER_FAULTS", "2"))
SHORT = {"epochs": 1.0, "schedule": {"warmup_epochs": 0.5}}
LIMIT_S = 300  # for a process that should end at once


def numbers(folder: Path) -> list[tuple[str, float | None]]:
    return [(r.metric, r.value) for r in results.load(WorkDir(folder).results)[0]]


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
            folder / f"{index:02}.png"
        )
    return folder


def of_photos(folder: Path, **changes: Any) -> PretrainConfig:
    data = values()["data"] | {"root": str(folder), "train": {"name": "folder", "labelled": False}, "val": None}
    return config(**SHORT, **changes, data=data | changes.get("data", {}))


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    cfg = of_photos(photos(tmp_path / "photos", 16))
    pretrain.Pretrain.launch(cfg, tmp_path / "run")
    before = numbers(tmp_path / "run"), sha256(WorkDir(tmp_path / "run").backbone)
    photos(tmp_path / "photos", 24)
    (tmp_path / "photos" / "03.png").unlink()
    with pytest.raises(
        ValueError,
        match=r"data of .*run have changed since.*\n"
        r"  train: 16 files .* 23 of .*: 1 removed \(03\.png\); 8 added \(16\.png, ",
    ):
        pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)
    assert (numbers(tmp_path / "run"), sha256(WorkDir(tmp_path / "run").backbone)) == before


def test_a_state_that_notes_nothing_of_the_data_goes_on_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(**SHORT)
    pretrain.Pretrain.launch(cfg, tmp_path / "run")
    (path,) = WorkDir(tmp_path / "run").checkpoints.iterdir()
    payload = torch.load(path, weights_only=True)
    del payload["extra"]["data"]
    torch.save(payload, path)
    WorkDir(tmp_path / "run").results.unlink()
    assert pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)
    assert "by a version that did not record the data" in capsys.readouterr().out


def dvae() -> TokenizerConfig:
    options = {
        **SHORT, "scale": "mini", "batch": 8, "precision": "float32", "pictures": 2, "evaluate_images": 3,
        "optim": {"lr": 1e-3},
        "data": values()["data"] | {"size": 32}, "model": {"codes": 16, "width": 8, "decoder_input": 8, "blocks": 1},
        "run": values()["run"],
        "tau": {"start": 1.0, "end": 0.0625, "epochs": "60%"}, "kl": {"start": 0.0, "end": 6.6, "epochs": "2%"},
    }  # fmt: skip
    return validate(options, TokenizerConfig, where="test")


MAKERS: dict[str, tuple[Callable[[], Any], Callable[..., list[Result]], str]] = {
    "pretrain": (lambda: config(**SHORT), pretrain.Pretrain.launch, "backbone.safetensors"),
    "tokenizer": (dvae, tokenizer.Tokenizer.launch, "tokenizer.safetensors"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_finished_run_writes_its_file_again_where_it_is_gone_or_damaged(
    maker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, run, name = MAKERS[maker]
    written, path = run(make(), tmp_path / "run"), tmp_path / "run" / name
    whole = path.read_bytes()
    path.unlink()
    assert run(make(), tmp_path / "run", resume=True) == written
    assert path.read_bytes() == whole
    flip(path, 0)
    assert run(make(), tmp_path / "run", resume=True) == written
    assert path.read_bytes() == whole
    told = capsys.readouterr().out
    assert f"{path} is missing: it is written again" in told
    assert f"{path} is damaged: it is written again" in told


@pytest.mark.parametrize("lost", ["a line", "the end of the last line", "everything"])
def test_a_run_is_finished_only_with_all_of_its_numbers(lost: str, tmp_path: Path) -> None:
    written = tokenizer.Tokenizer.launch(dvae(), tmp_path / "run")
    file = WorkDir(tmp_path / "run").results
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(
        {"a line": b"".join(lines[1:]), "the end of the last line": b"".join(lines)[:-200], "everything": b""}[lost]
    )
    again = tokenizer.Tokenizer.launch(dvae(), tmp_path / "run", resume=True)
    found, defects = results.load(file)
    assert ([(r.metric, r.value) for r in found], defects) == ([(r.metric, r.value) for r in written], [])
    assert found == again


def test_a_second_run_in_one_work_dir_is_refused_and_names_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    with (
        locks.locked(tmp_path / "run" / ".run.lock", owner="process 7 on node1"),
        pytest.raises(
            ValueError,
            match=r"run is in use by process 7 on node1: wait for it to end, stop it, or use another --work-dir",
        ),
    ):
        pretrain.Pretrain.launch(config(**SHORT), tmp_path / "run")
    assert pretrain.Pretrain.launch(config(**SHORT), tmp_path / "run")


def flip(path: Path, seed: int) -> None:
    """Flip one bit of a file, somewhere."""
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TIMES))
def test_a_flipped_bit_in_any_file_of_a_finished_run_is_mended_or_named(seed: int, tmp_path: Path) -> None:
    cfg = config(**run_options(save_every=5))
    pretrain.Pretrain.launch(cfg, tmp_path / "whole")
    expected, artifact = numbers(tmp_path / "whole"), sha256(WorkDir(tmp_path / "whole").backbone)
    names = [
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    for name in names:
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        flip(tmp_path / "run" / name, seed)
        with suppress(ValueError) if name.name == "config.py" else nullcontext():  # which may be refused
            pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)
        assert set(expected) <= set(numbers(tmp_path / "run")), name
        assert sha256(WorkDir(tmp_path / "run").backbone) == artifact, name
        shutil.rmtree(tmp_path / "run")


# -------------------------------------------------------------------------------------------- the slow tests: processes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, float | None]]]:
    """A config file for the tool, and the numbers of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    options = {"workers": 1, "save_every": 4, "device_batch": 8}
    cfg = config(epochs=20.0, evaluate_epochs=2.0, **run_options(**options), data=values()["data"] | {"size": 16})
    (folder / "run.py").write_text(cfg.source())
    assert start(folder / "run.py", folder / "d").wait(LIMIT_S) == 0
    return folder / "run.py", numbers(folder / "d")


def start(file: Path, work_dir: Path, *words: str, before: str = "") -> subprocess.Popen[bytes]:
    """Start the tool in its own session; `before`: shell commands that start it in its own mount namespace."""
    command = [
        sys.executable,
        str(ROOT / "tools" / "pretrain.py"),
        str(file),
        "--work-dir",
        str(work_dir),
        "--resume",
        *words,
    ]
    if before:
        command = ["unshare", "-m", "sh", "-c", before + ' && exec "$@"', "sh", *command]
    log = (file.parent / "out.txt").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def left(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of a session that are alive 5 seconds after its first one ended."""
    end = time.monotonic() + 5
    while True:
        found = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-s", str(process.pid)], capture_output=True, text=True
        ).stdout.splitlines()
        alive = [int(line.split()[0]) for line in found if "Z" not in line.split()[1]]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def finish(file: Path, work_dir: Path, expected: list[tuple[str, float | None]]) -> None:
    process = start(file, work_dir)
    assert process.wait(LIMIT_S) == 0, (file.parent / "out.txt").read_text()[-2000:]
    assert left(process) == []
    assert numbers(work_dir) == expected, "nothing lost, nothing double"
    assert WorkDir(work_dir).backbone.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seed", range(TIMES))
def test_a_signal_at_any_moment_loses_nothing(
    number: signal.Signals, seed: int, undisturbed: Any, tmp_path: Path
) -> None:
    file, expected = undisturbed
    draw = random.Random(f"{number} {seed}")
    process = start(file, tmp_path / "d")
    time.sleep(draw.uniform(0.5, 12.0))
    process.send_signal(number)
    process.wait(LIMIT_S)
    assert left(process) == []
    finish(file, tmp_path / "d", expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TIMES))
def test_two_runs_at_once_leave_one_set_of_numbers(seed: int, undisturbed: Any, tmp_path: Path) -> None:
    file, expected = undisturbed
    both = [start(file, tmp_path / "d") for _ in range(2)]
    assert sorted(process.wait(LIMIT_S) for process in both) == [0, 1]
    assert [left(process) for process in both] == [[], []]
    finish(file, tmp_path / "d", expected)


def may_mount() -> bool:
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("share", [(k + 0.5) / (4 * TIMES) for k in range(4 * TIMES)])
def test_a_disk_that_fills_up_at_any_write_loses_nothing(share: float, undisturbed: Any, tmp_path: Path) -> None:
    """The disk has room for a share of what the run leaves; then for all of it."""
    if not may_mount():
        pytest.skip("needs the right to mount")
    file, expected = undisturbed
    size = sum(path.stat().st_size for path in (file.parent / "d").rglob("*") if path.is_file())
    kilobytes = max(16, round(share * size / 1024))
    (tmp_path / "disk").mkdir()
    filled = (
        f"mount -t tmpfs -o size={kilobytes}k none {tmp_path}/disk; "
        f"trap 'cp -a {tmp_path}/disk/. {tmp_path}/kept' EXIT; true"
    )
    process = start(file, tmp_path / "disk" / "d", before=filled.replace("; true", "") + '; "$@"; exit $?; true')
    status = process.wait(LIMIT_S)
    assert left(process) == []
    assert status == 1
    (tmp_path / "disk").rmdir()
    (tmp_path / "kept").rename(tmp_path / "disk") if (tmp_path / "kept").exists() else (tmp_path / "disk").mkdir()
    finish(file, tmp_path / "disk" / "d", expected)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 40, 56])  # no worker can start, some can, no batch fits
def test_shared_memory_that_is_full_ends_the_run_with_the_remedy(
    kilobytes: int, undisturbed: Any, tmp_path: Path
) -> None:
    if not may_mount():
        pytest.skip("needs the right to mount")
    file, expected = undisturbed
    words = ["--set", "run.workers=2", "--set", "run.device_batch=None"]
    process = start(file, tmp_path / "d", *words, before=f"mount -t tmpfs -o size={kilobytes}k none /dev/shm")
    assert process.wait(LIMIT_S) == 1
    assert left(process) == []
    assert "lower run.workers" in (file.parent / "out.txt").read_text()
    finish(file, tmp_path / "d", expected)

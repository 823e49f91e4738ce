"""What a suite starts ends with it, however the suite ends: no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARK = "MAE_TRANSFER_TEST_MARK"
SUITE = f"""
title = "long"
tables = ("knn",)
encoder = dict(size=None, dim=32, depth=2, heads=2, patch=8, image_size=32)
rows = {{"random init": dict(fresh={{"backbone.encoder": encoder}})}}
images = dict(name="shapes", size=32, length=4000)
knn = {{"data.train": images, "data.val": {{**images, "seed": 1}}, "data.size": 32, "run.workers": 2}}
transfer = {{"knn": dict(tool="cls_train", config="{ROOT}/configs/classify/mini_knn.py", set=knn)}}
del encoder, images, knn
"""
PATIENCE_S = 60  # what was left behind stayed for half an hour; a busy machine needs some seconds for what takes one


def marked(mark: str) -> list[str]:
    """Return the command lines of the processes with this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found += [f"{entry.name}: {words}"] if words else []  # a zombie has none
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are listed by /proc")
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGKILL, signal.SIGINT))],
)
def test_nothing_is_left_of_a_suite_that_is_ended_while_k_nn_reads_images(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "suite.py").write_text(SUITE)
    mark = f"{os.getpid()}-{number.name}"
    log = tmp_path / "d" / "random_init" / "knn" / "seed0" / "log.jsonl"
    command = [
        sys.executable,
        str(ROOT / "tools" / "reproduce.py"),
        str(tmp_path / "suite.py"),
        "--work-dir",
        str(tmp_path / "d"),
    ]
    with (tmp_path / "output").open("w") as output:
        suite = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, MARK: mark})
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and suite.poll() is None and not (log.is_file() and len(marked(mark)) > 4):
            time.sleep(0.05)
        started = marked(mark)
        assert len(started) > 4, started  # the suite, its tracker and its server, k-NN, a worker
        suite.send_signal(number)
        suite.wait(timeout=60)
        deadline = time.monotonic() + PATIENCE_S
        while marked(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not marked(mark), (started, (tmp_path / "output").read_text())
        assert not log.with_name("results.jsonl").exists(), "it was not stopped, it went on to its end"
    finally:
        for left in marked(mark):
            os.kill(int(left.partition(":")[0]), signal.SIGKILL)

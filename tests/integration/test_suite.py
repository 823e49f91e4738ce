"""tools/reproduce.py with real runs on a CPU; killed at random moments it ends with the same values, bit for bit."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from mae_transfer import results
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.local.view import show_plan
from mae_transfer.suite.store import records
from mae_transfer.suite.store.work import Work

ROOT = Path(__file__).parents[2]
SIZE = 32
SUITE = f"""
title = "tiny"
tables = ("3", "knn")
data = {{"data.train": {{"name": "shapes", "size": {SIZE}, "length": 64}}}}
data |= {{"data.val": {{"name": "shapes", "size": {SIZE}, "length": 16, "seed": 1}}}}
small = {{**data, "data.size": {SIZE}, "batch": 8, "run.log_every": 1, "run.workers": 0}}
encoder = dict(size=None, dim=32, depth=2, heads=2, patch=8, image_size={SIZE})
rows = {{
    "pixels": dict(
        config="{ROOT}/configs/mini/pretrain.py",
        set={{**small, "epochs": 4, "model": {{"encoder": encoder, "decoder": {{"dim": 16, "depth": 1, "heads": 2}}}}}},
    ),
    "random init": dict(fresh={{"backbone.encoder": encoder}}, fresh_in={{"finetune": {{"optim.layer_decay": 1.0}}}}),
}}
knn = {{key: value for key, value in small.items() if key not in ("batch", "run.log_every")}}
transfer = {{
    "finetune": dict(tool="cls_train", config="{ROOT}/configs/classify/mini.py", set={{**small, "epochs": 3}}),
    "knn": dict(
        tool="cls_train", config="{ROOT}/configs/classify/mini_knn.py", set={{**knn, "ks": (3,)}}, rows=("pixels",)
    ),
}}
expect = (dict(claim="Pixels are better", column="fine-tune", row="pixels", above="random init"),)
del data, small, encoder, knn
"""
KILLS = 2


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    file = tmp_path / "suite.py"
    file.write_text(SUITE)
    return file


def start(python: Path, suite: Path, work_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(python), str(ROOT / "tools" / "reproduce.py"), str(suite), "--work-dir", str(work_dir), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finished(python: Path, suite: Path, work_dir: Path, *options: str) -> str:
    process = start(python, suite, work_dir, *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def values(work_dir: Path) -> dict[tuple[str, str, str, str], float | None]:
    found, defects = records.load([work_dir])
    assert not defects
    names = [(r.note.name if r.note else "", r.result.protocol, r.result.split, r.result.metric) for r in found]
    assert len(set(names)) == len(names), "a number was written twice"
    return {name: record.result.value for name, record in zip(names, found, strict=True)}


@pytest.fixture(scope="session")
def undisturbed(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.py").write_text(SUITE)
    output = finished(python, folder / "suite.py", folder / "d", "--archive", str(folder / "archive"))
    assert "done random_init/finetune/seed0" in output
    assert "Summary: pretrainings by tasks" in output
    assert records.about_of(folder / "d").tables
    return folder / "d"


def test_a_finished_suite_repeats_nothing_and_shows_its_tables_again(python: Path, undisturbed: Path) -> None:
    before = values(undisturbed)
    output = finished(python, undisturbed.parent / "suite.py", undisturbed)
    assert "start" not in output
    assert values(undisturbed) == before
    text = io.StringIO()
    show_plan(
        Work(open_plan(undisturbed.parent / "suite.py")[1], undisturbed, suite="tiny"), Console(file=text, width=200)
    )
    assert "4 done, 0 to run" in text.getvalue()


def test_an_archive_alone_gives_tables_claims_and_report_without_a_run(
    python: Path, undisturbed: Path, tmp_path: Path
) -> None:
    archive = undisturbed.parent / "archive"
    output = finished(python, undisturbed.parent / "suite.py", tmp_path / "d", "--archive", str(archive))
    assert " start " not in output
    assert "Claims of the paper" in output
    assert "fine-tune: pixels > random init" in output
    assert values(tmp_path / "d") == values(undisturbed)
    assert values(archive) == values(undisturbed)
    assert "Claims of the paper: numbers by seed" in (tmp_path / "d" / "report.html").read_text()


def disturbed(python: Path, suite: Path, work_dir: Path, kills: int, seed: int) -> None:
    """Start the suite, end its process at random moments by one signal or the other, and then let it finish."""
    rng = random.Random(seed)
    for kill in range(kills):
        process = start(python, suite, work_dir)
        wait_for_a_run(work_dir, process)
        time.sleep(rng.uniform(0.0, 3.0))
        process.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kill % 3])
        process.communicate(timeout=120)
    finished(python, suite, work_dir)


def wait_for_a_run(work_dir: Path, process: subprocess.Popen[str]) -> None:
    notes = len(list(work_dir.rglob("node.json")))
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(work_dir.rglob("log.jsonl"))) < notes + 1 and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_values(
    python: Path, kills: int, suite: Path, undisturbed: Path, tmp_path: Path
) -> None:
    disturbed(python, suite, tmp_path / "d", kills, seed=kills)
    assert values(tmp_path / "d") == values(undisturbed)


def test_a_damaged_line_does_not_stop_the_tables(undisturbed: Path, tmp_path: Path) -> None:
    file = next(undisturbed.glob("pixels/knn/seed0/results.jsonl"))
    copy = tmp_path / "knn" / "results.jsonl"
    copy.parent.mkdir()
    copy.write_text(file.read_text() + json.dumps({"run": "cut"})[:-3] + "\n")
    assert len(results.load(copy)[0]) == len(results.load(file)[0])


@pytest.mark.parametrize("damage", ["flipped", pytest.param("gone", marks=pytest.mark.slow)])
def test_a_damaged_backbone_is_exported_again_and_nothing_else_is_repeated(
    python: Path, damage: str, undisturbed: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(undisturbed, tmp_path / "d")
    backbone = copy / "pixels/pretrain/seed0/backbone.safetensors"
    content = backbone.read_bytes()
    backbone.write_bytes(
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    ) if damage == "flipped" else backbone.unlink()
    output = finished(python, undisturbed.parent / "suite.py", copy)
    assert [line.split()[2] for line in output.splitlines() if line.split()[1:2] == ["start"]] == [
        "pixels/pretrain/seed0"
    ]
    assert backbone.read_bytes() == content
    assert values(copy) == values(undisturbed)


@pytest.mark.slow
def test_two_processes_per_run_end_with_the_numbers_of_one(python: Path, tmp_path: Path) -> None:
    """gloo on this machine. Each rank draws its own drop path and mixup, so the fine-tuning has none."""
    calm = '"protocol": {"name": "finetune", "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0}'
    (tmp_path / "suite.py").write_text(SUITE.replace('"epochs": 3}', f'"epochs": 3, {calm}}}'))
    values = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ("--device", "cpu", "--gpus-per-node", str(processes))
        finished(python, tmp_path / "suite.py", folder, *options)
        found, defects = records.load([folder])
        assert not defects
        values.append({(each.file.parent.relative_to(folder), each.result.metric): each.result for each in found})
    one, two = values
    assert one.keys() == two.keys()
    assert {result.world_size for result in two.values()} == {1, 2}, "k-NN takes one process, training two"
    for key, result in one.items():
        assert two[key].value == pytest.approx(result.value, rel=1e-3), key

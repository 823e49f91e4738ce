"""The wheel holds configs and commands: the demo's first step runs from an empty folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mae_transfer.checkpoints import released
from mae_transfer.cli.main import COMMANDS, configs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources and unpack it, as pip does for a package of pure Python."""
    work = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if not (ROOT / name).is_file() or name.startswith(("tests/", "docs/")):
            continue
        (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(work)]
    done = subprocess.run([*build, str(work / "source")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mae_transfer", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_the_wheel_has_configs_commands_and_types_and_no_benchmarks(installed: Path) -> None:
    package = installed / "mae_transfer"

    assert (package / "py.typed").is_file()
    assert len(list((package / "configs").rglob("*.py"))) == len(configs().splitlines())
    assert {command.script for command in COMMANDS.values()} <= {path.stem for path in (package / "tools").iterdir()}
    assert not (package / "bench").exists()
    assert (
        "mae-transfer = mae_transfer.cli.main:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    )


def test_the_wheel_has_the_model_zoo(installed: Path) -> None:
    shipped = {path.name for path in (installed / "mae_transfer" / "zoo").iterdir()}
    assert shipped >= {"README.md", released.SUMS, *(f"{name}.safetensors" for name in released.zoo_names())}


def test_the_first_step_of_the_demo_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = call(installed, tmp_path, "pretrain", "mini/pretrain", "--debug", "--work-dir", "runs/first")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "first" / "backbone.safetensors").is_file()


def test_a_suite_starts_its_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    words = ("suites/mini", "--debug", "--work-dir", "runs/mini", "--only", "pixel_w_norm/pretrain")
    done = call(installed, tmp_path, "suite", *words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "runs" / "mini").rglob("backbone.safetensors"))


@pytest.mark.parametrize("command", [(), ("--version",), ("configs",), ("detect", "--list"), ("detect", "--help")])
def test_information_needs_no_work_dir(command: tuple[str, ...], installed: Path, tmp_path: Path) -> None:
    done = call(installed, tmp_path, *command)

    assert done.returncode == 0, done.stderr
    assert "mae-transfer" in done.stdout or "mini" in done.stdout


def test_an_unknown_command_names_the_known_ones(installed: Path, tmp_path: Path) -> None:
    done = call(installed, tmp_path, "detekt")

    assert done.returncode == 2
    assert "no command 'detekt'" in done.stderr
    assert "detect" in done.stderr

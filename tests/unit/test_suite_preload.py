"""Runs of a suite fork from a process with all imports done, and the report is written while the next run works."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.graph.toolbox import TOOLBOX
from mae_transfer.suite.local import preload
from mae_transfer.suite.local.run import Machine, modules_of
from tests.unit.test_suite_run import ALL, Stage

ROOT = Path(__file__).parents[2]
NEW = """
import contextlib, io, json, runpy, sys, importlib
tool, words, modules = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
before = {name.partition(".")[0] for name in sys.modules}
sys.argv = [tool, *words]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_path(tool, run_name="__main__")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names))))
"""


GPU = """
import json, os, sys
import torch
started = []
torch._C._cuda_getDeviceCount = lambda: started.append(1) or 1
torch.cuda._is_compiled = lambda: True
torch.cuda._device_count_nvml = lambda: 1
from mae_transfer.suite.local import preload
preload.preload(json.loads(sys.argv[1]))
import mmengine.device
print(json.dumps([mmengine.device.utils.DEVICE, len(started), torch.cuda.is_available(), len(started)]))
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_all_that_the_runs_of_a_plan_import_is_imported_ahead_and_nothing_else(stage: Stage) -> None:
    stage.run()
    assert isinstance(stage.modules, tuple)
    assert {
        "mae_transfer.tasks.pretrain",
        "mae_transfer.tasks.classify",
        "torch.utils.tensorboard",
        "mmengine.config",
    } < set(stage.modules)
    assert not {
        name
        for name in stage.modules
        if name.startswith(("mmseg", "mae_transfer.tasks.detect", "mae_transfer.tasks.segment"))
    }
    every = modules_of(open_plan(ROOT / "configs" / "suites" / "mini.py")[1].values())
    assert {f"mae_transfer.tasks.{name}" for name in ("pretrain", "classify", "knn", "detect", "segment")} < set(every)
    assert {"mmseg.models", "mmseg.datasets.transforms", "pycocotools.cocoeval", "faster_coco_eval"} < set(every)
    assert all(importlib.util.find_spec(name) for name in every)


def test_torchrun_starts_its_own_processes_so_nothing_is_imported_ahead(stage: Stage) -> None:
    stage.run(machine=Machine(processes=2))
    assert stage.modules == ()


def test_a_config_that_cannot_be_read_is_the_failure_of_its_run_alone(stage: Stage, tmp_path: Path) -> None:
    node = next(iter(stage.work.plan.values()))
    (tmp_path / "spoilt.py").write_text("task = ")
    assert modules_of([node._replace(config=tmp_path / "spoilt.py")]) == ()


def test_imports_ahead_say_nothing_and_fail_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loud_module.py").write_text(
        "import sys, warnings\nprint(1)\nprint(2, file=sys.stderr)\nwarnings.warn('3')\n"
    )
    (tmp_path / "old_module.py").write_text("raise AssertionError('another version')\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preload.preload(["no_such_module", "old_module", "loud_module"])
    assert "loud_module" in sys.modules
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("seg_train", "segment/mini"),
        ("det_train", "detect/mini"),
        ("cls_train", "classify/mini"),
        ("pretrain", "mini/pretrain"),
    ],
)
def test_a_run_imports_no_package_after_it_was_forked(kind: str, config: str, tmp_path: Path) -> None:
    file = ROOT / "configs" / f"{config}.py"
    tool = TOOLBOX[kind]
    call = [
        str(ROOT / "tools" / tool.script),
        [str(file), "--debug", "--work-dir", str(tmp_path / "run")],
        tool.modules(file),
    ]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEW, json.dumps(call)], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_the_report_is_written_after_every_run_while_the_next_one_works(stage: Stage) -> None:
    seen: list[tuple[int, int]] = []
    stage.refresh = lambda: seen.append(
        (sum(state == "done" for state in stage.runner.states.values()), len(stage.started))
    )  # type: ignore[method-assign]
    stage.run()
    assert seen == [(done, done + 1) for done in range(1, len(ALL))]  # publish() writes it once more at the end


def test_a_report_that_cannot_be_written_is_said_and_stops_nothing(stage: Stage) -> None:
    def refresh() -> None:
        raise KeyError("a defect of the report")

    stage.refresh = refresh  # type: ignore[method-assign]
    assert stage.run() == dict.fromkeys(ALL, "done")
    assert (
        sum("the report was not updated: KeyError: 'a defect of the report'" in said for said in stage.said)
        == len(ALL) - 1
    )


def test_runs_record_the_commit_of_the_code_that_was_imported_ahead() -> None:
    program = """
from mae_transfer import record
record._commit = lambda: ("imported", False)
import mae_transfer.suite.local.preload
record._commit = lambda: ("later", False)
print(record.software().commit)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "imported"


def test_imports_ahead_do_not_start_cuda_which_a_fork_could_not_use() -> None:
    """They still find the GPU. A run that asks for it starts CUDA."""
    modules = modules_of(open_plan(ROOT / "configs" / "suites" / "mini.py")[1].values())
    done = subprocess.run(
        [sys.executable, "-c", GPU, json.dumps(sorted(modules))], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout.splitlines()[-1]) == ["cuda", 0, True, 1]

"""suite/local/run.py with fake runs: the order of runs, failures, repeated runs, and the resulting tables."""

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from rich.console import Console

from mae_transfer import locks, results
from mae_transfer.checkpoints.files import write
from mae_transfer.results import Result
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.graph.shape import Shape
from mae_transfer.suite.local import job
from mae_transfer.suite.local.run import Machine, Runner
from mae_transfer.suite.local.view import View, hours_left, show_plan
from mae_transfer.suite.store import records
from mae_transfer.suite.store.steps import error_line, protocols, record_missing
from mae_transfer.suite.store.work import Work
from mae_transfer.suite.tables.cells import cells
from tests.unit.test_tables import result

ROOT = Path(__file__).parents[2]
SUITE = f"""
title = "t"
tables = ("3",)
seeds = (0, 1)
rows = {{
    "a": dict(config="{ROOT}/configs/mini/pretrain.py"),
    "b": dict(config="{ROOT}/configs/mini/pretrain.py", set={{"mask.ratio": 0.5}}),
}}
transfer = {{"finetune": dict(tool="cls_train", config="{ROOT}/configs/classify/mini.py")}}
"""
ALONE = Machine()
SWEPT = (
    f'{ROOT}/configs/classify/mini.py", sweep=dict(grid={{"optim.lr": (1e-4, 1e-3)}}, '
    'set={"data.holdout_fraction": 0.1})'
)
ALL = [
    "a/pretrain/seed0",
    "b/pretrain/seed0",
    "a/finetune/seed0",
    "a/finetune/seed1",
    "b/finetune/seed0",
    "b/finetune/seed1",
]


def end(fate: str, asleep: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if fate == "sleeps":
        asleep.touch()
        time.sleep(60)
    sys.exit(1 if fate.startswith("fails") else 0)


class Stage:
    """Replaces the tools: writes the files of a run and ends as `fate` says ("fails", "sleeps"; default: success)."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, text: str = SUITE) -> None:
        self.root, self.fate, self.started, self.devices = root, dict[str, str](), list[str](), dict[str, str]()
        self.most, self.modules = 0, object()
        self.suite = root / "suite.py"
        self.suite.parent.mkdir(parents=True, exist_ok=True)
        self.suite.write_text(text)
        self.work = self.opened()
        monkeypatch.setattr(job, "start", self.start)

    def opened(self) -> Work:
        return Work(open_plan(self.suite)[1], self.root / "d", suite="t")

    def start(
        self, command: list[str], folder: Path, *, environment: Mapping[str, str], modules: object, threads: object
    ) -> ForkProcess:
        name = str(folder.relative_to(self.work.root))
        self.started.append(name)
        self.modules = modules
        self.devices[name] = environment.get("CUDA_VISIBLE_DEVICES", "")
        fate = self.fate.get(name, "")
        self.log(folder, f"ValueError: {fate}" if fate.startswith("fails") else "all is well")
        if not fate.startswith(("fails", "sleeps")):
            with suppress(ValueError):  # where the real tool would find its config spoilt
                self.leave(name, float(fate or 80))
        process = multiprocessing.get_context("fork").Process(target=end, args=(fate, self.root / "asleep"))
        process.start()
        self.most = max(self.most, 1 + len(self.runner.running))
        return process

    def log(self, folder: Path, text: str) -> None:
        (folder / records.LOG).write_text(text + "\n(MAE_TRANSFER_TRACEBACK=1 shows where)\n")

    def leave(self, name: str, value: float) -> None:
        node = self.work.plan[name]
        if artifact := self.work.artifact(name):
            write(artifact, {"weight": torch.ones(8)}, {"made by": name})
        digest = self.work.config(node, self.work.chosen(node)[0]).digest()
        kept = {"config_digest": digest, "seed": node.seed, "scale": "mini", "pretrain": node.row}
        split = "holdout" if node.role == "point" else "val"
        results.append(self.work.folder(name) / "results.jsonl", [result("finetune", value, split=split, **kept)])

    def refresh(self) -> None:
        """Stands in for the report."""

    def run(
        self,
        *,
        machine: Machine = ALONE,
        shapes: Mapping[str, Shape] = MappingProxyType({}),
        force: tuple[str, ...] = (),
        replace: bool = False,
    ) -> dict[str, str]:
        self.started.clear()
        self.said: list[str] = []
        options = {"shapes": shapes, "force": force, "replace": replace}
        self.runner = Runner(self.work, machine, say=self.said.append, refresh=self.refresh, **options)
        return dict(self.runner.run())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_everything_runs_once_and_a_second_start_repeats_nothing(stage: Stage) -> None:
    assert stage.run() == dict.fromkeys(ALL, "done")
    assert stage.started == ALL
    assert stage.run() == dict.fromkeys(ALL, "done")
    assert stage.started == []


def test_a_run_whose_results_are_gone_is_repeated(stage: Stage) -> None:
    stage.run()
    (stage.work.folder("b/finetune/seed0") / "results.jsonl").unlink()
    assert stage.work.status("b/finetune/seed0").why == "its results.jsonl is missing"
    stage.run()
    assert stage.started == ["b/finetune/seed0"]


def test_a_failure_skips_what_depends_on_it_and_the_rest_goes_on(stage: Stage) -> None:
    stage.fate["a/pretrain/seed0"] = "fails for want of data"
    states = stage.run()
    assert [name for name, state in states.items() if state == "done"] == [
        "b/pretrain/seed0",
        "b/finetune/seed0",
        "b/finetune/seed1",
    ]
    assert states["a/finetune/seed0"] == "skipped"
    found, _ = records.load([stage.work.root])
    missing = {one.row: one.notes for one in cells("3", found) if not one.ours}
    assert missing == {"a": tuple(f"seed {seed} skipped: a/pretrain/seed0 failed" for seed in (0, 1))}
    stage.fate.clear()
    assert set(stage.run().values()) == {"done"}
    assert stage.started == ["a/pretrain/seed0", "a/finetune/seed0", "a/finetune/seed1"]


def test_the_reason_of_a_failure_is_the_last_error_of_the_tool(stage: Stage) -> None:
    stage.fate["b/finetune/seed1"] = "fails at step 7"
    stage.run()
    note, _ = records.read_note(stage.work.folder("b/finetune/seed1"))
    assert note is not None
    assert (note.state, note.reason) == ("failed", "ValueError: fails at step 7")


@pytest.mark.parametrize(("text", "expected"), [
    ("Traceback:\n  x\nmae_transfer.engine.log.NonFiniteLoss: step 7\n",
        "mae_transfer.engine.log.NonFiniteLoss: step 7"),
    ("[rank1]: OSError: disk\nW1 torchrun\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n=====\n",
        "OSError: disk"),
    ("$ tool\nOSError: disk\n$ tool\nKilled\n\n", "Killed"), ("costs 5 $ a day", "costs 5 $ a day"), ("", ""),
])  # fmt: skip
def test_why_a_run_failed_is_found_in_its_output(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / records.LOG).write_text(text)
    assert error_line(tmp_path / records.LOG) == expected


def test_a_config_that_is_spoilt_meanwhile_is_the_failure_of_its_run_alone(stage: Stage, tmp_path: Path) -> None:
    copy = tmp_path / "mini.py"
    copy.write_text((ROOT / "configs" / "classify" / "mini.py").read_text())
    stage.suite.write_text(SUITE.replace(f"{ROOT}/configs/classify/mini.py", str(copy)))
    stage.work = stage.opened()
    for name in stage.work.plan:
        stage.work.identity(name)
    copy.write_text("epoch = 3\n")
    states = stage.run()
    assert [states[name] for name in ALL] == ["done", "done", *["failed"] * 4]
    note, _ = records.read_note(stage.work.folder("a/finetune/seed0"))
    assert note is not None
    assert "unknown key 'epoch'" in str(note.reason)


def test_a_changed_run_and_what_took_from_it_are_repeated_and_the_old_ones_are_in_no_table(stage: Stage) -> None:
    stage.run()
    stage.suite.write_text(SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6'))
    stage.work = stage.opened()
    stage.fate |= {"b/finetune/seed0": "90", "b/finetune/seed1": "90"}
    assert set(stage.run(replace=True).values()) == {"done"}
    assert stage.started == ["b/pretrain/seed0", "b/finetune/seed0", "b/finetune/seed1"]
    assert any("start b/pretrain/seed0 (changed: " in sentence for sentence in stage.said)
    found, _ = records.load([stage.work.root])
    assert sorted(each.result.value for each in found if each.label == "b" and each.result.task == "classify")[-2:] == [
        90.0,
        90.0,
    ]
    assert len(found) == len(ALL)


def test_force_repeats_what_is_done(stage: Stage) -> None:
    stage.run()
    stage.run(force=("b/finetune/seed0",))
    assert stage.started == ["b/finetune/seed0"]
    assert len(records.load([stage.work.root])[0]) == len(ALL)


def test_what_takes_from_a_forced_run_is_repeated_too_and_a_pattern_must_fit(stage: Stage) -> None:
    stage.run()
    stage.run(force=("a/pretrain",))
    assert stage.started == ["a/pretrain/seed0", "a/finetune/seed0", "a/finetune/seed1"]
    with pytest.raises(
        ValueError, match="--force a/pretrian: no run's name contains that; did you mean 'a/pretrain/seed0'"
    ):
        stage.run(force=("a/pretrian",))


def test_a_run_of_another_suite_is_not_set_aside(stage: Stage) -> None:
    stage.run()
    stage.suite.write_text(SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6'))
    stage.work = Work(open_plan(stage.suite)[1], stage.root / "d", suite="another")
    with pytest.raises(
        ValueError, match="b/pretrain/seed0 holds a run of suite 't' with another config: use another --work-dir"
    ):
        stage.run()
    assert stage.started == []


def test_several_runs_at_a_time_take_turns_on_the_named_devices(stage: Stage) -> None:
    assert set(stage.run(machine=Machine(jobs=2, devices=("4", "7"))).values()) == {"done"}
    assert set(stage.devices.values()) == {"4", "7"}
    assert stage.most <= 2


def test_several_runs_share_the_visible_devices_evenly(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    machine = Machine.parse(jobs=3, devices="", processes=1)
    assert machine.devices == ("2", "5")
    stage.run(machine=machine)
    assert [stage.devices[name] for name in ALL[:2]] == ["2", "5"]


def test_one_run_at_a_time_sees_all_devices(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    stage.run(machine=Machine.parse(jobs=None, devices="", processes=1))
    assert set(stage.devices.values()) == {""}


def test_more_processes_than_this_machine_has_devices_are_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(ValueError, match="--gpus-per-node 8: this machine shows 4 CUDA devices; use --gpus-per-node 4"):
        Runner(stage.work, Machine(processes=8), say=print)


def test_a_run_gets_as_many_devices_as_its_shape_has(stage: Stage) -> None:
    machine = Machine.parse(jobs=None, devices="0,1,2,3", processes=2)
    assert machine.jobs == 2
    stage.run(machine=machine, shapes={ALL[2]: Shape(1, 1)})
    assert {len(stage.devices[name].split(",")) for name in ALL[:2] + ALL[3:]} == {2}
    assert len(stage.devices[ALL[2]].split(",")) == 1


def test_threads_follow_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert Machine(jobs=2).threads == 3
    assert Machine(jobs=1).threads is None


@pytest.mark.parametrize(("machine", "text"), [
    (Machine(jobs=0), "--jobs 0"), (Machine(processes=0), "--gpus-per-node 0"),
    (Machine(3, ("0", "1")), "--jobs 3 with --gpus-per-node 1 on 2 devices: .* use --jobs 2"),
    (Machine(1, ("0",), processes=8), "--gpus-per-node 8 with --devices 0: .* use --gpus-per-node 1"),
    (Machine(2, processes=8), "--jobs 2 with --gpus-per-node 8 on 0 devices: .* use --jobs 1"),
    (Machine(2, ("0", "1", "2"), 2, named=False), "--jobs 2 with --gpus-per-node 2 on 3 devices: .* use --jobs 1"),
])  # fmt: skip
def test_a_machine_on_which_runs_would_be_in_each_others_way_is_refused(
    machine: Machine, text: str, stage: Stage
) -> None:
    with pytest.raises(ValueError, match=text):
        Runner(stage.work, machine, say=print)


def test_a_signal_stops_what_runs_and_starts_nothing_more(stage: Stage) -> None:
    stage.fate["b/pretrain/seed0"] = "sleeps"

    def when_it_sleeps() -> None:
        while not (stage.root / "asleep").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_it_sleeps, daemon=True).start()
    states = stage.run()
    assert states["a/pretrain/seed0"] == "done"
    assert states["b/pretrain/seed0"] == "stopped"
    assert all(states[name] == "stopped" for name in ALL[2:])
    stage.fate.clear()
    assert stage.run() == dict.fromkeys(ALL, "done")
    assert "start b/pretrain/seed0 (stopped)" in stage.said


def test_a_second_suite_in_the_same_folder_is_refused_and_told_who_is_there(stage: Stage) -> None:
    with (
        locks.locked(stage.work.root / ".lock", owner="process 7 on node1"),
        pytest.raises(ValueError, match="in use by process 7 on node1"),
    ):
        stage.run()


def test_a_sweep_chooses_on_the_held_out_images_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, SUITE.replace(f'{ROOT}/configs/classify/mini.py"', SWEPT))
    stage.fate |= {
        "a/finetune/point0": "70",
        "a/finetune/point1": "75",
        "b/finetune/point0": "70",
        "b/finetune/point1": "fails with NaN",
    }
    states = stage.run()
    assert [states[name] for name in ("a/finetune/seed0", "b/finetune/seed1")] == ["done", "done"]
    notes = {name: records.read_note(stage.work.folder(name))[0] for name in ("a/finetune/seed0", "b/finetune/seed1")}
    assert [note.chosen for note in notes.values() if note] == [
        "{'optim.lr': 0.001} of 2 by top1 on holdout images ({'optim.lr': 0.0001}: 70; {'optim.lr': 0.001}: 75)",
        "{'optim.lr': 0.0001} of 2 by top1 on holdout images ({'optim.lr': 0.0001}: 70)",
    ]
    assert any("optim.lr=0.001" in note.command for note in notes.values() if note)
    assert all(record.note and record.note.role != "point" for record in records.load([stage.work.root])[0])


def test_a_sweep_without_a_single_result_skips_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, SUITE.replace(f'{ROOT}/configs/classify/mini.py"', SWEPT))
    stage.fate |= {"a/finetune/point0": "fails", "a/finetune/point1": "fails"}
    states = stage.run()
    assert [states["a/finetune/seed0"], states["b/finetune/seed0"]] == ["skipped", "done"]


def test_a_sweep_that_measured_something_else_fails_its_runs_and_not_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace(f'{ROOT}/configs/classify/mini.py"', SWEPT.replace("set={", 'metric="top5", set={'))
    stage = Stage(tmp_path, monkeypatch, text)
    states = stage.run()
    assert [states[name] for name in ALL] == ["done", "done", *["failed"] * 4]
    assert any("no run of its sweep has top5 on split 'holdout'" in sentence for sentence in stage.said)


def test_what_a_run_cost_is_counted_over_all_its_starts(stage: Stage) -> None:
    stage.fate["b/finetune/seed1"] = "fails"
    stage.run()
    note, _ = records.read_note(stage.work.folder("b/finetune/seed1"))
    assert note is not None
    records.write_note(stage.work.folder(note.name), note.model_copy(update={"seconds": 1000.0}))
    stage.fate.clear()
    stage.run()
    note, _ = records.read_note(stage.work.folder("b/finetune/seed1"))
    assert note is not None
    assert (note.state, note.seconds > 1000.0) == ("done", True)


def test_a_folder_that_cannot_be_written_is_an_error_and_nothing_goes_on_unseen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.fate["a/pretrain/seed0"] = "sleeps"
    note = records.write_note

    def full(folder: Path, content: records.Note) -> None:
        if content.name == "b/pretrain/seed0":
            raise OSError(28, "No space left on device")
        note(folder, content)

    monkeypatch.setattr("mae_transfer.suite.store.steps.write_note", full)
    with pytest.raises(OSError, match="No space left"):
        stage.run(machine=Machine(jobs=2))
    assert not any(each.process.is_alive() for each in stage.runner.running.values())


def test_the_time_that_is_left_is_told_by_what_runs_of_the_same_tool_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace('pretrain.py"),', 'pretrain.py", hours=2.0),').replace(
        '"mask.ratio": 0.5})', '"mask.ratio": 0.5}, hours=2.0)'
    )
    stage = Stage(tmp_path, monkeypatch, text.replace('classify/mini.py")', 'classify/mini.py", hours=0.5)'))
    stage.run()
    for name in ALL[:3]:  # both pretrainings in a third of the time expected, a fine-tuning in two thirds
        note, _ = records.read_note(stage.work.folder(name))
        assert note is not None
        records.write_note(
            stage.work.folder(name), note.model_copy(update={"seconds": 60.0 * (40 if "pretrain" in name else 20)})
        )
    for name in ALL[3:]:
        del stage.runner.states[name]
        (stage.work.folder(name) / "node.json").unlink()
    assert View(stage.work, Console(file=io.StringIO())).progress(stage.runner) == "3 done; 3 left, about 60 minutes"
    printed = io.StringIO()
    show_plan(stage.work, Console(file=printed, width=200))
    assert "3 done, 3 to run: 0 GiB" in printed.getvalue()
    assert "GPU at 100 TFLOP/s: about 1.5 device hours\n" in printed.getvalue()
    assert "at the measured pace 1 h, one run at a time" in printed.getvalue()
    runs = [stage.work.plan[name] for name in ALL]
    assert hours_left(stage.work, runs[:2], runs[3:]) == pytest.approx(
        0.5
    )  # no fine-tuning is done: the factor of the pretrainings
    assert hours_left(stage.work, [], runs) is None


SUITES = sorted((ROOT / "configs" / "suites").glob("*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=[path.stem for path in SUITES])
def test_any_run_of_the_projects_suites_can_be_recorded_as_missing(suite: Path, tmp_path: Path) -> None:
    work = Work(open_plan(suite)[1], tmp_path, suite="t")
    transfers = [node for node in work.plan.values() if node.role == "transfer" and node.seed == 0]
    for node in transfers:
        record_missing(node, work, "failed", "out of memory")
        missing = results.load(work.folder(node.name) / "results.jsonl")[0]
        assert [one.protocol for one in missing] == list(protocols(node.load(node.changes, debug=False)))
        assert {(one.status, one.value, one.reason) for one in missing} == {("failed", None, "out of memory")}
        assert {one.scale for one in missing} <= {"mini", "small", "paper"}


@pytest.mark.parametrize(("reference", "pretrain"), [
    ("mae:a.pth", "mae"), ("random:vit_tiny_patch16_224", "none"), ("timm:a.dino", "timm:a.dino"),
    ("gone.safetensors", None),
])  # fmt: skip
def test_a_missing_result_names_the_weights_as_a_result_would(
    reference: str, pretrain: str | None, stage: Stage
) -> None:
    node = stage.work.plan["a/finetune/seed0"]
    record_missing(
        node._replace(needs=(), changes={**node.changes, "backbone.reference": reference}), stage.work, "failed", "x"
    )
    file = stage.work.folder(node.name) / "results.jsonl"
    assert [missing.pretrain for missing in results.load(file)[0]] == [pretrain] if pretrain else not file.exists()


def test_a_missing_result_of_a_debug_run_has_the_mini_scale(tmp_path: Path) -> None:
    plan = open_plan(ROOT / "configs" / "suites" / "table1d.py")[1]
    node = next(node for node in plan.values() if node.role == "transfer")
    record_missing(node, Work(plan, tmp_path, suite="t", debug=True), "failed", "x")
    assert [missing.scale for missing in results.load(tmp_path / node.name / "results.jsonl")[0]] == ["mini"]


@pytest.mark.parametrize("backbone", ["vit_base/16", "unknown"])
@pytest.mark.parametrize("value", [None, 1.0])
def test_a_missing_result_is_replaced_by_a_later_number(value: float | None, backbone: str, stage: Stage) -> None:
    missing = result(
        "finetune", None, status="failed", reason="x", created_at="2026-01-01T00:00:00+00:00", backbone=backbone
    )
    later: list[Result] = [] if value is None else [result("finetune", value, created_at="2026-01-02T00:00:00+00:00")]
    results.append(stage.root / "results.jsonl", [missing, *later])
    assert [each.ours is None for each in cells("3", records.load([stage.root])[0])] == [value is None]


@pytest.mark.parametrize(
    ("config", "protocols"), [("ridge", "ridge"), ("logreg", "logreg"), ("knn", "knn-10 knn-20 knn-100 knn-200")]
)
def test_a_failed_evaluation_is_missing_under_the_task_of_its_results(
    config: str, protocols: str, tmp_path: Path
) -> None:
    (tmp_path / "suite.py").write_text(SUITE.replace("configs/classify/mini.py", f"configs/classify/{config}.py"))
    work = Work(open_plan(tmp_path / "suite.py")[1], tmp_path / "d", suite="t")
    record_missing(work.plan["a/finetune/seed0"], work, "failed", "x")
    missing = results.load(work.folder("a/finetune/seed0") / "results.jsonl")[0]
    assert {(one.task, one.metric) for one in missing} == {("classify", "top1")}
    assert [one.protocol for one in missing] == protocols.split()

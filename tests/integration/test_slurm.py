"""suite/slurm.py: generated scripts, a second submission, and a job's reaction to SLURM's signals."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import submitit
import torch
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, JobPaths

from mae_transfer import results
from mae_transfer.checkpoints.files import write
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.slurm import MARGIN_S, TIMEOUTS, Cluster, Job, submit, torchrun
from mae_transfer.suite.store.records import Note, read_note
from mae_transfer.suite.store.work import Work
from tests.unit.test_suite_run import ALL, SUITE
from tests.unit.test_tables import result

TOOL = """
import pathlib, signal, sys, time
folder, patience = pathlib.Path(sys.argv[1]), sys.argv[2]

def save(*_):
    (folder / "saved").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if patience == "stubborn" else save)
(folder / "started").touch()
time.sleep(0 if (folder / "saved").exists() else 60)
"""
FIRST = "a/pretrain/seed0"


def opened(root: Path, text: str = SUITE) -> Work:
    (root / "suite.py").write_text(text)
    return Work(open_plan(root / "suite.py")[1], root / "d", suite="t")


class Commands:
    """Stand-ins for SLURM's commands: sbatch keeps the scripts, squeue lists the jobs in `waiting`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._list = root, root / "squeue.txt"
        programs = root / "bin"
        programs.mkdir()
        copy, count = f'cp "$1" "$(mktemp {root}/script.XXXXXX)"', f"$(ls {root}/script.* | wc -l)"
        (programs / "sbatch").write_text(f'#!/bin/sh\n{copy}\necho "Submitted batch job 4{count}"\n')
        (programs / "srun").write_text("#!/bin/sh\n")
        (programs / "squeue").write_text(f"#!/bin/sh\ncat {self._list}\n")
        for program in programs.iterdir():
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def waiting(self, *ids: str) -> None:
        self._list.write_text("\n".join(ids))

    @property
    def scripts(self) -> list[str]:
        return sorted(
            (path.read_text() for path in self._root.glob("script.*")), key=lambda text: "--dependency" in text
        )


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path, monkeypatch)


CLUSTER = Cluster.parse(nodes=2, gpus_per_node=8, options=["partition=gpu", "timeout_min=60"])
IDS = dict(zip(ALL, ("41_0", "41_1", "42_0", "42_1", "42_2", "42_3"), strict=True))


def test_generated_scripts_form_arrays_that_wait_for_each_other(commands: Commands, tmp_path: Path) -> None:
    assert submit(opened(tmp_path), CLUSTER, say=lambda _: None) == IDS
    for text, size in zip(commands.scripts, (2, 4), strict=True):
        lines = set(text.splitlines())
        assert {
            "#SBATCH --nodes=2",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --partition=gpu",
            "#SBATCH --time=60",
        } <= lines
        assert {"#SBATCH --signal=USR2@300", "#SBATCH --open-mode=append", "#SBATCH --ntasks-per-node=1"} <= lines
        assert f"#SBATCH --array=0-{size - 1}%{size}" in lines
    assert ["--dependency=afterany:41" in text for text in commands.scripts] == [False, True]
    submitted = [DelayedSubmission.load(path) for path in (tmp_path / "d" / "slurm").rglob("*_submitted.pkl")]
    assert [hasattr(each.function, "checkpoint") for each in submitted] == [
        True
    ] * 6  # what submitit needs to queue a job again after it saved
    assert {each._timeout_countdown for each in submitted} == {TIMEOUTS}


@pytest.mark.parametrize("option", ["partitoin=gpu", "timeout_min=1.5", f"signal_delay_s={MARGIN_S}"])
def test_an_option_that_nobody_knows_is_an_error_of_one_line(option: str, commands: Commands, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--slurm: .*{option.partition('=')[0]}"):
        submit(opened(tmp_path), Cluster.parse(nodes=1, gpus_per_node=8, options=[option]))
    assert commands.scripts == []


def test_what_waits_or_runs_is_not_submitted_again_and_is_waited_for(commands: Commands, tmp_path: Path) -> None:
    submit(opened(tmp_path), CLUSTER, say=lambda _: None)
    commands.waiting(*IDS.values())
    said: list[str] = []
    assert submit(opened(tmp_path), CLUSTER, say=said.append) == {}
    assert said[0].startswith("6 runs are queued or running already: a/pretrain/seed0 (41_0)")
    commands.waiting("41_1", "42_0", "42_1", "42_3")  # a's pretraining was cancelled, and one of b's
    assert submit(opened(tmp_path), CLUSTER, say=said.append) == {FIRST: "43", "b/finetune/seed0": "44"}
    assert sum("--dependency=afterany:41\n" in text for text in commands.scripts) == 2


def test_a_queued_job_that_would_do_something_else_is_named(commands: Commands, tmp_path: Path) -> None:
    submit(opened(tmp_path), CLUSTER, say=lambda _: None)
    commands.waiting("41_1")
    with pytest.raises(
        ValueError,
        match=r"b/pretrain/seed0 is queued or running as job 41_1, submitted before its config or an input changed:",
    ):
        submit(opened(tmp_path, SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6')), CLUSTER)
    with pytest.raises(ValueError, match="before --force: cancel it with scancel 41_1"):
        submit(opened(tmp_path), CLUSTER, force=["b/pretrain"])


def test_nothing_is_submitted_where_slurm_does_not_say_what_runs(commands: Commands, tmp_path: Path) -> None:
    submit(opened(tmp_path), CLUSTER, say=lambda _: None)  # the list that squeue prints is not there
    with pytest.raises(ValueError, match="squeue .*nothing was submitted"):
        submit(opened(tmp_path), CLUSTER)


class Here(Work):
    """A work whose runs are stand-ins: they wait to be told to stop, and save; the second time they end at once."""

    patience = "patient"

    def command(self, node: object, chosen: object, *, torchrun: Sequence[str] = ()) -> list[str]:
        tool = self.root / "tool.py"
        tool.write_text(TOOL)
        return [*(torchrun or [sys.executable]), str(tool), str(self.folder(FIRST)), self.patience]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    for name, value in {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "7",
        "SUBMITIT_FOLDER": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    plain = opened(tmp_path)
    return Here(plain.plan, plain.root, suite="t")


def in_a_job(job: Job, folder: Path) -> DelayedSubmission:
    """Carry a job out as submitit does, with its signal handler, until it is queued again; return what is queued."""
    submission, paths = DelayedSubmission(job), JobPaths(folder, "7", 0)
    submission.set_timeout(60, 5)
    previous = signal.signal(
        signal.SIGUSR2, SignalHandler(submitit.JobEnvironment(), paths, submission).checkpoint_and_try_requeue
    )
    try:
        with pytest.raises(SystemExit):
            submission.result()
    finally:
        signal.signal(signal.SIGUSR2, previous)
    return DelayedSubmission.load(paths.submitted_pickle)


def when(path: Path, action: object, *args: int) -> None:
    def wait() -> None:
        while not path.exists():
            time.sleep(0.05)
        action(*args)  # type: ignore[operator]

    threading.Thread(target=wait, daemon=True).start()


def note_of(work: Work) -> Note:
    note, _ = read_note(work.folder(FIRST))
    assert note is not None
    return note


def test_a_job_that_runs_out_of_time_saves_is_queued_again_and_goes_on(here: Here, tmp_path: Path) -> None:
    def signal_everywhere() -> None:  # as SLURM does: the run, too, which would die of it
        assert job._process is not None
        os.kill(job._process.pid, signal.SIGUSR2)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR2)

    job = Job(here, FIRST, Cluster(1, 1, {}), again=False)
    when(here.folder(FIRST) / "started", signal_everywhere)
    start = time.monotonic()
    queued = in_a_job(job, tmp_path)
    assert time.monotonic() - start < 30
    assert (here.folder(FIRST) / "saved").exists()
    assert (note_of(here).state, note_of(here).seconds > 0) == ("stopped", True)
    write(here.folder(FIRST) / "backbone.safetensors", {"weight": torch.ones(1)}, {})
    digest = here.config(here.plan[FIRST], {}).digest()
    results.append(here.folder(FIRST) / "results.jsonl", [result("MAE", 0.5, task="pretrain", config_digest=digest)])
    spent = note_of(here).seconds
    assert queued.result() == "done"
    assert note_of(here).seconds > spent
    (here.folder(FIRST) / "started").unlink()
    assert Job(here, FIRST, Cluster(1, 1, {}), again=False)() == "done"
    assert not (here.folder(FIRST) / "started").exists(), "a run that another job had done was started again"


def test_a_run_that_does_not_save_in_time_is_killed_and_queued_again(here: Here, tmp_path: Path) -> None:
    here.patience = "stubborn"
    job = Job(here, FIRST, Cluster(1, 1, {"slurm_signal_delay_s": MARGIN_S + 1}), again=True)
    when(here.folder(FIRST) / "started", os.kill, os.getpid(), signal.SIGUSR2)
    assert in_a_job(job, tmp_path).function.again is False
    assert note_of(here).state == "stopped"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_preempted_job_whose_run_was_stopped_with_it_lives_to_be_queued_again(
    processes: int, here: Here, tmp_path: Path
) -> None:
    def preempt() -> None:
        assert job._process is not None
        job._process.terminate()
        while note_of(here).state == "running":
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR2)

    job = Job(here, FIRST, Cluster(1, processes, {}), again=False)
    when(here.folder(FIRST) / "started", preempt)
    assert isinstance(in_a_job(job, tmp_path).function, Job)
    assert note_of(here).state == "stopped"


def test_a_job_whose_inputs_failed_marks_itself_skipped(here: Here) -> None:
    assert Job(here, "a/finetune/seed0", Cluster(1, 1, {}), again=False)() == "skipped"
    note, _ = read_note(here.folder("a/finetune/seed0"))
    assert note is not None
    assert note.reason == "a/pretrain/seed0 was never started"


def test_torchrun_meets_on_the_first_node() -> None:
    words = torchrun(Cluster(2, 8, {}), ["n1", "n2"], 1)
    assert words[1:] == [
        "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1", "--master-addr",
        "n1", "--master-port", "29500",
    ]  # fmt: skip
    assert torchrun(Cluster(1, 8, {}), ["n1"], 0)[-1] == "--standalone"
    assert torchrun(Cluster(1, 1, {}), ["n1"], 0) == []

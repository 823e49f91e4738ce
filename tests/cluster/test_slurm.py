"""suite/slurm: cluster.toml, the scripts of jobs, a second submission, and a job's reaction to SLURM's signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mae_transfer import results
from mae_transfer.checkpoints.files import write
from mae_transfer.locks import locked
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.graph.shape import Shape, shape_of
from mae_transfer.suite.local.view import watch
from mae_transfer.suite.slurm import cluster
from mae_transfer.suite.slurm import submit as submission
from mae_transfer.suite.slurm.cluster import ClusterConfig, longest_minutes, minutes, open_cluster, time_limit
from mae_transfer.suite.slurm.job import BUSY, PREEMPTED, STOPPED, Job, NodeRank
from mae_transfer.suite.slurm.script import Array, sbatch_options, write_jobs
from mae_transfer.suite.slurm.submit import queue, submit
from mae_transfer.suite.store.records import Note, read_note, write_note
from mae_transfer.suite.store.work import Work
from tests.cluster import simulated
from tests.unit.test_suite_run import ALL, ROOT, SUITE
from tests.unit.test_suite_store import pictures, with_images
from tests.unit.test_tables import result

CLUSTER = ClusterConfig(partition="gpu", account="vision", cpus_per_gpu=10)
SHAPE = Shape(2, 8, 16, 128.0, 2.0)
COMMAND = ("reproduce.py", "suite.py", "--work-dir", "d")
FIRST = "a/pretrain/seed0"
SECOND = "b/pretrain/seed0"


def opened(root: Path, text: str = SUITE) -> Work:
    (root / "suite.py").write_text(text)
    return Work(open_plan(root / "suite.py")[1], root / "d", suite="t")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> simulated.State:
    """The commands of a cluster that starts nothing."""
    programs = simulated.install(tmp_path / "cluster", partitions={"gpu": 1440.0, "long": None, "short": 4.0})
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return simulated.State(tmp_path / "cluster")


def submitted(work: Work, *, cluster: ClusterConfig = CLUSTER, force: Sequence[str] = ()) -> tuple[dict[str, str], str]:
    said: list[str] = []
    ids = submit(work, cluster, dict.fromkeys(work.plan, SHAPE), COMMAND, force=force, say=said.append)
    return ids, "\n".join(said)


def script(work: Work, number: int = 1) -> list[str]:
    return (work.root / "slurm" / f"{number}.sh").read_text().splitlines()


def end(slurm: simulated.State, *numbers: str) -> None:
    with slurm.jobs() as jobs:
        for job in jobs:
            if simulated.identity(job) in numbers:
                job["state"] = "COMPLETED"


IDS = dict(zip(ALL, ("41_0", "41_1", "43_0", "43_1", "45_0", "45_1"), strict=True))


def test_a_run_waits_for_the_runs_that_it_needs_and_for_no_other(slurm: simulated.State, tmp_path: Path) -> None:
    work = opened(tmp_path)
    assert submitted(work)[0] == IDS
    waits = [line.partition("=")[2] for number in (1, 2, 3) for line in script(work, number) if "--dependency" in line]
    assert waits == ["afterany:41_0", "afterany:41_1"]
    assert "#SBATCH --array=0-1" in script(work, 1)


def test_an_array_is_split_where_the_cluster_takes_no_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = simulated.install(tmp_path / "cluster", array_size=1)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    work = opened(tmp_path)
    ids, said = submitted(work)
    assert list(ids) == list(ALL)
    assert len(set(ids.values())) == said.count("submitted 1 runs") == len(ALL)
    assert "#SBATCH --array=0-0" in script(work, 2)


def test_jobs_ask_for_what_their_runs_need(slurm: simulated.State, tmp_path: Path) -> None:
    work = opened(tmp_path)
    submitted(work)
    lines = set(script(work))
    assert {
        "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=80", "#SBATCH --mem=128G",
        "#SBATCH --partition=gpu", "#SBATCH --account=vision", "#SBATCH --signal=USR2@300", "#SBATCH --requeue",
        "#SBATCH --ntasks-per-node=1", "#SBATCH --time=215",
    } <= lines  # fmt: skip
    step = next(line for line in lines if line.startswith("srun "))
    assert "--cpus-per-task=80" in step.split()  # srun of SLURM 22.05 to 23.02 does not take it from the job
    plain = sbatch_options(Array({}, Shape(), 60, ()), ClusterConfig(gpu_option=""), title="t", log=tmp_path)
    assert not {"gpus-per-node", "mem", "partition", "dependency"} & set(plain)


def test_each_job_has_a_port_of_its_own(tmp_path: Path, slurm: simulated.State) -> None:
    work = opened(tmp_path)
    submitted(work)
    port = next(line for line in script(work) if "MASTER_PORT" in line)
    found = [
        subprocess.run(["bash", "-c", f"{port}; echo $MASTER_PORT"], env={"SLURM_JOB_ID": job}, capture_output=True)
        for job in ("4242", "4243")
    ]
    assert [int(each.stdout) for each in found] == [24242, 24243]


FULL = """
partition = "gpu"
qos = "high"
modules = ["cuda/12.4"]
setup = ["ulimit -n 65536"]
container = ["apptainer", "exec", "--nv", "my image.sif"]
python = "python"
jobs = 4
[environment]
NCCL_SOCKET_IFNAME = "ib0"
[sbatch]
exclusive = true
exclude = "node7"
mem = "0"
"""


def test_what_a_cluster_needs_stands_in_its_file(slurm: simulated.State, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cluster.toml").write_text(FULL)
    work = opened(tmp_path)
    submitted(work, cluster=open_cluster(None, work.root, pairs=["account=vision", "timeout_min=720", "exclude=node8"]))
    lines = script(work)
    assert {
        "#SBATCH --qos=high", "#SBATCH --exclusive", "#SBATCH --exclude=node8", "#SBATCH --mem=0",
        "#SBATCH --array=0-1%4", "module load cuda/12.4", "export NCCL_SOCKET_IFNAME=ib0", "ulimit -n 65536",
    } <= set(lines)  # fmt: skip
    assert " apptainer exec --nv 'my image.sif' python reproduce.py " in next(
        line for line in lines if line[:5] == "srun "
    )


def test_the_file_of_the_cluster_is_also_found_at_home(slurm: simulated.State, tmp_path: Path) -> None:
    home = tmp_path / "home" / "mae_transfer" / "cluster.toml"
    home.parent.mkdir(parents=True)
    home.write_text('partition = "long"')
    assert open_cluster(None, tmp_path).partition == "long"
    (tmp_path / "cluster.toml").write_text('partition = "short"')
    assert open_cluster(None, tmp_path).partition == "short"
    assert open_cluster(home, tmp_path).partition == "long"


def test_the_file_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "multi_node.md").read_text(encoding="utf-8")
    (tmp_path / "cluster.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert open_cluster(None, tmp_path).gpu_option == "gres=gpu:{gpus}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "gpu"', "cluster.toml: .*partitoin.*partition"),
        ("partition = gpu", "cluster.toml is no valid TOML: .*line 1"),
        ("jobs = 0", "cluster.toml: .*jobs"),
        ('modules = "cuda"', "cluster.toml: .*modules"),
        ("grace_seconds = 1", "cluster.toml: .*grace_seconds"),
    ],
)
def test_a_broken_cluster_file_is_an_error_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_cluster(None, tmp_path)


@pytest.mark.parametrize("pair", ["partitoin=gpu", "timeout_min=soon", "partition", "signal_delay_s=1"])
def test_a_value_that_nobody_knows_is_an_error(pair: str, slurm: simulated.State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--slurm"):
        open_cluster(None, tmp_path, pairs=[pair])


def test_a_missing_file_or_partition_or_slurm_is_named_before_anything_is_submitted(
    slurm: simulated.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"--cluster .*none\.toml: no such file"):
        open_cluster(tmp_path / "none.toml", tmp_path)
    with pytest.raises(ValueError, match="partition 'gpus': this cluster has no such partition; .*gpu"):
        submitted(opened(tmp_path), cluster=ClusterConfig(partition="gpus"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch is not on PATH: .*--launcher jobfile"):
        submitted(opened(tmp_path))


def test_an_account_that_slurm_refuses_is_an_error_with_its_words(slurm: simulated.State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sbatch .*Invalid account"):
        submitted(opened(tmp_path), cluster=ClusterConfig(account="nobody"))


def test_time_limits_follow_the_estimate_and_the_partition(slurm: simulated.State) -> None:
    assert longest_minutes(ClusterConfig()) == 1440  # of the default partition
    assert longest_minutes(ClusterConfig(partition="gpu,long", max_hours=2.0)) == 120
    assert longest_minutes(ClusterConfig(partition="long")) == float("inf")
    with pytest.raises(ValueError, match="grace_seconds = 300 is not below .* 240 s .*short"):
        longest_minutes(ClusterConfig(partition="short"))
    assert [time_limit(hours, ClusterConfig(), 1440) for hours in (0.1, 2.0, 1000.0, None)] == [44, 215, 1440, 1440]
    assert time_limit(None, ClusterConfig(), float("inf")) == 72 * 60
    assert [minutes(text) for text in ("30:00", "1-12:00:00", "infinite", "2:00:30")] == [
        30, 2160, float("inf"), 120.5,
    ]  # fmt: skip


def test_what_waits_or_runs_is_not_submitted_again_and_is_waited_for(slurm: simulated.State, tmp_path: Path) -> None:
    submitted(opened(tmp_path))
    ids, said = submitted(opened(tmp_path))
    assert ids == {}
    assert said.startswith("6 runs are queued or running already: a/pretrain/seed0 (41_0)")
    end(slurm, "41_0", "45_1")  # a's pretraining was cancelled, and a fine-tuning of b
    assert submitted(opened(tmp_path))[0] == {FIRST: "47_0", "b/finetune/seed1": "48_0"}
    assert "#SBATCH --dependency=afterany:41_1" in script(opened(tmp_path), 5)


def test_a_submission_that_dies_between_two_jobs_does_not_submit_the_first_again(
    slurm: simulated.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = submission.sbatch

    def dies(*arguments: object) -> str:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "sbatch", dies)
    with pytest.raises(KeyboardInterrupt):
        submitted(opened(tmp_path))
    monkeypatch.setattr(submission, "sbatch", real)
    assert FIRST not in submitted(opened(tmp_path))[0]
    assert len(queue(tmp_path / "d")) == 6


def test_a_queued_job_that_would_do_something_else_is_named(slurm: simulated.State, tmp_path: Path) -> None:
    submitted(opened(tmp_path))
    end(slurm, "41_0", "43_0", "43_1", "45_0", "45_1")
    with pytest.raises(
        ValueError, match=r"b/pretrain/seed0 is queued or running as job 41_1, submitted before its config or an input"
    ):
        submitted(opened(tmp_path, SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6')))
    with pytest.raises(ValueError, match="before --force: cancel it with scancel 41_1"):
        submitted(opened(tmp_path), force=["b/pretrain"])


def test_what_is_asked_for_is_the_same_with_and_without_the_images_at_hand(tmp_path: Path, image_folder: Path) -> None:
    folders = '"data.train": {"name": "folder", "split": "train"}, "data.val": {"name": "folder", "split": "val"}'
    text = SUITE.replace('mini/pretrain.py"),', f'mini/pretrain.py", data="own", set={{{folders}}}),')
    here = opened(tmp_path, f'{text}roots = {{"own": "{image_folder}"}}\n')
    there = opened(tmp_path, f'{text}roots = {{"own": "{tmp_path}/not_here"}}\n')
    assert here.identity(FIRST) != there.identity(FIRST)
    assert here.request(FIRST) == there.request(FIRST) != here.request(SECOND)


def test_a_forced_run_is_set_aside_when_it_is_submitted(slurm: simulated.State, tmp_path: Path) -> None:
    work = opened(tmp_path)
    write_note(work.folder(FIRST), work.note(work.plan[FIRST], []).model_copy(update={"state": "stopped"}))
    submitted(work, force=["a/pretrain"])
    assert (work.root / ".replaced" / f"{FIRST}-1" / "node.json").is_file()
    assert not work.folder(FIRST).exists()


def test_a_slurm_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.05)
    with pytest.raises(ValueError, match="^sleep 9: SLURM did not answer"):
        cluster.asked("sleep", "9")


def test_nothing_is_submitted_if_slurm_does_not_say_what_runs(slurm: simulated.State, tmp_path: Path) -> None:
    (slurm.root / "deaf").touch()
    with pytest.raises(ValueError, match="squeue .*Socket timed out"):
        submitted(opened(tmp_path))
    with slurm.jobs() as jobs:
        assert jobs == []


def test_watching_shows_states_jobs_and_the_ends_of_logs(slurm: simulated.State, tmp_path: Path) -> None:
    work = opened(tmp_path)
    submitted(work)
    end(slurm, "43_1")
    for name in (FIRST, "a/finetune/seed1"):
        write_note(work.folder(name), work.note(work.plan[name], []).model_copy(update={"state": "running"}))
        (work.folder(name) / "output.log").write_text("step 1\nstep 7 loss 0.5\n")
    with slurm.jobs() as jobs:
        jobs[0]["state"] = "RUNNING"
        jobs[4]["reason"] = "Dependency"
    text = io.StringIO()
    watch(work, Console(file=text, width=160), queue=lambda: queue(work.root))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert [FIRST, "running", "41_0", "0.0", "step", "7", "loss", "0.5"] in lines
    assert ["a/finetune/seed1", "interrupted", "0.0", "step", "7", "loss", "0.5"] in lines
    assert ["b/finetune/seed0", "pending", "(Dependency)", "45_0"] in lines
    assert lines[-1] == ["1", "interrupted,", "4", "pending,", "1", "running"]
    with locked(work.folder(FIRST) / ".lock"):  # as if the runs were on this machine, and one were killed
        watch(work, Console(file=text, width=160))
    assert text.getvalue().rstrip().endswith("1 interrupted, 4 planned, 1 running")


def test_job_files_list_every_run_with_its_needs(tmp_path: Path) -> None:
    work = opened(tmp_path)
    manifest = write_jobs(work, dict.fromkeys(work.plan, SHAPE), CLUSTER, COMMAND)
    listed = {each["run"]: each for each in json.loads(manifest.read_text())}
    assert list(listed) == ALL
    assert listed["a/finetune/seed0"]["needs"] == [FIRST]
    assert {key: listed[FIRST][key] for key in ("nodes", "gpus", "cpus", "memory")} == {
        "nodes": 2, "gpus": 8, "cpus": 16, "memory": 128.0,
    }  # fmt: skip
    text = (manifest.parent / listed[FIRST]["script"]).read_text()
    assert "# Needs: nothing" in text
    assert f"--run {FIRST}:{work.request(FIRST)}" in text
    alone = subprocess.run(["bash", manifest.parent / listed[FIRST]["script"]], capture_output=True, text=True, env={})
    assert "NODE_RANK" in alone.stderr


def finish(work: Work, name: str) -> None:
    """Leave what a finished run leaves, as far as the suite looks at it."""
    for folder in (name, "b/pretrain/seed0"):
        node = work.plan[folder]
        if artifact := work.artifact(folder):
            write(artifact, {"weight": torch.ones(2)}, {})
        results.append(work.folder(folder) / "results.jsonl", [result("finetune", 80.0, pretrain=node.row)])
        write_note(work.folder(folder), work.note(node, []).model_copy(update={"state": "done"}))


def test_job_files_repeat_a_finished_run_only_with_force(tmp_path: Path) -> None:
    """A former bug: the script of a changed run set the finished one aside."""
    finish(opened(tmp_path), FIRST)
    changed = opened(tmp_path, SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6'))
    with pytest.raises(ValueError, match=r"1 finished runs are not those of the suite any more.*\n  b/pretrain/seed0"):
        write_jobs(changed, dict.fromkeys(changed.plan, SHAPE), CLUSTER, COMMAND)
    assert (changed.folder(SECOND) / "node.json").is_file()
    manifest = write_jobs(changed, dict.fromkeys(changed.plan, SHAPE), CLUSTER, COMMAND, force=("b/pretrain",))
    assert FIRST not in {each["run"] for each in json.loads(manifest.read_text())}
    assert (manifest.parent / "b.pretrain.seed0.sh").is_file()
    assert (changed.root / ".replaced" / "b" / "pretrain").is_dir()
    assert not changed.folder(SECOND).exists()


def test_a_job_file_starts_where_it_was_written_and_loads_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = opened(tmp_path)
    cluster = CLUSTER.model_copy(update={"modules": ("cuda/12.4",)})
    manifest = write_jobs(work, dict.fromkeys(work.plan, Shape()), cluster, COMMAND)
    lines = (manifest.parent / "a.pretrain.seed0.sh").read_text().splitlines()
    assert f"cd {tmp_path}" in lines
    assert "module load cuda/12.4" in lines


def test_images_that_only_the_nodes_see_do_not_make_a_submitted_run_another_one(tmp_path: Path) -> None:
    """A former bug: the job found the images, so its identity differed from the submitted one."""
    images = tmp_path / "images"
    text = with_images(str(images))
    login = opened(tmp_path, text)
    requests = {name: login.request(name) for name in login.plan}
    pictures(images)
    node = opened(tmp_path, text)
    assert {name: node.request(name) for name in node.plan} == requests
    assert node.identity(SECOND) != login.identity(SECOND)
    changed = opened(tmp_path, text.replace('"mask.ratio": 0.5', '"mask.ratio": 0.7'))
    assert changed.request(SECOND) != requests[SECOND]


def test_a_job_whose_inputs_are_missing_says_so(here: Here, capfd: pytest.CaptureFixture[str]) -> None:
    node = here.plan["a/finetune/seed0"]
    assert Job(here, node, Shape(), place=NodeRank(0, "", "", None), grace=300).run() == 1
    assert "skipped a/finetune/seed0: a/pretrain/seed0 was never started" in capfd.readouterr().err


TOOL = """
import pathlib, signal, sys, time
folder, patience = pathlib.Path(sys.argv[1]), sys.argv[2]

def save(*_):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "1").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if patience == "stubborn" else save if patience == "patient" else sys.exit)
(folder / "started").touch()
time.sleep(0 if (folder / "checkpoints" / "1").exists() else 60)
"""


class Here(Work):
    """A work whose runs are stand-ins: they wait to be told to stop, and save; the second time they end at once."""

    patience = "patient"

    def command(self, node: object, chosen: object, *, torchrun: Sequence[str] = ()) -> list[str]:
        tool = self.root / "tool.py"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(TOOL)
        return [*(torchrun or [sys.executable]), str(tool), str(self.folder(FIRST)), self.patience]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    plain = opened(tmp_path)
    yield Here(plain.plan, plain.root, suite="t")
    for number, handler in before.items():
        signal.signal(number, handler)


def job(work: Work, name: str = FIRST, *, rank: int = 0, gpus: int = 1, limit: int = 60, grace: int = 60) -> Job:
    place = NodeRank(rank, "localhost", "29500", "7")
    return Job(work, work.plan[name], Shape(1, gpus), place=place, grace=grace, limit=limit)


def when(path: Path, action: Callable[..., object], *arguments: object) -> None:
    def wait() -> None:
        while not path.exists():
            time.sleep(0.05)
        action(*arguments)

    threading.Thread(target=wait, daemon=True).start()


def note_of(work: Work, name: str = FIRST) -> Note:
    note, _ = read_note(work.folder(name))
    assert note is not None
    return note


def tell(run: Path, number: int) -> None:
    """Signal this process and the run, as SLURM does."""
    processes = subprocess.run(["pgrep", "-f", f"tool.py {run}"], capture_output=True, text=True).stdout.split()
    for process in (*processes, os.getpid()):
        os.kill(int(process), number)


def test_a_job_that_runs_out_of_time_saves_and_goes_on_when_it_is_started_again(here: Here) -> None:
    folder = here.folder(FIRST)
    when(folder / "started", tell, folder, signal.SIGUSR2)
    assert job(here).run() == STOPPED
    assert (folder / "checkpoints" / "1").exists()
    assert (note_of(here).state, note_of(here).seconds > 0) == ("stopped", True)
    write(folder / "backbone.safetensors", {"weight": torch.ones(1)}, {})
    digest = here.config(here.plan[FIRST], {}).digest()
    results.append(folder / "results.jsonl", [result("MAE", 0.5, task="pretrain", config_digest=digest)])
    updates: list[str] = []
    assert job(here).run(lambda: updates.append(note_of(here).state)) == 0
    assert updates == ["done"]
    (folder / "started").unlink()
    assert job(here).run() == 0
    assert not (folder / "started").exists(), "a run that another job had done was started again"


def test_a_run_that_does_not_save_in_time_is_killed(here: Here) -> None:
    here.patience = "stubborn"
    when(here.folder(FIRST) / "started", os.kill, os.getpid(), signal.SIGUSR2)
    assert job(here, grace=2).run() == STOPPED
    assert note_of(here).state == "stopped"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_preempted_job_says_so_to_its_script(processes: int, here: Here) -> None:
    folder = here.folder(FIRST)
    when(folder / "started", tell, folder, signal.SIGTERM)
    assert job(here, gpus=processes).run() == PREEMPTED
    assert note_of(here).state == "stopped"


def test_a_run_that_saves_nothing_within_its_time_limit_fails_instead_of_running_for_ever(here: Here) -> None:
    here.patience = "forgetful"
    when(here.folder(FIRST) / "started", os.kill, os.getpid(), signal.SIGUSR2)
    assert job(here, limit=0).run() == 1
    assert note_of(here).reason == "it saved nothing within the time limit of its job (0 minutes): allow more time"


def test_a_job_whose_inputs_failed_marks_itself_skipped(here: Here) -> None:
    assert job(here, "a/finetune/seed0").run() == 1
    assert note_of(here, "a/finetune/seed0").reason == "a/pretrain/seed0 was never started"


def test_a_second_job_of_a_run_looks_again_later_and_holds_no_gpus_until_then(here: Here) -> None:
    with locked(here.folder(FIRST) / ".lock", owner="another job"):
        assert job(here).run() == BUSY
    assert not (here.folder(FIRST) / "started").exists()


def test_nodes_beyond_the_first_do_nothing_for_a_tool_that_does_not_train(tmp_path: Path) -> None:
    prepare = f'prepare = {{"basis": dict(kind="pca", config="{ROOT}/configs/mini/pretrain.py")}}'
    work = opened(tmp_path, SUITE + prepare)
    node = work.plan["basis/prepare"]
    shape = shape_of(node, Shape(4, 8))
    assert (shape.nodes, shape.gpus) == (1, 1)
    second = Job(work, node, shape, place=NodeRank(1, "localhost", "29500", "7"), grace=60)
    assert second.run() == 0
    assert not work.folder(node.name).exists()


def test_all_nodes_of_a_run_meet_on_the_first() -> None:
    words = NodeRank(1, "n1", "24242", None).torchrun(Shape(2, 8))
    assert words[1:] == [
        "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1", "--master-addr",
        "n1", "--master-port", "24242",
    ]  # fmt: skip
    assert NodeRank(0, "n1", "24242", None).torchrun(Shape(1, 8))[-1] == "--standalone"
    assert NodeRank(0, "n1", "24242", None).torchrun(Shape()) == []
    assert NodeRank.here({"SLURM_NODEID": "3", "MASTER_ADDR": "n1", "MASTER_PORT": "1", "SLURM_JOB_ID": "9"}) == (
        3, "n1", "1", "9",
    )  # fmt: skip
    assert NodeRank.here({}) == (0, "localhost", "29500", None)

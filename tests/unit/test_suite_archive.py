"""suite/store/archive.py: numbers of finished runs in text files, which a suite reads as done."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from mae_transfer.cli.main import main
from mae_transfer.cli.suite import open_archive
from mae_transfer.disk import write_text
from mae_transfer.results import Result
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.local.view import show_plan
from mae_transfer.suite.store.archive import RunArchive, _last_parts
from mae_transfer.suite.store.records import load, suites, write_about
from mae_transfer.suite.store.steps import unpack
from mae_transfer.suite.store.work import Work
from tests.unit.test_suite_run import ALL, SUITE, Stage


class Archived(Stage):
    """A stage whose suite uses an archive."""

    archive: Path

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, archive: Path, text: str = SUITE) -> None:
        self.archive = archive
        super().__init__(root, monkeypatch, text)

    def opened(self) -> Work:
        cfg, plan = open_plan(self.suite)
        work = Work(plan, self.root / "d", suite=cfg.title, archive=RunArchive(self.archive))
        unpack(work)
        return work


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archived:
    stage = Archived(tmp_path / "1", monkeypatch, tmp_path / "archive")
    assert stage.run() == dict.fromkeys(ALL, "done")
    return stage


def test_archived_runs_are_done_on_another_machine_without_their_weights(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Archived(tmp_path / "2", monkeypatch, first.archive)
    assert second.run() == dict.fromkeys(ALL, "done")
    assert second.started == []
    values = [{(r.label, r.result.seed): r.result.value for r in load([root])[0]} for root in (first.root, second.root)]
    assert values[0] == values[1]
    assert len(values[0]) >= 4
    text = "".join(path.read_text() for path in first.archive.iterdir())
    assert str(tmp_path) not in text  # no path of the machine


def test_a_missing_transfer_needs_its_pretraining_again_and_the_plan_says_so(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = RunArchive(first.archive)
    kept = {name: run for name, run in gone.runs.items() if name != "a/finetune/seed1"}
    shutil.rmtree(first.archive)
    again = RunArchive(first.archive)
    for name in kept:
        again.add(kept[name][0], first.work.folder(name))
    second = Archived(tmp_path / "2", monkeypatch, first.archive)
    text = io.StringIO()
    show_plan(second.opened(), Console(file=text, width=300))
    assert "4 done, 2 to run" in text.getvalue()
    second.run()
    assert second.started == ["a/pretrain/seed0", "a/finetune/seed1"]
    assert any("a/pretrain/seed0" in one and "the same numbers as in the archive" in one for one in second.said)
    third = Archived(tmp_path / "3", monkeypatch, first.archive)
    assert third.run() == dict.fromkeys(ALL, "done")
    assert third.started == []


def test_another_config_is_not_read_from_the_archive(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Archived(
        tmp_path / "2", monkeypatch, first.archive, SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6')
    )
    with pytest.raises(ValueError, match=r"3 finished runs.*\n.*b/pretrain/seed0: the archived run differs: config"):
        second.run()
    second.run(replace=True)
    assert second.started == ["b/pretrain/seed0", "b/finetune/seed0", "b/finetune/seed1"]
    newest = Archived(tmp_path / "3", monkeypatch, first.archive, second.suite.read_text())
    assert newest.run() == dict.fromkeys(ALL, "done")
    assert newest.started == []


def test_other_numbers_of_a_repeated_run_are_reported_and_the_archive_stays(first: Archived) -> None:
    before = (first.archive / "results.jsonl").read_bytes()
    first.fate["a/finetune/seed1"] = "77"
    first.run(force=("a/finetune/seed1",))
    assert any("differs from the archive" in one and "is now 77" in one for one in first.said)
    assert (first.archive / "results.jsonl").read_bytes() == before


def test_a_repeated_pretraining_with_other_numbers_fails_so_that_no_seed_has_two(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Archived(tmp_path / "2", monkeypatch, first.archive)
    second.work.repeated = ("a/finetune/seed1",)
    second.fate["a/pretrain/seed0"] = "77"
    states = second.run(force=("a/finetune/seed1",))
    assert (states["a/pretrain/seed0"], states["a/finetune/seed1"]) == ("failed", "skipped")
    assert any("is now 77" in one and "--force a/pretrain/seed0 repeats it with" in one for one in second.said)


def test_a_forced_transfer_runs_again_from_its_pretraining_made_again(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Archived(tmp_path / "2", monkeypatch, first.archive)
    second.work.repeated = ("a/finetune/seed1",)
    assert second.run(force=("a/finetune/seed1",)) == dict.fromkeys(ALL, "done")
    assert second.started == ["a/pretrain/seed0", "a/finetune/seed1"]
    assert any("a/finetune/seed1" in one and "the same numbers as in the archive" in one for one in second.said)


def test_a_changed_line_is_an_error_that_names_the_run(first: Archived) -> None:
    file = first.archive / "results.jsonl"
    file.write_text(file.read_text().replace('"seed":1', '"seed":5'))
    with pytest.raises(ValueError, match=r"a/finetune/seed1.*restore"):
        RunArchive(first.archive)
    assert any("a/finetune/seed1" in defect for defect in load([first.archive])[1])


def test_a_kill_while_a_run_is_replaced_leaves_an_archive_that_can_be_read(
    first: Archived, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, patched = "a/finetune/seed1", "mae_transfer.suite.store.archive.write_text"

    def full(path: Path, text: str) -> None:
        if path.name == "runs.jsonl":
            raise OSError("killed")
        write_text(path, text)

    kept, folder = RunArchive(first.archive), first.work.folder(name)
    numbers = folder / "results.jsonl"
    numbers.write_text(numbers.read_text().replace('"value":80.0', '"value":77.0'))
    monkeypatch.setattr(patched, full)
    with pytest.raises(OSError, match="killed"):
        kept.add(kept.runs[name][0], folder, replace=True)
    monkeypatch.setattr(patched, write_text)
    assert RunArchive(first.archive).runs[name][1][0].value == 80.0
    kept.add(kept.runs[name][0], folder, replace=True)
    assert RunArchive(first.archive).runs[name][1][0].value == 77.0
    lines = (first.archive / "results.jsonl").read_text().splitlines()
    assert len(lines) == sum(len(some) for _, some in kept.runs.values())


def test_damage_to_an_archive_is_named(first: Archived, tmp_path: Path) -> None:
    shutil.copytree(first.archive, tmp_path / "b")
    runs = tmp_path / "b" / "runs.jsonl"
    runs.write_text(runs.read_text() + runs.read_text().splitlines()[0].replace('"seconds":', '"seconds":9'))
    with pytest.raises(ValueError, match=r"runs.jsonl, line \d+: another run is named .*, too: remove one"):
        RunArchive(tmp_path / "b")
    runs.unlink()
    with pytest.raises(ValueError, match=r"holds other files and no runs.jsonl: restore it, or name a new folder"):
        RunArchive(tmp_path / "b")
    about = open_plan(first.suite)[0].about().model_copy(update={"identities": first.work.archived_identities()})
    write_about(tmp_path / "b", about)
    assert any("runs.jsonl is missing" in one for one in suites([tmp_path / "b"])[1])
    shutil.copytree(first.archive, tmp_path / "c")
    (tmp_path / "c" / "results.jsonl").unlink()
    assert any("results.jsonl is missing beside runs.jsonl" in one for one in load([tmp_path / "c"], required=False)[1])
    (tmp_path / "c" / "suite.json").write_bytes(b"<<<<<<< \xff")
    assert any("suite.json cannot be read, so no claims are judged" in one for one in suites([tmp_path / "c"])[1])


def test_trial_runs_are_kept_out_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--work-dir", str(tmp_path / "d"), "--archive", str(tmp_path / "archive"), "--debug")
    assert main(["suite", "suites/claims", *options]) == 1
    assert "takes no trial runs" in capsys.readouterr().err
    assert not (tmp_path / "archive").exists()


def test_tables_print_the_claims_of_an_archive(first: Archived, capsys: pytest.CaptureFixture[str]) -> None:
    claim = '\nexpect = (dict(claim="a is better", column="fine-tune", row="a", above="b"),)\n'
    first.suite.write_text(SUITE + claim)
    cfg, _ = open_plan(first.suite)
    write_about(first.archive, cfg.about())
    assert main(["tables", str(first.archive), "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| 1. a is better" in printed
    assert "a > b" in printed
    assert "numbers by seed" in printed


def test_a_stale_number_in_the_work_dir_is_replaced_by_the_archived_one_with_consent(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6')
    stale = Archived(tmp_path / "2", monkeypatch, tmp_path / "empty", other)
    stale.fate["b/finetune/seed0"] = "11"
    stale.run()
    stale.suite.write_text(SUITE)
    stale.archive = first.archive
    stale.work = stale.opened()
    with pytest.raises(ValueError, match="b/finetune/seed0: changed"):
        stale.run()
    unpack(stale.work, replace=True)
    assert stale.run() == dict.fromkeys(ALL, "done")
    assert stale.started == []
    assert 11.0 not in {one.result.value for one in load([stale.root / "d"])[0]}
    assert (stale.root / "d/.replaced/b/finetune/seed0-1").is_dir()


def test_an_archived_run_replaces_one_that_failed(
    first: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Archived(tmp_path / "2", monkeypatch, tmp_path / "empty")
    second.fate["a/finetune/seed1"] = "fails"
    assert second.run()["a/finetune/seed1"] == "failed"
    second.archive = first.archive
    second.work = second.opened()
    assert second.run() == dict.fromkeys(ALL, "done")
    assert second.started == []
    values = {(one.label, one.result.seed): one.result.value for one in load([second.root / "d"])[0]}
    assert values["a", 1] == 80.0


def test_an_archive_is_of_one_suite_and_two_processes_add_to_it(first: Archived, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds runs of suite 't': use a folder of its own"):
        RunArchive(first.archive, "other")
    one, other = RunArchive(tmp_path / "new"), RunArchive(tmp_path / "new")
    for archive, name in ((one, ALL[2]), (other, ALL[3])):
        archive.add(first.work.archive.runs[name][0], first.work.folder(name))
    assert set(RunArchive(tmp_path / "new", "t").runs) == {ALL[2], ALL[3]}


def test_tables_leave_out_archived_runs_of_another_config(first: Archived) -> None:
    planned = first.work.archived_identities()
    about = open_plan(first.suite)[0].about()
    write_about(first.archive, about.model_copy(update={"identities": planned}))
    whole, defects = load([first.archive])
    assert not defects
    write_about(first.archive, about.model_copy(update={"identities": planned | {"b/finetune/seed0": "else"}}))
    found, defects = load([first.archive])
    assert len(found) == len(whole) - 1
    assert "b/finetune/seed0 is a run of another config" in defects[0]


def test_an_archive_without_results_shows_its_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_about(tmp_path, open_plan(Path("configs/suites/claims.py"))[0].about())
    assert main(["tables", str(tmp_path), "--format", "markdown"]) == 0
    assert "not measured yet" in capsys.readouterr().out


def test_a_forced_run_of_other_code_replaces_the_archived_one(
    first: Archived, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Result, "revisions", ("old",))
    assert open_archive(first.archive, "t") is not None
    assert "archived runs are of other commits" in capsys.readouterr().out
    first.fate["a/finetune/seed1"] = "77"
    first.work.repeated = ("a/finetune/seed1",)
    first.run(force=("a/finetune/seed1",))
    assert any("is now 77" in one for one in first.said)
    assert 77.0 in {one.value for one in RunArchive(first.archive).runs["a/finetune/seed1"][1]}


def test_an_archive_names_files_and_folders_without_their_place() -> None:
    values = {"root": "/data/photos", "sets": [{"reference": "/runs/a/backbone.safetensors", "url": "a/b"}], "n": 1}
    named = {"root": "photos", "sets": [{"reference": "backbone.safetensors", "url": "a/b"}], "n": 1}
    assert _last_parts(values) == named

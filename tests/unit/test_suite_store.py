"""suite/store: finished runs that suites share, roots that are remembered, and finished runs that stay."""

import errno
import importlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.local.run import Runner
from mae_transfer.suite.store import shared, steps
from mae_transfer.suite.store.data import DataSets
from mae_transfer.suite.store.records import load, read_note
from mae_transfer.suite.store.shared import RunStore
from mae_transfer.suite.store.work import Work
from tests.unit.test_suite_run import ALL, ALONE, ROOT, SUITE, Stage

OTHER = SUITE.replace('title = "t"', 'title = "other"').replace('"a":', '"the first":').replace('"b":', '"the second":')


def pictures(root: Path, count: int = 6) -> Path:
    """Write a small labelled data set."""
    for index in range(count):
        for part in ("train", "val"):
            folder = root / part / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(folder / f"{index}.png")
    return root


class Shared(Stage):
    """A stage whose suite uses a store."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, store: Path, text: str = SUITE) -> None:
        self.store = store
        super().__init__(root, monkeypatch, text)

    def opened(self) -> Work:
        cfg, plan = open_plan(self.suite)
        return Work(plan, self.root / "d", suite=cfg.title, store=RunStore(self.store))


def test_a_suite_with_other_names_uses_the_runs_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")
    first.fate["a/finetune/seed1"] = "77"
    assert first.run() == dict.fromkeys(ALL, "done")
    second = Shared(tmp_path / "2", monkeypatch, tmp_path / "store", OTHER)
    assert set(second.run().values()) == {"done"}
    assert second.started == []
    assert any("done the_first/pretrain/seed0" in text and "run by suite 't'" in text for text in second.said)
    found = {(record.label, record.result.seed): record.result.value for record in load([second.root / "d"])[0]}
    assert found["the first", 1] == 77
    assert second.run() == dict.fromkeys(second.work.plan, "done")  # nothing is taken twice
    assert second.said == []


def test_what_differs_is_run_and_what_follows_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shared(tmp_path / "1", monkeypatch, tmp_path / "store").run()
    text = OTHER.replace('set={"mask.ratio": 0.5}', 'set={"mask.ratio": 0.6}')
    second = Shared(tmp_path / "2", monkeypatch, tmp_path / "store", text)
    second.run()
    assert second.started == ["the_second/pretrain/seed0", "the_second/finetune/seed0", "the_second/finetune/seed1"]


def test_two_suites_at_once_make_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        Shared(tmp_path / str(number), monkeypatch, tmp_path / "store", text)
        for number, text in enumerate((SUITE, OTHER))
    ]
    started: list[str] = []
    outcomes: list[dict[str, str]] = []

    def start(stage: Shared) -> Any:
        def begin(command: list[str], folder: Path, **options: Any) -> Any:
            time.sleep(0.05)  # the other suite arrives meanwhile
            started.append(stage.work.identity(str(folder.relative_to(stage.work.root))))
            return Stage.start(stage, command, folder, **options)

        return begin

    def run(stage: Shared) -> None:
        stage.said = []
        stage.runner = Runner(stage.work, ALONE, say=stage.said.append)
        outcomes.append(dict(stage.runner.run()))

    from mae_transfer.suite.local import job
    from mae_transfer.suite.local import run as local

    monkeypatch.setattr(local, "POLL_S", 0.02)
    monkeypatch.setattr(local, "on_signals", lambda _: nullcontext())  # signals belong to the main thread
    by_root = {stage.work.root: start(stage) for stage in stages}

    def dispatch(command: list[str], folder: Path, **options: Any) -> Any:
        return next(begin for root, begin in by_root.items() if folder.is_relative_to(root))(command, folder, **options)

    monkeypatch.setattr(job, "start", dispatch)
    threads = [threading.Thread(target=run, args=(stage,)) for stage in stages]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [set(states.values()) for states in outcomes] == [{"done"}, {"done"}]
    assert len(started) == len(set(started)) == len(ALL)


def test_a_run_killed_while_it_publishes_leaves_the_store_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")
    copies = shared._copy

    def killed(source: Path, target: Path, *, link: bool) -> None:
        if source.name == "results.jsonl":
            raise KeyboardInterrupt
        copies(source, target, link=link)

    monkeypatch.setattr(shared, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert list((tmp_path / "store").glob(".publishing-*"))
    assert not [folder for folder in (tmp_path / "store").iterdir() if not folder.name.startswith((".", "store"))]
    monkeypatch.setattr(shared, "_copy", copies)
    assert first.run() == dict.fromkeys(ALL, "done")
    identity = first.work.identity("a/pretrain/seed0")
    assert not list((tmp_path / "store").glob(f".publishing-{identity}-*"))
    assert first.work.store is not None
    assert first.work.store.find(identity, "backbone.safetensors")


def test_a_full_store_fails_no_run_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path, *, link: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared, "_copy", full)
    stage = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")
    assert stage.run() == dict.fromkeys(ALL, "done")
    assert any("was not added to the store" in text and "No space left on device" in text for text in stage.said)
    assert not list((tmp_path / "store").glob(".publishing-*"))
    monkeypatch.undo()
    with_space = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")
    with_space.run()  # finished runs are added later
    assert with_space.work.store is not None
    assert with_space.work.store.find(with_space.work.identity("a/finetune/seed0"), None)


@pytest.mark.parametrize(
    ("content", "told"), [('{"format": 99}', "has format 99, but this version uses format 1"), ("x", "cannot be read")]
)
def test_a_store_of_another_version_is_refused(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        RunStore(tmp_path)


def test_a_folder_that_another_suite_makes_a_store_is_one(tmp_path: Path) -> None:
    (tmp_path / ".store.json.12-34.tmp").touch()
    RunStore(tmp_path)
    assert (tmp_path / "store.json").is_file()


def test_a_folder_with_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and not a store"):
        RunStore(tmp_path)


@pytest.mark.parametrize("file", ["backbone.safetensors", "results.jsonl", "node.json"])
def test_a_damaged_entry_is_not_used_but_made_again(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")
    first.run()
    entry = tmp_path / "store" / first.work.identity("a/pretrain/seed0")
    content = (entry / file).read_bytes()
    (entry / file).unlink()
    (entry / file).write_bytes(content[: len(content) // 2])
    second = Shared(tmp_path / "2", monkeypatch, tmp_path / "store")
    second.run()
    assert second.started == ["a/pretrain/seed0"]
    assert (entry / file).exists()


FOLDER = """{"data.train": {"name": "folder", "split": "train"}, "data.val": None, "mask.ratio": 0.6}"""


def with_images(root: str) -> str:
    """The suite with pretrainings on a folder of images."""
    text = SUITE.replace("seeds = (0, 1)", f'seeds = (0, 1)\nroots = dict(own="{root}")')
    text = text.replace('pretrain.py")', f'pretrain.py", data="own", set={FOLDER})')
    return text.replace('set={"mask.ratio": 0.5}', f'data="own", set={FOLDER.replace("0.6", "0.5")}')


def test_a_moved_data_set_changes_nothing_and_other_images_change_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(tmp_path / "images")
    text = with_images(str(images))
    stage = Stage(tmp_path / "1", monkeypatch, text)
    assert set(stage.run().values()) == {"done"}
    moved = images.rename(tmp_path / "renamed")
    stage.suite.write_text(text.replace(str(images), str(moved)))
    stage.work = stage.opened()
    assert all(stage.work.status(name).done for name in stage.work.plan)
    stage.suite.write_text(text)  # the old folder: not on this machine any more
    stage.work = stage.opened()
    assert all(stage.work.status(name).done for name in stage.work.plan)
    pictures(tmp_path / "other", count=8)
    stage.suite.write_text(text.replace(str(images), str(tmp_path / "other")))
    stage.work = stage.opened()
    status = stage.work.status("a/pretrain/seed0")
    assert (status.done, status.replaced, status.finished) == (False, True, True)
    assert "images train: " in status.why


def test_finished_runs_that_have_changed_stay_without_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)
    stage.run()
    stage.suite.write_text(SUITE.replace('"mask.ratio": 0.5', '"mask.ratio": 0.6'))
    stage.work = stage.opened()
    with pytest.raises(
        ValueError,
        match=r"3 finished runs are not those of the suite any more; nothing was started:\n  b/pretrain/seed0",
    ):
        stage.run()
    assert not (stage.work.root / ".replaced").exists()
    stage.run(force=("b/pretrain",))
    assert sorted(stage.started) == ["b/finetune/seed0", "b/finetune/seed1", "b/pretrain/seed0"]
    assert (stage.work.root / ".replaced" / "b" / "pretrain").is_dir()


def test_roots_are_remembered_for_the_names_that_the_suite_still_has(tmp_path: Path) -> None:
    (tmp_path / "suite.py").write_text(with_images("data/own"))
    DataSets(tmp_path / "d").remember({"own": "there", "gone": "x"})
    cfg, _ = open_plan(tmp_path / "suite.py", remembered=DataSets(tmp_path / "d").roots)
    assert cfg.roots == {"own": str(Path("there").absolute())}
    cfg, _ = open_plan(tmp_path / "suite.py", roots={"own": "here"}, remembered=DataSets(tmp_path / "d").roots)
    assert cfg.roots == {"own": "here"}


def test_fingerprints_are_computed_once_per_state_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae_transfer.data import DataConfig
    from mae_transfer.suite.store import data as module

    images = pictures(tmp_path / "images")
    cfg = DataConfig.model_validate(
        {"root": str(images), "train": {"name": "folder", "split": "train"}, "val": {"name": "folder", "split": "val"}}
    )
    calls: list[int] = []
    compute = module.fingerprint
    monkeypatch.setattr(module, "fingerprint", lambda source: calls.append(1) or compute(source))
    first = DataSets(tmp_path / "d").fingerprints(cfg)
    assert first is not None
    assert first.keys() == {"train", "val"}
    assert DataSets(tmp_path / "d").fingerprints(cfg) == first
    assert len(calls) == 2
    time.sleep(0.01)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "train" / "class0" / "new.png")
    assert DataSets(tmp_path / "d").fingerprints(cfg) != first


def test_the_data_of_every_task_that_a_suite_runs_are_of_a_kind_that_it_can_open() -> None:
    from mae_transfer.data import ImagesConfig
    from mae_transfer.data.maps import MapsConfig
    from mae_transfer.data.objects import ObjectDataConfig
    from mae_transfer.suite.graph.toolbox import TOOLBOX

    for tool in TOOLBOX.values():
        for schema in tool.tasks.values():
            module, _, name = schema.partition(":")
            cls = getattr(importlib.import_module(f"mae_transfer.tasks.{module}"), name)
            assert issubclass(cls.model_fields["data"].annotation, ImagesConfig | MapsConfig | ObjectDataConfig), name


def test_a_note_of_an_earlier_version_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before the store named the inputs and the images' folder in the identity."""
    stage = Stage(tmp_path, monkeypatch)
    stage.run()
    for name in stage.work.plan:
        file = stage.work.folder(name) / "node.json"
        note = json.loads(file.read_text())
        note["identity"] = stage.work.earlier_identity(name)
        note["parts"] = {"tool": "x", "config": "y", "seed": "0"}
        file.write_text(json.dumps(note))
    stage.work = stage.opened()
    assert all(stage.work.status(name).done for name in stage.work.plan)
    note, _ = read_note(stage.work.folder("a/pretrain/seed0"))
    assert note is not None
    assert stage.work.identity("a/pretrain/seed0") == note.identity


def test_steps_without_a_store_publish_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)
    stage.run()
    note, _ = read_note(stage.work.folder("a/pretrain/seed0"))
    assert note is not None
    assert steps.publish(stage.work, note) is None
    assert steps.reuse(stage.work, stage.work.plan["a/pretrain/seed0"]) is None


def test_one_suite_has_every_run_of_tables_3_to_7_and_half_of_their_pretraining(tmp_path: Path) -> None:
    """The paper's suite and the tables one by one share identities, so a store serves both."""
    suites = ROOT / "configs" / "suites"
    paper = Work(open_plan(suites / "paper.py")[1], tmp_path / "paper", suite="paper")
    known = {paper.identity(name) for name in paper.plan}
    alone = 0.0
    for table in ("table3", "table4", "table5", "table6", "table7"):
        work = Work(open_plan(suites / f"{table}.py")[1], tmp_path / table, suite=table)
        first = [name for name, node in work.plan.items() if node.seed == 0]
        assert not [name for name in first if work.identity(name) not in known], table
        alone += sum(work.plan[name].hours or 0 for name in first if work.plan[name].role == "pretrain")
    shared = sum(node.hours or 0 for node in paper.plan.values() if node.role == "pretrain")
    assert (round(shared), round(alone)) == (8056, 15414)


def test_several_suites_make_a_store_and_write_what_they_know_at_once(tmp_path: Path) -> None:
    def begin(number: int) -> None:
        RunStore(tmp_path / "store")
        DataSets(tmp_path / "w").remember({f"set{number}": f"/data/{number}"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(begin, range(12)))  # an error of a thread is raised here
    assert set(DataSets(tmp_path / "w").roots) == {f"set{number}" for number in range(12)}


def test_an_entry_that_is_removed_while_it_is_taken_is_run_again_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Shared(tmp_path / "1", monkeypatch, tmp_path / "store").run()
    second, copies = Shared(tmp_path / "2", monkeypatch, tmp_path / "store", OTHER), shared._copy

    def removed(source: Path, target: Path, *, link: bool) -> None:
        if target.is_relative_to(second.root) and "pretrain" in str(target):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))
        copies(source, target, link=link)

    monkeypatch.setattr(shared, "_copy", removed)
    assert set(second.run().values()) == {"done"}
    assert second.started == ["the_first/pretrain/seed0", "the_second/pretrain/seed0"]
    assert not list(second.root.rglob("*.taken"))


def test_the_reason_of_a_full_store_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Shared(tmp_path / "1", monkeypatch, tmp_path / "store")

    def full(source: Path, target: Path, *, link: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shared, "_copy", full)
    assert set(first.run().values()) == {"done"}
    told = next(text for text in first.said if "not added" in text)
    assert told.endswith(
        f"the store {tmp_path / 'store'}: [Errno 28] No space left on device; the same command adds it later"
    )

"""store/evidence.py: what a done run left is still what it wrote, or it is written again before anything takes it."""

import io

import pytest
from rich.console import Console

from mae_transfer import results
from mae_transfer.suite.local.view import show_plan
from mae_transfer.suite.store import records
from tests.unit.test_suite_run import Stage, stage
from tests.unit.test_tables import result

__all__ = ["stage"]  # the fixture


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_an_artifact_that_is_not_what_its_run_wrote_is_written_again_before_anything_takes_it(
    damage: str, stage: Stage
) -> None:
    stage.run()
    name = "b/pretrain/seed0"
    artifact = stage.work.folder(name) / "backbone.safetensors"
    content = artifact.read_bytes()
    artifact.write_bytes(content[:-1] + bytes([content[-1] ^ 1])) if damage == "flipped" else artifact.unlink()
    work = stage.opened()
    assert work.status(name).why.startswith(
        "its backbone.safetensors is " + ("gone" if damage == "gone" else "damaged")
    )
    text = io.StringIO()
    show_plan(work, Console(file=text, width=200))
    assert "5 done, 1 to run" in text.getvalue()
    assert "its backbone.safetensors is" in text.getvalue()
    assert stage.run()[name] == "done"
    assert stage.started == [name]
    assert artifact.read_bytes() == content


def test_a_tool_that_leaves_a_damaged_artifact_has_failed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run()
    artifact = stage.work.folder("b/pretrain/seed0") / "backbone.safetensors"
    content = artifact.read_bytes()
    artifact.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(stage, "leave", lambda name, value: None)  # an export that nobody writes again
    assert stage.run()["b/pretrain/seed0"] == "failed"
    note, _ = records.read_note(artifact.parent)
    assert note is not None
    assert "damaged" in str(note.reason)


def test_a_number_that_has_changed_on_the_disk_is_measured_again_and_a_further_one_does_no_harm(stage: Stage) -> None:
    stage.run()
    name = "b/finetune/seed0"
    file = stage.work.folder(name) / "results.jsonl"
    results.append(file, [result("finetune", 1.0, split="other")])
    assert stage.work.status(name).done
    file.write_text(file.read_text().replace('"value":80.0', '"value":90.0'))
    assert "damaged: 1 of 1 lines" in stage.opened().status(name).why
    stage.run()
    assert stage.started == [name]
    assert [found.value for found in results.load(file)[0]] == [80.0]
    assert file.with_name("results.jsonl.damaged").is_file()

"""The record of a run: its sums, its lineage and its sentence."""

from __future__ import annotations

import subprocess

import pytest

from mae_transfer import record as module
from mae_transfer.record import DataSet, Record, Seconds, Sitting, Software, Weights

SOFTWARE = Software(version="0.1", commit="abc", dirty=False, packages={"torch": "2.9"})


def sitting(first_step=0, train=3600.0, devices=("H100",), commit="abc", **fields):
    return Sitting(
        started_at="2026-01-01T00:00:00+00:00",
        first_step=first_step,
        software=SOFTWARE.model_copy(update={"commit": commit}),
        devices=devices,
        device_batch=4,
        seconds=Seconds(train=train, **fields),
    )


def data(name="photos", images=100, whole=None, classes=0):
    return DataSet(
        name=name, kind="Folder", images=images, whole=whole or images, classes=classes, fingerprint="0" * 16
    )


def made(**changes):
    fields = {
        "run": "r",
        "task": "pretrain",
        "method": "MAE norm_pixel, random 75%, 800 ep",
        "scale": "small",
        "config_digest": "c",
        "recipe_digest": "d",
        "recipe": {},
        "seed": 0,
        "epochs": 800.0,
        "batch": 64,
        "labels": False,
    }
    return Record.model_validate(fields | changes)


def test_hours_of_different_devices_are_kept_apart():
    run = made(sittings=(sitting(devices=("H100", "H100")), sitting(1, train=1800.0, devices=("RTX 3090",))))

    assert run.device_hours() == {"H100": 2.0, "RTX 3090": 0.5}
    assert run.train_seconds == 5400.0


def test_seconds_of_evaluation_and_saving_are_no_training():
    assert made(sittings=(sitting(train=10.0, evaluate=100.0, save=5.0),)).train_seconds == 10.0
    assert Seconds(train=5, evaluate=3, save=2).since(Seconds(train=1, save=2)) == Seconds(train=4, evaluate=3)


def test_lineage_goes_from_a_transfer_to_its_pretraining_and_its_tokenizer():
    tokenizer = made(run="t", task="tokenizer")
    own = made(run="p", inputs={"tokenizer": Weights(kind="run", name="t", record=tokenizer)})
    transfer = made(
        run="c", task="classify", labels=True, inputs={"backbone": Weights(kind="run", name="p", record=own)}
    )

    assert [one.run for one in transfer.lineage()] == ["c", "p", "t"]
    assert transfer.pretraining() == own


@pytest.mark.parametrize(
    ("labels", "start", "seen"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"start": Weights(kind="random", name="none")}, False),
        (False, {"start": Weights(kind="file", name="x.pth")}, None),
        (False, {"start": Weights(kind="run", name="s", record=made(labels=True))}, True),
        (False, {"start": Weights(kind="run", name="s", record=made(labels=False))}, False),
    ],
)
def test_labels_are_seen_if_any_run_of_the_lineage_has_seen_them(labels, start, seen):
    assert made(labels=labels, inputs=start).seen_labels is seen


def test_the_sentence_names_data_weights_device_and_code():
    own = made(data={"train": data(images=90, whole=100)}, sittings=(sitting(commit="def"),))
    transfer = made(
        task="classify",
        method="finetune",
        labels=True,
        epochs=100.0,
        data={"train": data("birds", 50, classes=10), "val": data("birds", 5, classes=10)},
        inputs={"backbone": Weights(kind="run", name="x", record=own)},
        sittings=(sitting(train=7200.0),),
    )

    assert transfer.sentence() == (
        "classify: finetune, seed 0; 100 epochs of 'birds' (50 images, 10 classes), batch 64; "
        "evaluated on 'birds' (5 images, 10 classes); "
        "backbone: [pretrain: MAE norm_pixel, random 75%, 800 ep, seed 0; "
        "800 epochs of 'photos' (90 of 100 images, no labels), batch 64; 1 h on H100; code def]; 2 h on H100; code abc"
    )


def test_a_record_survives_json_and_refuses_unknown_fields():
    record = made(data={"train": data()}, sittings=(sitting(),))

    assert Record.model_validate_json(record.model_dump_json()) == record
    assert "reached" not in record.model_dump_json()
    state = made(reached=400.0)
    assert Record.model_validate_json(state.model_dump_json()) == state
    assert state.length == "400 of 800"
    with pytest.raises(ValueError, match="unknown"):
        Record.model_validate(record.model_dump() | {"unknown": 1})


def test_the_commit_is_read_once_per_process(monkeypatch):
    first = module.software()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("git was asked again"))

    assert module.software() is first
    assert first.packages["torch"]
    assert first.version != "unknown"

"""The record of a run: in its results, in its training state, in its backbone, and in the results of a transfer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mae_transfer import checkpoints, record, results
from mae_transfer.config import validate
from mae_transfer.models import attention
from mae_transfer.record import Record
from mae_transfer.tasks import classify, pretrain
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.evaluation import Evaluation
from mae_transfer.tasks.knn import KnnConfig
from mae_transfer.tasks.workdir import WorkDir
from tests.integration.pretrain_runs import config, payload, run_options, stop_at, values

SHAPES = {"name": "shapes", "size": 24, "length": 16}


def transfer(backbone: str, /, **changes: Any) -> ClassifyConfig:
    values: dict[str, Any] = {
        "scale": "mini",
        "epochs": 1.0,
        "batch": 8,
        "precision": "float32",
        "seed": 3,
        "data": {"train": SHAPES, "val": {**SHAPES, "length": 4, "seed": 1}, "size": 16},
        "backbone": {"reference": backbone},
        "optim": {"lr": 1e-3},
        "schedule": {"warmup_epochs": 0.0},
        "run": {"device": "cpu", "workers": 0, "save_minutes": None, "progress": False},
    }
    return validate(values | changes, ClassifyConfig, where="test")


def of(folder: Path) -> Record:
    found = results.load(WorkDir(folder).results)[0][-1].record
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    pretrain.Pretrain.launch(config(seed=7), folder)
    return WorkDir(folder)


def test_a_pretraining_records_data_recipe_software_and_seconds(pretrained: WorkDir) -> None:
    found = of(pretrained.root)

    assert (found.run, found.task, found.labels, found.seed) == ("mine", "pretrain", False, 7)
    assert found.method == "MAE norm_pixel, random 75%, 5 ep"
    assert {part: (d.images, d.whole, d.kind) for part, d in found.data.items()} == {
        "train": (16, 16, "Shapes"),
        "val": (3, 4, "Shapes"),
    }
    assert found.recipe["mask"]["name"] == "random"
    assert "run" not in found.recipe
    (sitting,) = found.sittings
    assert sitting.software == record.software()
    assert (sitting.device_batch, sitting.first_step, len(sitting.devices)) == (4, 0, 1)
    assert min(sitting.seconds.train, sitting.seconds.evaluate, sitting.seconds.save) > 0


def test_the_backbone_carries_the_record_and_a_transfer_contains_it(pretrained: WorkDir, tmp_path: Path) -> None:
    carried = Record.model_validate(checkpoints.metadata(pretrained.backbone)["record"])
    classify.Classify.launch(transfer(str(pretrained.backbone)), tmp_path / "cls")
    found = of(tmp_path / "cls")

    assert carried == of(pretrained.root).exported()
    assert found.pretraining() == carried
    assert found.inputs["backbone"].kind == "run"
    assert found.inputs["backbone"].sha256 == checkpoints.sha256(pretrained.backbone)
    assert (found.labels, found.seen_labels, carried.seen_labels) == (True, True, False)
    assert found.data["train"].classes == len(found.data["train"].class_names) > 1
    assert found.depends_on_device_batch == ("mixup",)


def test_drop_path_that_skips_samples_depends_on_the_device_batch(tmp_path: Path) -> None:
    model = values()["model"]
    model["encoder"]["skip_dropped"] = True
    pretrain.Pretrain.launch(config(model=model, epochs=1.0), tmp_path / "four")  # images per device
    assert of(tmp_path / "four").depends_on_device_batch == ("skip_dropped",)
    with pytest.raises(ValueError, match=r"of 1 sample\(s\) per device and forward pass, .* drop none"):
        pretrain.Pretrain.launch(config(model=model, **run_options(device_batch=1)), tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_an_evaluated_state_has_the_record_of_its_training(pretrained: WorkDir, tmp_path: Path) -> None:
    cfg = transfer(str(pretrained.backbone))
    classify.Classify.launch(cfg, tmp_path / "cls")
    (state,) = (tmp_path / "cls" / "checkpoints").glob("step_*.pt")
    (top1, *_) = classify.Classify.evaluate_checkpoint(cfg, str(state), None)

    assert top1.record is not None
    assert (top1.record.epochs, top1.record.run) == (0.0, "eval")
    assert top1.record.inputs["checkpoint"].record is not None
    assert top1.record.inputs["checkpoint"].record.seed == 3
    pretraining = top1.record.pretraining()
    assert pretraining is not None
    assert pretraining.run == "mine"


def test_neighbours_record_both_sets(pretrained: WorkDir, tmp_path: Path) -> None:
    values = transfer(str(pretrained.backbone)).model_dump(include={"scale", "data", "backbone", "precision", "run"})
    Evaluation.launch(validate({**values, "ks": (1,)}, KnnConfig, where="test"), tmp_path / "knn")
    found = of(tmp_path / "knn")

    assert {part: data.images for part, data in found.data.items()} == {"train": 16, "val": 4}
    assert found.train_seconds == 0
    assert found.sittings[0].seconds.evaluate > 0


def test_evaluations_alone_use_the_position_bias_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a training state, and of a frozen backbone."""
    encoder = {**values()["model"]["encoder"], "class_token": False, "relative_positions": "decomposed"}
    cfg = transfer("", backbone={"encoder": encoder})
    classify.Classify.launch(cfg, tmp_path / "cls")
    (state,) = (tmp_path / "cls" / "checkpoints").glob("step_*.pt")
    seen: list[str] = []
    usual = attention.attend_channels
    monkeypatch.setattr(attention, "attend_channels", lambda *args: (seen.append("channels"), usual(*args))[1])
    run = {**cfg.run.model_dump(), "position_bias": "channels"}
    classify.Classify.evaluate_checkpoint(transfer("", backbone={"encoder": encoder}, run=run), str(state), None)
    assert seen
    seen.clear()
    same = ("scale", "precision", "data", "backbone")
    frozen = {name: cfg.model_dump()[name] for name in same} | {"ks": (1,), "pool": "mean", "run": run}
    frozen["data"] = {"train": SHAPES, "val": {**SHAPES, "length": 4, "seed": 1}, "size": 16}
    Evaluation.launch(validate(frozen, KnnConfig, where="test"), tmp_path / "knn")
    assert seen


def test_fresh_weights_and_files_of_unknown_origin_say_so(tmp_path: Path) -> None:
    assert checkpoints.origin("random:ViT-B/16", checkpoints.PREFIXES, sha256=None).kind == "random"
    mine = tmp_path / "mae_pretrain_vit_base.pth"  # a name proves nothing
    mine.write_bytes(b"mine")
    found = checkpoints.origin(f"mae:{mine}", checkpoints.PREFIXES, sha256="0" * 64)

    assert (found.kind, found.name, found.layout) == ("file", mine.name, "mae")


def test_a_release_is_known_by_its_published_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = checkpoints.RELEASED["mae_vit_base"]
    file = tmp_path / "renamed.pth"
    file.write_bytes(b"weights")
    digits = hashlib.md5(b"weights").hexdigest()[:6]
    monkeypatch.setitem(checkpoints.RELEASED, "mae_vit_base", entry._replace(checksum=f"md5:{digits}"))
    found = checkpoints.origin(f"mae:{file}", checkpoints.PREFIXES, sha256=None)

    assert (found.kind, found.name) == ("released", "mae_vit_base")


def test_a_run_that_starts_from_a_state_has_the_record_of_its_run(pretrained: WorkDir, tmp_path: Path) -> None:
    (state,) = pretrained.checkpoints.glob("step_*.pt")
    pretrain.Pretrain.launch(config(start=str(state)), tmp_path / "more")
    start = of(tmp_path / "more").inputs["start"]

    assert start.record is not None
    assert (start.kind, start.record.run) == ("run", "mine")


def test_each_sitting_is_recorded_and_the_seconds_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(**run_options(save_every=2))
    with monkeypatch.context() as broken:

        def fail() -> None:
            raise KeyboardInterrupt

        stop_at(broken, 5, fail)
        with pytest.raises(KeyboardInterrupt):
            pretrain.Pretrain.launch(cfg, tmp_path / "r")
    later = record.software().model_copy(update={"commit": "later"})
    monkeypatch.setattr("mae_transfer.tasks.run.software", lambda: later)
    pretrain.Pretrain.launch(cfg, tmp_path / "r", resume=True)
    found = of(tmp_path / "r")

    assert [sitting.first_step for sitting in found.sittings] == [0, 4]
    assert [s.software for s in found.sittings] == [record.software(), later]
    assert all(sitting.seconds.train > 0 for sitting in found.sittings)
    assert found.train_seconds == pytest.approx(payload(tmp_path / "r")["seconds"]["train"])


def test_a_commit_during_a_run_changes_no_recorded_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = record.software()
    stop_at(monkeypatch, 5, lambda: monkeypatch.setattr(record, "_commit", lambda: ("other", True)))
    pretrain.Pretrain.launch(config(), tmp_path / "r")

    assert [sitting.software for sitting in of(tmp_path / "r").sittings] == [before]


def test_training_seconds_do_not_grow_with_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    evaluate, loss = pretrain.Pretrain.evaluate, pretrain.Pretrain.loss

    def slow(*args: Any) -> dict[str, float]:
        now[0] += 100.0
        return evaluate(*args)

    def stepping(*args: Any) -> Any:
        now[0] += 1.0
        return loss(*args)

    monkeypatch.setattr("mae_transfer.engine.loop.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(pretrain.Pretrain, "evaluate", slow)
    monkeypatch.setattr(pretrain.Pretrain, "loss", stepping)
    seconds = []
    for folder, changes in (("often", {"evaluate_epochs": 1.0}), ("once", {})):
        pretrain.Pretrain.launch(config(**changes), tmp_path / folder)
        seconds.append(of(tmp_path / folder).sittings[0].seconds)

    assert [(one.train, one.evaluate) for one in seconds] == [(20.0, 500.0), (20.0, 100.0)]


def test_a_state_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    import torch

    cfg = config(**run_options(save_every=5, keep_every=5))
    pretrain.Pretrain.launch(cfg, tmp_path / "r")
    (tmp_path / "r" / "results.jsonl").unlink()
    (tmp_path / "r" / "checkpoints" / "step_00000010.pt").unlink()
    old = payload(tmp_path / "r", 5)
    old["wall_s"] = 100.0
    del old["seconds"], old["record"]
    torch.save(old, tmp_path / "r" / "checkpoints" / "step_00000005.pt")
    pretrain.Pretrain.launch(cfg, tmp_path / "r", resume=True)
    found = of(tmp_path / "r")

    assert [(sitting.devices, sitting.first_step) for sitting in found.sittings[:1]] == [(("unknown",), 0)]
    assert found.sittings[0].seconds.train == 100.0
    assert (found.sittings[1].first_step, found.complete) == (5, False)


def test_a_finished_run_of_an_earlier_version_writes_its_backbone_again(tmp_path: Path) -> None:
    import torch

    pretrain.Pretrain.launch(config(), tmp_path / "r")
    path = tmp_path / "r" / "checkpoints" / "step_00000010.pt"
    old = payload(tmp_path / "r")
    old["wall_s"] = 100.0
    del old["seconds"], old["record"]
    torch.save(old, path)
    WorkDir(tmp_path / "r").backbone.unlink()
    pretrain.Pretrain.launch(config(), tmp_path / "r", resume=True)

    assert "record" not in checkpoints.metadata(WorkDir(tmp_path / "r").backbone)


def test_a_run_that_is_resumed_with_another_config_says_so(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(epochs=2.0), tmp_path / "r")
    (tmp_path / "r" / "config.py").unlink()
    pretrain.Pretrain.launch(config(epochs=3.0), tmp_path / "r", resume=True)
    found = of(tmp_path / "r")

    assert (found.epochs, found.config_digest) == (3.0, config(epochs=3.0).digest())
    assert found.earlier_configs == (config(epochs=2.0).digest(),)


def test_a_state_holds_the_seconds_up_to_its_step(pretrained: WorkDir) -> None:
    held = Record.model_validate_json(payload(pretrained.root)["record"])

    assert held.train_seconds == pytest.approx(of(pretrained.root).train_seconds)


def test_a_backbone_can_be_written_again_to_the_last_byte(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(), tmp_path / "r")
    path = WorkDir(tmp_path / "r").backbone
    before = path.read_bytes()
    path.unlink()
    pretrain.Pretrain.launch(config(), tmp_path / "r", resume=True)

    assert path.read_bytes() == before


def test_a_result_line_holds_the_whole_record(pretrained: WorkDir) -> None:
    line = json.loads(pretrained.results.read_text().splitlines()[0])

    assert line["record"]["data"]["train"]["fingerprint"]
    assert line["images_per_s"] == pytest.approx(line["images_seen"] / of(pretrained.root).train_seconds)

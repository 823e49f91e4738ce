"""Features that are kept (run.features): the same numbers, one pass per data set and backbone, unreadable images."""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer import results
from mae_transfer.cli.main import main
from mae_transfer.config import validate
from mae_transfer.data import Folder, UnreadableImage
from mae_transfer.engine.dist import Dist
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.store.shared import RunStore
from mae_transfer.suite.store.work import Work
from mae_transfer.tasks import cached
from mae_transfer.tasks.classify import Classify, ClassifyConfig
from mae_transfer.tasks.evaluation import Evaluation, EvaluationConfig
from mae_transfer.tasks.features import digest_of_module
from mae_transfer.tasks.knn import KnnConfig
from mae_transfer.tasks.logreg import LogRegConfig
from mae_transfer.tasks.ridge import RidgeConfig
from mae_transfer.tasks.statistics import StatisticsConfig
from mae_transfer.tasks.workdir import WorkDir
from tests.integration.conftest import Torchrun

CPU = Dist(torch.device("cpu"))
ROOT = Path(__file__).parents[2]
ENCODER = {"size": None, "dim": 32, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}
TASKS: dict[str, tuple[type[EvaluationConfig], dict[str, Any]]] = {
    "knn": (KnnConfig, {"ks": (1, 3), "pool": "cls"}),
    "ridge": (RidgeConfig, {"penalties": (1.0, 0.1), "selection_fraction": 0.25, "pool": "mean"}),
    "logreg": (LogRegConfig, {"cs": (1.0,), "pool": "mean"}),
    "statistics": (StatisticsConfig, {"pool": "cls"}),
}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Folders of 2 classes: 14 images for training, 6 for validation."""
    for part, images in (("train", 7), ("val", 3)):
        for label in range(2):
            folder = tmp_path / "data" / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                generator = np.random.default_rng([len(part), label, index])
                pixels = generator.integers(0, 128 + 100 * label, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    sets = {part: {"name": "folder", "split": part} for part in ("train", "val")}
    return {"root": str(tmp_path / "data"), "size": 32, **sets}


def config(data: dict[str, Any], task: str = "knn", *, folder: Path | None = None, **changes: Any) -> Any:
    schema, options = TASKS[task]
    run = {"device": "cpu", "workers": 0, "evaluation_batch": 4, "progress": False}
    values = {
        "task": task, "scale": "mini", "precision": "float32", "data": data, "backbone": {"encoder": ENCODER},
        "run": run | {"features": str(folder) if folder else None},
    }  # fmt: skip
    return validate(values | options | changes, schema, where="test")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that `features` computed, one entry per part; parts have four images."""
    monkeypatch.setattr(cached, "IMAGES_PER_PART", 4)
    found: list[int] = []
    compute = cached._compute

    def counted(parts: Any, rows: Any) -> None:
        found.extend(len(part.images) for part in parts)
        compute(parts, rows)

    monkeypatch.setattr(cached, "_compute", counted)
    return found


def figures(cfg: Any, folder: Path) -> dict[str, float]:
    return {f"{r.split} {r.protocol} {r.metric}": r.value for r in Evaluation.launch(cfg, folder)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_results_are_the_same_with_and_without_and_every_set_is_read_once(
    data: dict[str, Any], tmp_path: Path, passes: list[int], precision: str
) -> None:
    kept = tmp_path / "kept"
    for task in TASKS:
        plain = config(data, task, precision=precision)
        cfg = config(data, task, precision=precision, folder=kept)
        assert cfg.digest() == plain.digest()
        assert figures(cfg, tmp_path / task) == figures(plain, tmp_path / f"{task}_plain")
    assert passes == [4, 4, 4, 2, 4, 2]  # of 14 and 6 images, for four evaluations with two pools
    assert len(list(kept.glob("features_*.npy"))) == 2


def test_kept_features_are_those_of_a_pass_bit_for_bit(
    data: dict[str, Any], tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(self: Any, images: int) -> Any:
        return lambda *sets, **_: seen.append(sets) or {}

    monkeypatch.setattr(KnnConfig, "evaluator", record)
    for pool in ("cls", "mean", "cls+mean", "cls-2", "cls-2+mean"):
        for folder in (None, tmp_path / "kept", tmp_path / "kept"):
            Evaluation.launch(config(data, folder=folder, pool=pool), tmp_path / pool)
        plain, *others = seen[-3:]
        for other in others:
            for ours, theirs in zip(plain, other, strict=True):
                assert torch.equal(ours.features, theirs.features)
                assert torch.equal(ours.labels, theirs.labels)
                assert ours.features.dtype == theirs.features.dtype
    assert len(passes) == 2 * 6  # one block, two blocks


def test_other_weights_views_images_and_precisions_use_other_files(
    data: dict[str, Any], tmp_path: Path, passes: list[int]
) -> None:
    kept = tmp_path / "kept"

    def files(**changes: Any) -> int:
        cfg = config(changes.pop("data", data), folder=kept, **changes)
        Evaluation.launch(cfg, tmp_path / cfg.digest() / str(len(passes)))
        return len(list(kept.glob("features_*.npy")))

    assert files() == 2
    assert files(ks=(2,), pool="mean") == 2
    assert files(seed=1) == 4
    assert files(precision="bfloat16") == 6
    assert files(data=data | {"shorter_side": 1.0}) == 8
    assert files(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)) == 10
    assert files(backbone={"encoder": ENCODER | {"heads": 4}}) == 12
    assert files(data=data | {"label_fraction": 0.5}) == 13  # of the training set only
    Path(shutil.move(data["root"], tmp_path / "moved"))
    moved = data | {"root": str(tmp_path / "moved")}
    assert files(data=moved) == 13
    (tmp_path / "moved" / "val" / "class0" / "0.png").unlink()
    assert files(data=moved) == 14
    os.utime(tmp_path / "moved" / "val" / "class0" / "1.png", (0, 0))  # other contents of the same size
    assert files(data=moved) == 15


def test_unreadable_images_count_as_before(
    data: dict[str, Any], tmp_path: Path, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train/class0/3.png", "val/class1/0.png"):
        (Path(data["root"]) / name).write_bytes(b"no image")
    kept, skipping = tmp_path / "kept", data | {"on_error": "skip"}
    plain = Evaluation.launch(config(skipping), tmp_path / "plain")
    for name in ("first", "second"):
        found = Evaluation.launch(config(skipping, folder=kept), tmp_path / name)
        assert [(r.protocol, r.value, r.unreadable) for r in found] == [(r.protocol, r.value, 2) for r in plain]
        assert re.search(r"1 images could not be read .*3\.png; delete \S+\.npy to read them again", caplog.text)
        caplog.clear()
    with pytest.raises(
        UnreadableImage, match=r"3\.png could not be read when .*features_\w+\.npy was computed: repair"
    ):
        Evaluation.launch(config(data, folder=kept), tmp_path / "third")
    for image in (Path(data["root"]) / "val").glob("*/*.png"):
        image.write_bytes(b"no image at all")
    with pytest.raises(ValueError, match="no image of a set could be read"):
        Evaluation.launch(config(skipping, folder=kept), tmp_path / "fourth")


def test_a_backbone_without_class_token_keeps_the_mean(data: dict[str, Any], tmp_path: Path) -> None:
    bare = {"encoder": ENCODER | {"class_token": False}}
    with pytest.raises(ValueError, match="no class token: set pool to 'mean'"):
        Evaluation.launch(config(data, backbone=bare, folder=tmp_path / "kept"), tmp_path / "cls")
    assert figures(config(data, backbone=bare, folder=tmp_path / "kept", pool="mean"), tmp_path / "a") == figures(
        config(data, backbone=bare, pool="mean"), tmp_path / "b"
    )


def test_two_processes_write_their_shares(data: dict[str, Any], torchrun: Torchrun, tmp_path: Path) -> None:
    cfgs = [config(data, folder=tmp_path / name) for name in ("one", "two")]
    Evaluation.launch(cfgs[0], tmp_path / "run_one")
    (tmp_path / "cfg.py").write_text(cfgs[1].source())
    torchrun(ROOT / "tools" / "cls_train.py", tmp_path / "cfg.py", "--work-dir", tmp_path / "run_two")
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).glob("*.npy")} for name in ("one", "two"))
    assert one == two
    values = [
        [(r.protocol, r.value) for r in results.load(tmp_path / f"run_{n}" / "results.jsonl")[0]]
        for n in ("one", "two")
    ]
    assert values[0] == values[1]


def test_the_digest_of_a_backbone_covers_tensors_and_architecture() -> None:
    def digest(**changes: Any) -> str:
        torch.manual_seed(0)
        return digest_of_module(ViT(ViTConfig.model_validate(ENCODER | changes)))

    assert digest() == digest()
    assert len({digest(), digest(heads=4), digest(norm_eps=1e-5), digest(final_norm=False)}) == 4
    vit = ViT(ViTConfig.model_validate(ENCODER))
    before = digest_of_module(vit.train())
    assert digest_of_module(vit.eval()) == before
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.bias[3] += 1e-6
    assert digest_of_module(vit) != before


def test_the_digest_covers_what_no_state_dict_holds() -> None:
    def digest(**attributes: Any) -> str:
        part = torch.nn.Linear(2, 2)
        part.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        part.register_buffer("scale", attributes.pop("scale", torch.ones(1)), persistent=False)
        vars(part).update(attributes)
        return digest_of_module(part)

    kinds: list[dict[str, Any]] = [
        {}, {"scale": torch.zeros(1)}, {"a": [1]}, {"a": [2]}, {"a": {"b": 1}}, {"a": {"b": 2}}, {"a": torch.relu},
        {"a": torch.tanh}, {"a": partial(torch.relu, inplace=True)},
    ]  # fmt: skip
    assert len({digest(**kind) for kind in kinds}) == len(kinds)
    assert digest(a=object()) == digest(a=object())


def test_the_note_says_what_the_features_depend_on(data: dict[str, Any], tmp_path: Path) -> None:
    Evaluation.launch(config(data, folder=tmp_path / "kept"), tmp_path / "run")
    notes = [json.loads(file.read_text())["about"] for file in (tmp_path / "kept").glob("*.json")]
    assert sorted(note["images"].partition(",")[0] for note in notes) == ["14 of 14", "6 of 6"]
    assert {note["view"] for note in notes} == {
        "(32, 32) px, resized to cover 1.14286 times that (bicubic), centre crop"
    }
    assert {note["precision"] for note in notes} == {"float32"}
    assert sorted(note["set"] for note in notes) == [
        '{"name":"folder","split":"train"}', '{"name":"folder","split":"val"}'
    ]  # fmt: skip


def test_the_folder_of_a_set_changes_no_name(data: dict[str, Any], tmp_path: Path) -> None:
    own = {part: data[part] | {"root": data["root"]} for part in ("train", "val")}
    for name, values in (("one", data), ("own", data | own)):
        Evaluation.launch(config(values, folder=tmp_path / name), tmp_path / "run" / name)
    one, own_names = ({file.name for file in (tmp_path / name).glob("*.npy")} for name in ("one", "own"))
    assert len(one) == 2
    assert own_names == one


def test_a_suite_computes_the_features_of_a_backbone_once(
    data: dict[str, Any], tmp_path: Path, passes: list[int]
) -> None:
    for task in ("knn", "ridge", "logreg"):
        (tmp_path / f"{task}.py").write_text(config(data, task).source())
    (tmp_path / "probe.py").write_text(probe(data, protocol=PROBE["protocol"] | {"pools": ("cls", "mean")}).source())
    transfer = {task: {"tool": "cls_train", "config": f"{task}.py"} for task in ("knn", "ridge", "logreg", "probe")}
    rows = {name: {"fresh": {"backbone.encoder": ENCODER | {"depth": depth}}} for name, depth in (("A", 2), ("B", 1))}
    suite = {"title": "frozen", "tables": ("summary",), "transfer": transfer, "rows": rows}
    (tmp_path / "suite.py").write_text("\n".join(f"{key} = {value!r}" for key, value in suite.items()))
    plan = open_plan(tmp_path / "suite.py")[1]
    work = Work(plan, tmp_path / "d", suite="frozen")
    for node in plan.values():
        words = work.command(node, {})
        assert main(["classify", *words[2:]]) == 0
    assert passes == 2 * [4, 4, 4, 2, 4, 2]  # of 14 and 6 images: one pass per set and backbone, for four protocols
    assert len(list((tmp_path / "d" / ".features").glob("*.npy"))) == 4
    shared = Work(plan, tmp_path / "e", suite="frozen", store=RunStore(tmp_path / "store"))
    assert f"run.features={str(tmp_path / 'store' / '.features')!r}" in shared.command(node, {})


PROBE = {
    "protocol": {"name": "linear", "rates": (0.3, 3.0), "pools": ("cls", "mean", "cls-2+mean")},
    "optim": {"algorithm": {"name": "lars"}, "lr": 1.0, "weight_decay": 0.0},
    "schedule": {"warmup_epochs": 0.5}, "epochs": 3.0, "batch": 4,
}  # fmt: skip


def probe(data: dict[str, Any], *, folder: Path | None = None, **changes: Any) -> ClassifyConfig:
    run = {"device": "cpu", "workers": 0, "evaluation_batch": 4, "progress": False, "log_every": 1}
    values = {
        "scale": "mini", "precision": "float32", "backbone": {"encoder": ENCODER},
        "data": data | {"augmentation": {"name": "none"}, "holdout_fraction": 0.3},
        "run": run | {"features": str(folder) if folder else None},
    }  # fmt: skip
    return validate(values | PROBE | changes, ClassifyConfig, where="test")


def trained(cfg: ClassifyConfig, folder: Path, **how: Any) -> tuple[list[float], dict[str, float], list[int]]:
    """Return losses, results and numbers of unreadable images of a run."""
    found = Classify.launch(cfg, folder, **how)
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    values = {f"{r.split} {r.protocol} {r.metric}": r.value for r in found}
    return [line["loss"] for line in lines if line["kind"] == "train"], values, [r.unreadable for r in found]


def test_probes_train_from_kept_features_as_from_images(
    data: dict[str, Any], tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train/class0/3.png", "train/class1/5.png", "val/class1/0.png"):
        (Path(data["root"]) / name).write_bytes(b"no image")
    sets = data | {"on_error": "skip", "label_fraction": 0.9}
    kept = tmp_path / "kept"
    plain, cfg = probe(sets), probe(sets, folder=kept)
    assert cfg.digest() == plain.digest()
    losses, values, unreadable = trained(plain, tmp_path / "plain")
    assert sum(unreadable)
    figures(config(sets, "logreg", folder=kept, pool="cls-2"), tmp_path / "logreg")
    assert len(passes) == 5  # of 12 and 6 images

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Folder, "read", never)
    found = trained(cfg, tmp_path / "run")
    assert found[0] == pytest.approx(losses, rel=1e-5)
    assert found[1] == pytest.approx(values)
    assert found[2] == unreadable
    assert len(passes) == 5
    assert len(list(kept.glob("*.npy"))) == 2


def test_a_step_on_kept_features_has_no_known_operations_but_its_result_has(
    data: dict[str, Any], tmp_path: Path
) -> None:
    steps, images = [], []
    for cfg in (probe(data), probe(data, folder=tmp_path / "kept")):
        task = Classify(cfg, CPU)
        task.open()
        loop = task.loop()
        task.prepare(loop)
        task.state = task.build_state(loop)
        task.folder = WorkDir(tmp_path)
        task.check_data()
        task.start_record(loop)
        task.state.seconds = task.state.seconds.model_copy(update={"train": 1.0})
        steps.append(task.training_flops())
        images.append(task.shared_now()["flops_per_image"])
    assert steps == [images[0], None]
    assert images[0] == images[1] > 0


def test_a_probe_on_kept_features_resumes_bit_for_bit(data: dict[str, Any], tmp_path: Path) -> None:
    cfg = probe(data, folder=tmp_path / "kept")
    saving = cfg.model_copy(update={"run": cfg.run.model_copy(update={"save_every": 2, "keep_last": 3})})
    trained(saving, tmp_path / "run")
    states = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    whole = torch.load(states[-1], weights_only=True)["model"]
    for path in (states[-1], tmp_path / "run" / "results.jsonl"):
        path.unlink()
    trained(saving, tmp_path / "run", resume=True)
    again = torch.load(states[-1], weights_only=True)["model"]
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("changes", [{"augmentation": {"name": "random_crop"}}, {"heads": ("cross",)}])
def test_moving_crops_and_tokens_are_not_kept(data: dict[str, Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    cfg = probe(data, folder=tmp_path / "kept")
    part = "data" if "augmentation" in changes else "protocol"
    values = cfg.model_dump()
    task = Classify(validate(values | {part: values[part] | changes}, ClassifyConfig, where="test"), CPU)
    assert not task.keeps
    assert Classify(cfg, CPU).keeps


@pytest.mark.slow
def test_two_processes_train_from_kept_features_as_from_images(
    data: dict[str, Any], torchrun: Torchrun, tmp_path: Path
) -> None:
    """A batch norm on a CPU has the statistics of its process, so two processes are compared with two."""
    logs = []
    for name, folder in (("plain", None), ("kept", tmp_path / "features")):
        (tmp_path / f"{name}.py").write_text(probe(data, folder=folder).source())
        torchrun(ROOT / "tools" / "cls_train.py", tmp_path / f"{name}.py", "--work-dir", tmp_path / name)
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2

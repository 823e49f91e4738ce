"""Records of runs that follow the papers, made from the packaged configs. Tests change one field at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from mae_transfer.config import Schema, load
from mae_transfer.record import DataSet, Record, Sitting, Software, Weights
from mae_transfer.suite.published.measured import DATA_SETS, VARIANTS
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.joint import JointConfig
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.segment import SegmentConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RANDOM = Weights(kind="random", name="none")
FOLDERS = {
    "imagenet": "ImageNet", "coco": "COCO", "ade20k": "ADE20K", "ADEChallengeData2016": "ADE20K",
    "inat2018": "iNat 2018", "places205": "Places205",
}  # fmt: skip
IMAGES = {images.title: images for images in DATA_SETS}
SIZES = {"vit_base/16": "base", "vit_large/16": "large", "vit_huge/14": "huge", "vit_huge/16": "huge"}


@cache
def config(name: str, schema: type[Schema]) -> Any:
    return load(CONFIGS / f"{name}.py", schema)


def data_set(name: str, images: int, classes: int = 0, whole: int | None = None) -> DataSet:
    return DataSet(
        name=name, kind="Folder", images=images, whole=whole or images, classes=classes, fingerprint="0" * 16
    )


def sets(name: str) -> dict[str, DataSet]:
    """The training and validation images of a folder: a known data set's, or a small one's."""
    if name in VARIANTS:
        return {"val": data_set(name, VARIANTS[name].val, VARIANTS[name].classes)}
    images = IMAGES.get(FOLDERS.get(name, ""))
    if images is None:
        return {"train": data_set(name, 50_000, 10), "val": data_set(name, 5_000, 10)}
    count = images.train[-1]
    return {"train": data_set(name, count, images.classes), "val": data_set(name, images.val, images.classes)}


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with other values at dotted keys."""
    for key, value in changes.items():
        *folders, last = key.split(".")
        at = recipe = dict(recipe)
        for folder in folders:
            at[folder] = dict(at[folder])
            at = at[folder]
        at[last] = value
    return recipe


def record(cfg: Any, task: str, method: str, **changes: Any) -> Record:
    """The record of a run of a config. `recipe` changes values at dotted keys."""
    recipe = changed(cfg.model_dump(mode="json", exclude={"run"}), changes.pop("recipe", {}))
    fields = {
        "run": "r", "task": task, "method": method, "scale": "paper", "config_digest": "c", "recipe_digest": "d",
        "recipe": recipe, "seed": 0,
        "epochs": getattr(cfg, "epochs", 0.0), "batch": getattr(cfg, "batch", 0),
    }  # fmt: skip
    return Record.model_validate(fields | changes)


def pretraining(size: str = "base", epochs: int = 1600, **changes: Any) -> Record:
    """The paper's MAE by this package."""
    name = f"pretrain/mae_vit_{size}_{14 if size == 'huge' else 16}_{'1600e' if epochs == 1600 else '800e'}"
    method = changes.pop("method", f"MAE norm_pixel, random 75%, {epochs} ep")
    given = {"data": {"train": data_set("imagenet", 1_281_167)}, "labels": False, "epochs": float(epochs)}
    return record(config(name, PretrainConfig), "pretrain", method, **given | changes)


def joint(name: str, **changes: Any) -> Record:
    """A pretraining by joint embedding with a packaged config: "dino_vit_small"."""
    cfg = config(f"pretrain/{name}", JointConfig)
    given = {"data": {"train": data_set("imagenet", 1_281_167)}, "labels": False}
    return record(cfg, "pretrain", cfg.method(), **given | changes)


def sitting(device_batch: int = 64, commit: str = "a") -> Sitting:
    software = Software(version="0", commit=commit, dirty=False, packages={})
    return Sitting(started_at="", first_step=0, software=software, devices=("H100",), device_batch=device_batch)


def run(made: Record) -> Weights:
    return Weights(kind="run", name=made.method, record=made)


def weights(pretrain: str, size: str) -> Weights:
    """The weights for Result.pretrain: "none", "MAE pixel, random 75%, 800 ep", "timm:NAME", a release or a file."""
    if pretrain == "none":
        return RANDOM
    words = pretrain.replace(",", "").split()
    if len(words) == 6:
        _, target, mask, hidden, epochs, _ = words
        recipe = {"target": {"name": target}, "mask": {"name": mask, "ratio": int(hidden[:-1]) / 100}}
        inputs = {"tokenizer": Weights(kind="file", name="encoder.pkl", layout="dalle")} if target == "token" else {}
        return run(pretraining(size, recipe=recipe, inputs=inputs, method=pretrain, epochs=int(epochs)))
    if pretrain.startswith("timm:"):
        return Weights(kind="released", name=pretrain.removeprefix("timm:"), layout="timm")
    released = pretrain.startswith(("mae_vit", "moco_v3", "deit_", "beit_"))
    return Weights(kind="released" if released else "file", name=pretrain, layout="mae")


def transfer(fields: dict[str, Any]) -> Record:
    """The record of the run that gave a result, by the result's own fields."""
    task, protocol, size = fields["task"], fields["protocol"], SIZES.get(fields["backbone"], "base")
    start = weights(fields["pretrain"], size)
    if task == "pretrain":
        assert start.record is not None
        return start.record
    first, _, rest = protocol.partition("-")
    name, schema, recipe = "classify/finetune_vit_" + size, ClassifyConfig, {}
    if fields.get("tokens_per_image") == 1025:
        name += "_448"
    if start == RANDOM:
        name = f"classify/scratch_vit_{size}"
    if task == "detect":
        kind = (
            f"vitdet_{size}_{75 if size == 'huge' else 100}ep" if "vitdet" in protocol else f"vit_{size}_li2021_100ep"
        )
        name, schema = f"detect/mask_rcnn_{kind}", DetectConfig
    elif task == "segment":
        name, schema = f"segment/upernet_vit_{size}_160k", SegmentConfig
        recipe = {"protocol": {"name": protocol}}
    elif first == "linear":
        name = "classify/linear_probe"
    elif first == "partial":
        name, recipe = "classify/partial", {"protocol.tune_blocks": int(rest) if rest.isdigit() else rest}
    cfg = config(name, schema)
    given = {"scale": fields["scale"], "data": sets(fields["dataset"]), "seed": fields["seed"]}
    if fields.get("commit"):
        given["sittings"] = (sitting(commit=fields["commit"]),)
    if fields["epochs"]:
        return record(
            cfg, task, protocol, recipe=recipe, inputs={"backbone": start}, **given | {"epochs": fields["epochs"]}
        )
    learned = given | {"data": sets("imagenet" if task == "robustness" else fields["dataset"])}
    trained = record(cfg, task, protocol, recipe=recipe, inputs={"backbone": start}, **learned)
    return evaluated(trained, start if "finetuned" in start.name else None, val=given["data"]["val"])


def evaluated(trained: Record, released: Weights | None = None, val: DataSet | None = None) -> Record:
    """The record of the evaluation of a training's last state, or of a released classifier."""
    inputs = {"checkpoint": released} if released else {**trained.inputs, "checkpoint": run(trained)}
    return trained.model_copy(update={"epochs": 0.0, "inputs": inputs, "data": {"val": val or trained.data["val"]}})

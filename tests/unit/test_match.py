"""suite/match.py: a published number is compared only with runs that match it; other runs get the right reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mae_transfer.data.crops import MultiCrop
from mae_transfer.models.mae import DecoderConfig
from mae_transfer.record import Record, Weights
from mae_transfer.results import Result
from mae_transfer.suite import match
from mae_transfer.suite.match import EARLIER, _pretrained, why_not
from mae_transfer.suite.published import PUBLISHED
from mae_transfer.suite.published.entry import Published, block
from mae_transfer.suite.published.measured import JOINT, Elsewhere, Measured
from mae_transfer.suite.store.records import Measurement, Note
from mae_transfer.suite.tables.layouts import LAYOUTS, Spot
from mae_transfer.tasks.images import ImageConfig
from mae_transfer.tasks.knn import KnnConfig
from tests.unit import as_published
from tests.unit.as_published import RANDOM, data_set, pretraining, run, sets, sitting

NUMBERS = {(p.table, p.row, p.column): p for p in PUBLISHED}
B = "ViT-B/16"
FIELDS = {
    "run": "r", "task": "classify", "protocol": "finetune", "dataset": "imagenet", "split": "val", "metric": "top1",
    "value": 83.5, "unit": "%",
    "higher_is_better": True, "seed": 0, "backbone": "vit_base/16", "pretrain": "MAE norm_pixel, random 75%, 1600 ep",
    "params": 1,
    "epochs": 100.0, "steps": 1, "images_seen": 128_116_700, "tokens_per_image": 197, "global_batch": 1024,
    "world_size": 1,
    "precision": "float32", "wall_s": 1.0, "images_per_s": 1.0, "device": "cpu", "engine": "e", "scale": "paper",
    "config_digest": "0",
}  # fmt: skip
DETECT = {"task": "detect", "protocol": "mask_rcnn-li2021", "metric": "bbox/AP", "dataset": "coco"}
SEGMENT = {"task": "segment", "protocol": "upernet", "metric": "mIoU", "dataset": "ade20k", "epochs": 126.7}
LARGE = {"backbone": "vit_large/16", "epochs": 50.0}
PIXEL = LARGE | {"pretrain": "MAE pixel, random 75%, 800 ep"}


def result(made: Record | None = None, row: str | None = None, **changes: Any) -> Measurement:
    """A result with the record of a run that did what was published, or with the given one."""
    fields = FIELDS | changes
    found = Result.model_validate(fields | {"record": made or as_published.transfer(fields)})
    note = Note(suite="s", name="n", role="transfer", row=row, identity="", command=[]) if row else None
    return Measurement(found, Path("results.jsonl"), note)


def place(table: str, record: Measurement) -> Spot:
    (found,) = LAYOUTS[table].places([record])
    return found


def finetuned(start: Weights | Record | None = None, recipe: dict[str, Any] | None = None, **changes: Any) -> Record:
    """The record of MAE's fine-tuning of ViT-B with some fields changed."""
    start = start or pretraining()
    weights = run(start) if isinstance(start, Record) else start
    cfg = as_published.config("classify/finetune_vit_base", as_published.ClassifyConfig)
    given = {"data": sets("imagenet"), "inputs": {"backbone": weights}}
    return as_published.record(cfg, "classify", "finetune", recipe=recipe or {}, **given | changes)


@pytest.mark.parametrize(("table", "column", "value", "changes"), [
    ("3", B, 83.6, {}),
    ("3", "ViT-L/16", 85.9, LARGE),
    ("3", "ViT-H/14", 86.9, {"backbone": "vit_huge/14", "epochs": 50.0}),
    ("3", "ViT-H/14 at 448", 87.8, {"backbone": "vit_huge/14", "epochs": 50.0, "tokens_per_image": 1025}),
    ("3", B, 82.3, {"pretrain": "none", "epochs": 300.0}),
    ("3", B, 83.6, {"pretrain": "mae_vit_base"}),
    ("3", B, 83.6, {"pretrain": "timm:vit_base_patch16_224.mae"}),
    ("3", B, 83.664, {"pretrain": "mae_vit_base_finetuned", "epochs": 0.0}),
    ("12", B, 68.0, {"protocol": "linear", "epochs": 90.0}),
    ("12", "ViT-L/16", 75.8, LARGE | {"protocol": "linear"}),
    ("13", f"imagenet-a, {B}", 35.9, {"task": "robustness", "dataset": "imagenet-a", "epochs": 0.0}),
    ("13", f"imagenet-c, {B}", 51.7, {
        "task": "robustness", "dataset": "imagenet-c", "metric": "mCE", "epochs": 0.0,
        "pretrain": "mae_vit_base_finetuned",
    }),
    ("4", f"box AP, {B}", 50.3, DETECT),
    ("4", f"box AP, {B}", 47.9, DETECT | {"pretrain": "moco_v3_vit_base"}),
    ("4", f"mask AP, {B}", 42.9, DETECT | {"pretrain": "deit_base", "metric": "segm/AP"}),
    ("4", f"box AP, {B}", 48.9, DETECT | {"pretrain": "none", "epochs": 200.0}),
    ("coco", f"box AP, {B}", 48.1, DETECT | {"epochs": 25.0}),
    ("coco", "box AP, ViT-L/16", 53.1,
        DETECT | {"pretrain": "MAE norm_pixel, random 75%, 800 ep", "backbone": "vit_large/16"}),
    ("vitdet", f"box AP, {B}", 51.6, DETECT | {"protocol": "mask_rcnn-vitdet"}),
    ("vitdet", "box AP, ViT-H/14", 56.7,
     DETECT | {"protocol": "mask_rcnn-vitdet", "backbone": "vit_huge/16", "epochs": 75.5}),
    ("5", B, 48.1, SEGMENT),
    ("5", B, 48.1, SEGMENT | {"epochs": 100.0}),
    ("ade", f"mIoU, {B}", 48.15, SEGMENT),
    ("6", f"iNat 2018, {B}", 75.4, {"dataset": "inat2018"}),
    ("7", f"ImageNet, {B}", 83.6, {"pretrain": "MAE token, random 75%, 1600 ep"}),
    ("7", f"COCO box AP, {B}", 49.5, DETECT | {"pretrain": "MAE pixel, random 75%, 1600 ep"}),
    ("7", f"ADE20K mIoU, {B}", 48.1, SEGMENT),
    ("figure 9", "4", 84.2, PIXEL | {"protocol": "partial-4"}),
    ("figure 9", "24", 84.9, PIXEL | {"protocol": "partial-all"}),
    ("survey", "linear", 68.0, {"protocol": "linear", "epochs": 90.0}),
])  # fmt: skip
def test_a_run_of_the_shipped_config_stands_beside_its_number(
    table: str, column: str, value: float, changes: dict[str, Any]
) -> None:
    found = place(table, result(**changes))
    assert found.published is not None
    assert (found.column, found.published.value, found.why_not) == (column, value, None)


@pytest.mark.parametrize(("table", "row", "recipe"), [
    ("1a", "4 blocks", {"model.decoder.depth": 4}),
    ("1b", "256-d", {"model.decoder.dim": 256}),
    ("1c", "encoder w/ [M]", {"model.corrupt": "mask_token"}),
    ("1e", "none", {"data.augmentation": {"name": "none"}}),
    ("1e", "crop, fixed size", {"data.augmentation": {"name": "fixed_crop"}}),
    ("1e", "crop + color jit", {"data.augmentation.jitter": 0.4}),
    ("1f", "grid 75%", {"mask": {"name": "grid"}}),
    ("1f", "block 50%", {"mask": {"name": "block", "ratio": 0.5}}),
    ("1d", "PCA", {"target": {"name": "pca", "basis": "x"}}),
    ("figure 5", "90%", {"mask.ratio": 0.9}),
])  # fmt: skip
def test_an_ablation_is_known_by_its_record_whatever_its_row_is_called(
    table: str, row: str, recipe: dict[str, Any]
) -> None:
    def ablated(recipe: dict[str, Any], name: str) -> Measurement:
        own = pretraining("large", 800, recipe={"target": {"name": "pixel"}} | recipe)
        made = as_published.transfer(FIELDS | LARGE).model_copy(update={"inputs": {"backbone": run(own)}})
        return result(made, row=name, **LARGE)

    found = {one.record.label: one for one in LAYOUTS[table].places([ablated({}, "mine"), ablated(recipe, "another")])}
    assert found["mine"].why_not is None
    assert found["another"].why_not is None
    number = found["another"].published
    assert number is not None
    assert row in (number.row, number.column)


OWN = pretraining()
PHOTOS = {"train": data_set("photos", 50_000)}
RANDOM_START = Weights(kind="random", name="none")


@pytest.mark.parametrize(("made", "reason"), [
    # what the pretraining learned from
    (finetuned(pretraining(data=PHOTOS)), "pretrained on 'photos', 50,000 images"),
    (finetuned(pretraining(data={"train": data_set("imagenet", 126_689, 100)})),
        "pretrained on 'imagenet', 126,689 images of 100 classes"),
    (finetuned(pretraining(data={"train": data_set("imagenet", 1_281_167, 21_841)})),
        "pretrained on 'imagenet', 1,281,167 images of 21,841 classes"),
    (finetuned(pretraining(data={"train": data_set("imagenet", 128_116, whole=1_281_167)})),
        "pretrained on 128,116 of 1,281,167 images of 'imagenet'"),
    (finetuned(pretraining(data={})), "pretrained on unknown images"),
    # how it was pretrained
    (finetuned(pretraining(epochs=800)), "pretrained for 800 epochs, not 1600"),
    (finetuned(pretraining(reached=1200.0)), "pretrained up to a training state after 1200 of 1600 epochs"),
    (finetuned(pretraining(epochs=3200, reached=1600.0)),
        "pretrained up to a training state after 1600 of 3200 epochs"),
    (finetuned(inputs={"checkpoint": run(finetuned(epochs=200.0, reached=100.0))}, epochs=0.0),
        "evaluates a training state after 100 of 200 epochs"),
    (finetuned(pretraining(batch=1024)), "pretrained with batch 1024, not 4096"),
    (finetuned(pretraining(labels=True)), "pretrained with labels"),
    (finetuned(pretraining(scale="small")), "pretrained at scale small"),
    (finetuned(pretraining(inputs={"start": Weights(kind="file", name="x.pth")})),
        "pretrained from x.pth, not from random weights"),
    (finetuned(pretraining(recipe={"target": {"name": "pixel"}})),
        "pretrained with target.name = pixel, not norm_pixel"),
    (finetuned(pretraining(recipe={"mask.name": "block"})), "pretrained with mask.name = block, not random"),
    (finetuned(pretraining(recipe={"mask.ratio": 0.5})), "pretrained with mask.ratio = 0.5, not 0.75"),
    (finetuned(pretraining(recipe={"model.decoder.depth": 1})), "pretrained with model.decoder.depth = 1, not 8"),
    (finetuned(pretraining(recipe={"model.decoder.dim": 256})), "pretrained with model.decoder.dim = 256, not 512"),
    (finetuned(pretraining(recipe={"model.decoder.kind": "cross"})),
        "pretrained with model.decoder.kind = cross, not self"),
    (finetuned(pretraining(recipe={"model.decoder.share": 1 / 3})),
        "pretrained with model.decoder.share = 0.3333333333333333, not 1.0"),
    (finetuned(pretraining(recipe={"model.corrupt": "mask_token"})),
        "pretrained with model.corrupt = mask_token, not None"),
    (finetuned(pretraining(recipe={"model.encoder.positions": "learned"})),
        "pretrained with model.encoder.positions = learned, not fixed"),
    (finetuned(pretraining(recipe={"data.size": 192})), "pretrained with data.size = 192, not 224"),
    (finetuned(pretraining(recipe={"data.augmentation.scale": [0.08, 1.0]})),
        "pretrained with data.augmentation.scale = (0.08, 1.0), not (0.2, 1.0)"),
    (finetuned(pretraining(recipe={"data.augmentation.jitter": 0.4})),
        "pretrained with data.augmentation.jitter = 0.4, not 0.0"),
    # what it starts from
    (finetuned(RANDOM), "starts from random weights"),
    (finetuned(Weights(kind="file", name="mae_pretrain_vit_base.pth", layout="mae")),
        "starts from mae_pretrain_vit_base.pth of unknown origin"),
    (finetuned(Weights(kind="run", name="MAE")), "starts from MAE, whose record is missing"),
    (finetuned(Weights(kind="released", name="mae_vit_large_visualize")), "starts from mae_vit_large_visualize"),
    (finetuned(finetuned()), "starts from the weights of a run of classify"),
    (finetuned(inputs={}), "its starting weights are not recorded"),
    # what it was trained and evaluated on
    (finetuned(data=sets("imagenet") | {"train": data_set("imagenet", 126_689, 100)}),
        "trained on 'imagenet', 126,689 images of 100 classes, not on ImageNet-1K"),
    (finetuned(data=sets("imagenet") | {"train": data_set("imagenet", 12_811, 1000, 1_281_167)}),
        "trained on 12,811 of 1,281,167 images of 'imagenet', not on ImageNet-1K"),
    (finetuned(data=sets("imagenet") | {"val": data_set("imagenet", 10_000, 1000)}),
        "evaluated on 'imagenet', 10,000 images of 1,000 classes, not on ImageNet-1K"),
    # the transfer's recipe
    (finetuned(epochs=12.0), "fine-tuned for 12 epochs, not 100"),
    (finetuned(batch=256), "trained with batch 256, not 1024"),
    (finetuned(recipe={"data.size": 384}), "data.size = 384, not 224"),
    (finetuned(recipe={"data.label_fraction": 0.1}), "data.label_fraction = 0.1, not 1.0"),
    (finetuned(scale="mini"), "scale mini"),
    (finetuned(earlier_configs=("0",)), "its config was changed during the run"),
    (finetuned(pretraining(earlier_configs=("0",))), "its config was changed during the run"),
    (finetuned(sittings=(sitting().model_copy(update={"devices": ("unknown",)}), sitting())),
        "begun by an earlier version"),
])  # fmt: skip
def test_each_field_that_differs_is_the_reason(made: Record, reason: str) -> None:
    assert why_not(NUMBERS["3", "MAE", B], result(made)) == reason
    assert place("3", result(made)).why_not is not None


def test_crossmae_has_no_row_of_mae_in_tables_of_facts() -> None:
    cross = finetuned(pretraining(epochs=800, recipe={"model.decoder": {"kind": "cross", "share": 1 / 3, "depth": 8}}))
    facts = match.pretraining(result(cross).result)
    assert facts == (
        "norm_pixel, cross, 33% of hidden predicted",
        "random",
        "75%, cross, 33% of hidden predicted",
        "800",
    )
    assert match.pretraining(result(finetuned()).result) == ("norm_pixel", "random", "75%", "1600")
    assert [*LAYOUTS["1d"].places([result(cross)])] == []
    found = LAYOUTS["figure 5"].places([result(cross), result(finetuned(pretraining(epochs=800)))])
    assert [(spot.column, spot.why_not is None) for spot in found] == [(facts.hidden, False), ("75%", False)]


def test_options_that_a_recipe_leaves_out_have_the_schemas_defaults() -> None:
    schemas = {"model.decoder.": DecoderConfig, "data.views.": MultiCrop, "": ImageConfig}
    later = [(before, schema, name) for before, schema in schemas.items() for name in schema.later]
    assert {before + name: schema.model_fields[name].default for before, schema, name in later} == match.LATER
    old = as_published.joint("moco_v3_vit_base", recipe={"decay": "matrices"})
    assert list(_pretrained(JOINT["MoCo v3"], old)) == ["pretrained with decay = matrices, not all"]


@pytest.mark.parametrize("made", [
    finetuned(seed=7),
    finetuned(pretraining(seed=7)),
    finetuned(run="x", config_digest="x", recipe_digest="x", sittings=(sitting(8),),
        depends_on_device_batch=("mixup",)),
    finetuned(pretraining(sittings=(sitting(64), sitting(32)))),
    finetuned(pretraining(data={"train": data_set("ILSVRC/Data/CLS-LOC", 1_281_167, 1000)})),
    finetuned(pretraining(inputs={"start": RANDOM_START})),
    finetuned(recipe={"optim.blr": 5e-4, "optim.layer_decay": 0.65, "seed": 3}),
    finetuned(recipe={"data.size": [224, 224]}),
    finetuned(Weights(kind="released", name="mae_vit_base", layout="mae")),
    finetuned(epochs=100.4),
])  # fmt: skip
def test_what_the_papers_do_not_fix_is_no_reason(made: Record) -> None:
    assert why_not(NUMBERS["3", "MAE", B], result(made)) is None


def evaluated_by_knn(start: Weights | Record, **changes: Any) -> Measurement:
    """The result of DINO's k-NN with k = 20."""
    weights = run(start) if isinstance(start, Record) else start
    cfg = as_published.config("classify/knn", KnnConfig)
    given = {"data": sets("imagenet"), "inputs": {"backbone": weights}, "epochs": 0.0, "batch": 64}
    made = as_published.record(cfg, "knn", "knn", **given | changes)
    return result(made, task="classify", protocol="knn-20", backbone="vit_small/16", epochs=0.0)


SYSTEMS = {
    "dino_vit_small": "DINO, ViT-S/16", "dino_vit_base": "DINO, ViT-B/16", "ibot_vit_small": "iBOT, ViT-S/16",
    "ibot_vit_base": "iBOT, ViT-B/16", "moco_v3_vit_small": "MoCo v3, ViT-S/16", "moco_v3_vit_base": "MoCo v3",
    "moby_swin_tiny": "MoBY, Swin-T", "esvit_swin_tiny": "EsViT, Swin-T/W7",
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_packaged_pretraining_is_the_published_one_and_no_other_system(name: str) -> None:
    """The reason names the system if it is another one, and the setting if only that differs."""
    for system, own in JOINT.items():
        reasons = list(_pretrained(own, as_published.joint(name)))
        assert (not reasons) is (SYSTEMS[name] == system), (name, system, reasons)
    own, mae = JOINT[SYSTEMS[name]], Weights(kind="released", name="mae_vit_base")
    out = match.setting(match.packaged_recipe(f"pretrain/{name}"), "objective.out")
    for changes, reason in (
        ({"data": PHOTOS}, "pretrained on 'photos', 50,000 images"),
        ({"epochs": 100.0}, f"pretrained for 100 epochs, not {own.epochs}"),
        ({"batch": 256}, f"pretrained with batch 256, not {own.batch}"),
        ({"recipe": {"data.views.wide_scale": [0.1, 1.0]}}, "pretrained with data.views.wide_scale = (0.1, 1.0), not "),
        ({"recipe": {"objective.out": 32}}, f"pretrained with objective.out = 32, not {out}"),
        ({"recipe": {"ema_decay.start": 0.9}}, "pretrained with ema_decay.start = 0.9, not "),
        ({"inputs": {"start": mae}}, "pretrained from mae_vit_base, not from random weights"),
    ):
        assert next(_pretrained(own, as_published.joint(name, **changes))).startswith(reason)


@pytest.mark.parametrize("name", ["dino_vit_small", "ibot_vit_base", "moco_v3_vit_base", "esvit_swin_tiny"])
def test_every_value_of_a_published_joint_embedding_counts(name: str) -> None:
    own, recipe = JOINT[SYSTEMS[name]], as_published.joint(name).recipe
    defaults = {
        "dino_vit_small": ("student_temperature", "hidden", "bottleneck", "freeze_epochs", "centre_momentum"),
        "moco_v3_vit_base": ("hidden", "out", "projector_layers"),
    }.get(name, ())
    keys = [*match._keys(recipe), *(f"objective.{option}" for option in defaults)]
    assert {"ema_decay.end", "optim.blr", "data.views.jitter", "model.encoder.layer_scale"} <= {*keys}
    assert not {"seed", "precision", "evaluate_epochs", "data.root"} & {*keys}
    for key in keys:
        other = as_published.joint(name, recipe={key: "x"})
        wrong = "pretrained as" if key == "task" else f"pretrained with {key} = x, not "
        assert any(reason.startswith(wrong) for reason in _pretrained(own, other)), key
    free = {"seed": 3, "precision": "float32", "evaluate_epochs": 5.0, "data.root": "/images", "pictures": 0}
    assert [*_pretrained(own, as_published.joint(name, recipe=free))] == []


def test_an_own_dino_stands_beside_dinos_k_nn() -> None:
    dino = as_published.joint("dino_vit_small")

    def frozen(record: Measurement) -> Spot:
        """Its place in the table, which needs a second column."""
        return next(iter(LAYOUTS["frozen"].places([record, result(protocol="linear", epochs=90.0)])))

    found = frozen(evaluated_by_knn(dino))
    assert found.published is not None
    assert (found.column, found.published.row, found.published.value, found.why_not) == (
        "k-NN, ImageNet", "DINO, ViT-S/16 (its authors)", 74.5, None,
    )  # fmt: skip
    for record, reason in (
        (evaluated_by_knn(dino, recipe={"temperature": 0.1}), "temperature = 0.1, not 0.07"),
        (evaluated_by_knn(dino, recipe={"data.shorter_side": 224}), "data.shorter_side = 224, not 1.14"),
        (evaluated_by_knn(dino, recipe={"data.label_fraction": 0.1}), "data.label_fraction = 0.1, not 1.0"),
        (evaluated_by_knn(as_published.joint("dino_vit_small", epochs=100.0)), "pretrained for 100 epochs, not 800"),
        (evaluated_by_knn(as_published.joint("ibot_vit_small")), "measured with iBOT's own protocol"),
        (evaluated_by_knn(pretraining()), "pretrained as MAE norm_pixel, random 75%, 1600 ep"),
    ):
        assert str(frozen(record).why_not).startswith(reason)


@pytest.mark.parametrize(("table", "changes", "value"), [
    ("4", DETECT, 47.9), ("4", LARGE | DETECT | {"epochs": 100.0}, 49.3), ("5", SEGMENT, 47.3),
])  # fmt: skip
def test_an_own_moco_v3_stands_beside_maes_transfers_of_it(table: str, changes: dict[str, Any], value: float) -> None:
    moco = as_published.joint("moco_v3_vit_base")
    made = as_published.transfer(FIELDS | changes).model_copy(update={"inputs": {"backbone": run(moco)}})
    found = place(table, result(made, **changes))
    assert found.published is not None
    assert (found.published.row, found.published.value, found.why_not) == ("MoCo v3", value, None)
    mae = place(table, result(**changes)).published
    assert mae is not None
    assert why_not(mae, result(made, **changes)) == "pretrained as MoCo v3, 2 views, 300 ep"


def test_data_are_known_by_their_counts_and_never_by_their_folder() -> None:
    other = {part: data.model_copy(update={"name": "ILSVRC/Data/CLS-LOC"}) for part, data in sets("imagenet").items()}
    assert place("3", result(finetuned(data=other), dataset="ILSVRC/Data/CLS-LOC")).why_not is None
    column = place("7", result(finetuned(data=other), dataset="ILSVRC/Data/CLS-LOC")).column
    assert column == "ImageNet, ViT-B/16"
    small = {"train": data_set("imagenet", 126_689, 100), "val": data_set("imagenet", 5_000, 100)}
    found = place("3", result(finetuned(data=small)))
    assert found.why_not == "evaluated on 'imagenet', 5,000 images of 100 classes, not on ImageNet-1K"


def test_every_row_that_qualifies_has_the_number_under_its_own_name() -> None:
    found = list(LAYOUTS["3"].places([result(row="mine"), result(finetuned(seed=1), row="yours"), result()]))
    assert [one.row for one in found] == ["mine", "yours", FIELDS["pretrain"]]
    assert [(one.published and one.published.value, one.why_not) for one in found] == [(83.6, None)] * 3


def test_a_row_that_is_called_as_the_papers_stands_beside_nothing_by_its_name() -> None:
    found = place("3", result(finetuned(pretraining(data=PHOTOS)), row="MAE"))
    assert (found.row, found.why_not) == ("MAE", "pretrained on 'photos', 50,000 images")


def test_results_of_an_earlier_version_are_in_the_tables_and_beside_no_number() -> None:
    old = Measurement(Result.model_validate(FIELDS), Path("results.jsonl"))
    assert (place("3", old).why_not, place("3", old).published) == (EARLIER, None)
    assert [name for name, layout in LAYOUTS.items() if list(layout.places([old]))] == ["summary", "3", "survey"]


def test_unreadable_images_are_a_reason() -> None:
    assert why_not(NUMBERS["3", "MAE", B], result(unreadable=3)) == "3 images could not be read"


def test_a_part_of_a_set_is_another_set_even_if_the_counts_agree() -> None:
    part = sets("imagenet") | {"val": data_set("imagenet", 50_000, 1000).model_copy(update={"whole": 1_281_167})}
    reason = "evaluated on 50,000 of 1,281,167 images of 'imagenet'"
    assert why_not(NUMBERS["3", "MAE", B], result(finetuned(data=part))) == reason


def test_an_evaluation_with_other_options_than_the_training_is_another_number() -> None:
    trained = finetuned()
    state = Weights(kind="run", name="finetune", sha256="s", record=trained)
    inputs = {"backbone": trained.inputs["backbone"], "checkpoint": state}
    for recipe, reason in (({}, None), ({"data.shorter_side": 1.0}, "evaluated with data.shorter_side = 1.0")):
        evaluated = finetuned(recipe=recipe, epochs=0.0, inputs=inputs, data={"val": sets("imagenet")["val"]})
        found = why_not(NUMBERS["3", "MAE", B], result(evaluated))
        assert found is None if reason is None else str(found).startswith(reason)


@pytest.mark.parametrize(("share", "reason"), [(1.0, None), (0.5, "evaluates a training state after 50% of its run")])
def test_an_evaluated_state_counts_if_its_run_was_whole(share: float, reason: str | None) -> None:
    seen = int(FIELDS["images_seen"] * share)
    assert place("3", result(epochs=0.0, images_seen=seen)).why_not in (reason, "x")
    unknown = finetuned(epochs=0.0, inputs={"checkpoint": Weights(kind="run", name="step_9.pt")})
    assert place("3", result(unknown)).why_not == "evaluates step_9.pt, whose record is missing"


def test_a_classifier_that_was_trained_here_is_not_the_released_one() -> None:
    number = NUMBERS["3", "MAE, released weights", B]
    assert why_not(number, result()) == "trained here, not mae_vit_base_finetuned"
    released = result(pretrain="mae_vit_base_finetuned", epochs=0.0)
    assert why_not(NUMBERS["3", "MAE", B], released) == "evaluates mae_vit_base_finetuned"


@pytest.mark.parametrize(("pretrain", "row", "reason"), [
    ("moco_v3_vit_base", "MoCo v3", "measured with DeiT's recipe of fine-tuning, 150 epochs"),
    ("timm:vit_base_patch16_224.dino", "DINO", "measured with DeiT's recipe of fine-tuning"),
    ("x.pth", "MAE", "starts from x.pth of unknown origin"),
])  # fmt: skip
def test_the_nearest_number_starts_from_the_same_weights(pretrain: str, row: str, reason: str) -> None:
    found = place("3", result(pretrain=pretrain))
    assert found.published is not None
    assert (found.published.row, found.why_not) == (row, reason)


def test_tokens_of_another_tokenizer_are_another_target() -> None:
    own = pretraining(recipe={"target": {"name": "token"}}, inputs={"tokenizer": run(pretraining(method="dVAE 512/8"))})
    found = place("7", result(finetuned(own)))
    assert found.why_not == "pretrained with the tokenizer dVAE 512/8, not dalle"


@pytest.mark.parametrize("source", ["", " "])
def test_a_published_number_without_a_source_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"table 3, 'MAE', 'ViT-B/16': the published number 83.6 has no source"):
        list(block("3", source, (B,), {"MAE": (83.6,)}, Elsewhere("x")))
    with pytest.raises(ValueError, match="has no source"):
        replace(PUBLISHED[0], source=source)


def test_every_published_number_says_what_it_was_measured_with() -> None:
    assert all(isinstance(number, Published) for number in PUBLISHED)
    for number in PUBLISHED:
        if isinstance(number.measured, Measured):
            assert number.measured.epochs or number.measured.task == "pretrain", number
        else:
            assert number.measured.what, number

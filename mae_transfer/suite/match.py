"""Which published number a result may stand beside, and why not; what the papers call what was run.

A published number says what it was measured with (published/measured.py). The record of a result is compared with it
field by field: data, starting weights and their pretraining, backbone, length, batch, settings. Names of rows and of
folders are never compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from mae_transfer.config import load, members
from mae_transfer.core.masks import AnyMask
from mae_transfer.disk import find_config
from mae_transfer.record import DataSet, Record, Weights
from mae_transfer.results import Result
from mae_transfer.suite.published.entry import Published
from mae_transfer.suite.published.measured import BACKBONES as PAPER_BACKBONES
from mae_transfer.suite.published.measured import DATA_SETS, Elsewhere, Images, Measured, Pretraining, Settings, Start
from mae_transfer.suite.published.measured import FINE_GRAINED as FINE_GRAINED_SETS
from mae_transfer.suite.published.measured import TARGETS as TARGET_ROWS
from mae_transfer.suite.store.records import Measurement

EARLIER = "recorded by an earlier version"
TOLERANCE = 0.01  # of a length: steps are counted in whole epochs
EVALUATION = ("data.size", "data.shorter_side", "data.view", "data.scale", "data.square", "inference")
"""Keys of a recipe that an evaluation depends on."""
FREE = (
    "scale", "precision", "matmul", "seed", "epochs", "batch", "start", "evaluate_epochs", "evaluate_images",
    "pictures", "monitor", "alarm_spread", "alarm_steps", "data.root", "data.on_error", "data.max_unreadable",
    "data.train", "data.val", "model.encoder.size",
)  # fmt: skip
"""Keys of a pretraining's recipe, with all below them, that are free or that the rest of the record tells."""
NOT_TRAINED_ON = ("train", "holdout")  # parts of the data that a number is not evaluated on

TARGETS = {target.settings["target.name"][0]: row for row, target in TARGET_ROWS.items()}
"""Target of our own pretraining -> its row in tables 1d and 7."""
BACKBONES = {ours: papers for papers, ours in PAPER_BACKBONES.items()}
BACKBONES["vit_huge/16"] = "ViT-H/14"  # ViTDet resamples its patches of 14 pixels to 16
LATER = {
    "decay": "matrices", "data.views.interpolation": "bicubic",
    "model.decoder.kind": "self", "model.decoder.share": 1.0,
}  # fmt: skip
"""Defaults of the options that a pretraining's recipe leaves out (Schema.later; the schemas import torch)."""
TOKENS_AT_448 = 32 * 32 + 1  # of a ViT-H/14 with its class token
FINE_GRAINED = {title.replace(" ", "").lower(): title for title in FINE_GRAINED_SETS}
FOLDERS = {
    "imagenet": "ImageNet", "imagenet1k": "ImageNet", "ilsvrc": "ImageNet", "ilsvrc2012": "ImageNet",
    "coco": "COCO", "coco2017": "COCO", "ade": "ADE20K", "ade20k": "ADE20K", "adechallengedata2016": "ADE20K",
    **FINE_GRAINED,
}  # fmt: skip
"""Usual folder names, for the titles of results that have no record. Nothing is compared by them."""
SCRATCH = "none (scratch)"


def why_not(number: Published, record: Measurement) -> str | None:
    """Return why a result does not stand beside a published number, the most important reason; None: it does."""
    return next(misses(number, record), None)


def nearest(numbers: Sequence[Published], record: Measurement) -> tuple[Published, str | None] | None:
    """Return the number that a result stands beside, or comes nearest to, with the reason.

    It is None if there are no numbers or the result has no record. The nearest number starts from the same weights, if
    there is one, and has the fewest differences.
    """
    if record.result.record is None or not numbers:
        return None
    for number in numbers:
        if why_not(number, record) is None:
            return number, None
    number = min(numbers, key=lambda number: _rank(number, record))
    return number, why_not(number, record)


def misses(number: Published, record: Measurement) -> Iterator[str]:
    """Yield every reason why a result does not stand beside a published number, the most important first."""
    measured, made = number.measured, record.result.record
    if made is None:
        yield EARLIER
        return
    if isinstance(measured, Elsewhere):
        yield f"measured with {measured.what}"
        return
    if made.scale != "paper":
        yield f"scale {made.scale}"
    if record.result.unreadable:
        yield f"{record.result.unreadable:,} images could not be read"
    if not all(one.complete for one in made.lineage()):
        yield "begun by an earlier version"
    if any(one.earlier_configs for one in made.lineage()):
        yield "its config was changed during the run"
    if measured.task == "pretrain":
        if measured.start.own:
            yield from _pretrained(measured.start.own, made)
    else:
        yield from _evaluated(measured, made)
        yield from _trained(measured, record, made)
    if record.result.backbone != measured.backbone:
        yield f"backbone {record.result.backbone}, not {measured.backbone}"


def data_title(made: Record) -> str | None:
    """Return what the papers call the data set that a run was evaluated on, by its counts; None: it is none of them."""
    sets = _evaluation_sets(made)
    whole = all(data.images == data.whole for data in sets)
    return next((one.title for one in DATA_SETS if whole and (one.val, one.classes) == _counts(sets)), None)


def _rank(number: Published, record: Measurement) -> tuple[int, int]:
    """Return how far a number is from what a result did: by starting weights, then by the number of differences."""
    measured, made = number.measured, record.result.record
    assert made is not None
    checkpoint = made.inputs.get("checkpoint")
    if checkpoint is not None and checkpoint.kind == "released":
        other_weights = other_kind = isinstance(measured, Elsewhere) or checkpoint.name not in measured.classifiers
    else:
        training = _training(made) or made
        other_weights = any(True for _ in _started(measured.start, training))
        other_kind = _another_kind(measured.start, training.inputs.get("backbone"))
    last = isinstance(measured, Elsewhere) and other_weights
    return 4 * last + 2 * other_kind + other_weights, sum(1 for _ in misses(number, record))


def _another_kind(start: Start, weights: Weights | None) -> bool:
    if weights is not None and weights.kind == "run":
        return start.own is None
    if weights is not None and weights.kind == "random":
        return not start.random
    return not start.released


def _training(made: Record) -> Record | None:
    """Return the record of the training that a number is of, None if it is unknown."""
    checkpoint = made.inputs.get("checkpoint")
    return made if checkpoint is None else checkpoint.record


def _evaluated(measured: Measured, made: Record) -> Iterator[str]:
    yield from _evaluated_on(measured.evaluated or measured.data, made)


def _evaluated_on(images: Images, made: Record) -> Iterator[str]:
    sets = _evaluation_sets(made)
    count, classes = _counts(sets)
    if part := next((data for data in sets if data.images != data.whole), None):
        yield f"evaluated on {_said(part)}"
    elif (count, classes) != (images.val, images.classes):
        said = f"{_counted(sets[0].name, count, classes)}" if sets else "unknown images"
        yield f"evaluated on {said}, not on {images.text}"


def _evaluation_sets(made: Record) -> list[DataSet]:
    return [data for part, data in made.data.items() if part not in NOT_TRAINED_ON]


def _counts(sets: Sequence[DataSet]) -> tuple[int, int]:
    """Return the number of images and of classes."""
    return sum(data.images for data in sets), max((data.classes for data in sets), default=0)


def _trained(measured: Measured, record: Measurement, made: Record) -> Iterator[str]:
    checkpoint = made.inputs.get("checkpoint")
    if checkpoint is not None and checkpoint.kind == "released":
        if checkpoint.name not in measured.classifiers:
            yield f"evaluates {checkpoint.name}"
        return
    training = _training(made)
    if training is None:
        yield f"evaluates {_unknown(checkpoint)}" if checkpoint else EARLIER
        return
    if measured.classifiers and measured.start == Start():
        yield f"trained here, not {', '.join(measured.classifiers)}"
        return
    if training is not made and training.scale != "paper":
        yield f"trained at scale {training.scale}"
    yield from _data("trained on", measured.data, training, labelled=True)
    yield from _started(measured.start, training)
    if training.reached is not None:
        yield f"evaluates a training state after {training.length} epochs"
    yield from _length(training, measured.epochs, "fine-tuned" if training.method == "finetune" else "trained")
    crops = setting(training.recipe, "data.crops_per_image") or 1
    images = training.epochs * training.data["train"].images * crops if "train" in training.data else 0
    seen = record.result.images_seen / images if images else 1
    if checkpoint is not None and seen < 1 - TOLERANCE:
        yield f"evaluates a training state after {seen:.0%} of its run"
    yield from _batch(training, measured.batch, "trained")
    yield from _settings(training, measured.settings, "")
    if training is not made:
        for key in EVALUATION:
            if (found := setting(made.recipe, key)) != (wanted := setting(training.recipe, key)):
                yield f"evaluated with {key} = {found}, trained with {wanted}"


def _started(start: Start, training: Record) -> Iterator[str]:
    """Yield why a transfer starts from other weights."""
    weights = training.inputs.get("backbone")
    if weights is None:
        yield "its starting weights are not recorded"
    elif weights.kind == "random":
        if not start.random:
            yield "starts from random weights"
    elif weights.kind == "released":
        if weights.name not in start.released:
            yield f"starts from {weights.name}"
    elif weights.kind == "file" or weights.record is None:
        yield f"starts from {_unknown(weights)}"
    elif weights.record.task != "pretrain":
        yield f"starts from the weights of a run of {weights.record.task}"
    elif start.own is None:
        yield f"starts from {weights.record.method}"
    else:
        yield from _pretrained(start.own, weights.record)


def _unknown(weights: Weights) -> str:
    return f"{weights.name}, whose record is missing" if weights.kind == "run" else f"{weights.name} of unknown origin"


def _pretrained(own: Pretraining, made: Record) -> Iterator[str]:
    """Yield why a pretraining is another one."""
    if setting(made.recipe, "task") not in own.settings.get("task", (None,)):
        yield f"pretrained as {made.method}"
        return
    yield from _data("pretrained on", own.data, made, labelled=False)
    if made.scale != "paper":
        yield f"pretrained at scale {made.scale}"
    begin = made.inputs.get("start")
    if begin is not None and begin.kind != "random":
        yield f"pretrained from {begin.name}, not from random weights"
    if made.labels:
        yield "pretrained with labels"
    if made.reached is not None:
        yield f"pretrained up to a training state after {made.length} epochs"
    yield from _length(made, (own.epochs,), "pretrained")
    yield from _settings(made, own.settings, "pretrained with ")
    if own.config is not None:
        published = packaged_recipe(own.config)
        keys = dict.fromkeys(key for recipe in (published, made.recipe) for key in _keys(recipe))
        yield from _settings(made, {key: (setting(published, key),) for key in keys}, "pretrained with ")
    yield from _batch(made, own.batch, "pretrained")
    tokenizer = made.inputs.get("tokenizer")
    if (tokenizer and (tokenizer.layout or tokenizer.kind)) != own.tokenizer:
        yield f"pretrained with the tokenizer {tokenizer.name if tokenizer else None}, not {own.tokenizer}"


def _data(doing: str, images: Images, made: Record, *, labelled: bool) -> Iterator[str]:
    """Yield why the training images are others. Pretraining may read labelled images as images alone."""
    data = made.data.get("train")
    if data is None:
        yield f"{doing} unknown images"
    elif data.images not in images.train or data.classes not in (
        (images.classes,) if labelled else (0, images.classes)
    ):
        yield f"{doing} {_said(data)}" + (f", not on {images.text}" if labelled else "")


def _said(data: DataSet) -> str:
    if data.images != data.whole:
        return f"{data.images:,} of {data.whole:,} images of '{data.name}'"
    return _counted(data.name, data.images, data.classes)


def _counted(name: str, images: int, classes: int) -> str:
    return f"'{name}', {images:,} images" + (f" of {classes:,} classes" if classes else "")


def _length(made: Record, wanted: Sequence[float], doing: str) -> Iterator[str]:
    if not any(abs(made.epochs - epochs) <= TOLERANCE * epochs for epochs in wanted):
        length = f"{made.epochs:g} epoch{'' if made.epochs == 1 else 's'}"
        yield f"{doing} for {length}, not {' or '.join(f'{epochs:g}' for epochs in wanted)}"


def _batch(made: Record, wanted: int | None, doing: str) -> Iterator[str]:
    if wanted is not None and made.batch != wanted:
        yield f"{doing} with batch {made.batch}, not {wanted}"


def _settings(made: Record, settings: Settings, before: str) -> Iterator[str]:
    for key, wanted in settings.items():
        found = setting(made.recipe, key)
        if found not in wanted:
            yield f"{before}{key} = {found}, not {' or '.join(map(str, wanted))}"


@cache
def packaged_recipe(name: str) -> dict[str, Any]:
    """Return the recipe of a packaged config of joint embedding."""
    from mae_transfer.tasks.joint import JointConfig  # imports torch, which a table rarely needs

    return load(find_config(name), JointConfig).recipe()


def _keys(recipe: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the dotted keys of a recipe that count."""
    for name, value in recipe.items():
        key = before + name
        if isinstance(value, Mapping) and key not in FREE:
            yield from _keys(value, f"{key}.")
        elif key not in FREE:
            yield key


def setting(recipe: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of a recipe.

    An option of a mask, an augmentation or an objective, or one of LATER, that the recipe leaves out has its default.
    """
    *folders, last = key.split(".")
    at: Any = recipe
    for folder in folders:
        at = at.get(folder) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        return None
    value = at[last] if last in at else LATER.get(key) or _default(".".join(folders), str(at.get("name")), last)
    if isinstance(value, list | tuple):
        sides = tuple(value)
        return sides[0] if last == "size" and len(set(sides)) == 1 else sides
    return value


@cache
def _default(part: str, name: str, option: str) -> Any:
    if part == "mask":
        union: Any = AnyMask
    elif part == "data.augmentation":
        from mae_transfer.data import AnyAugmentation  # imports torch, which a table rarely needs

        union = AnyAugmentation
    elif part == "objective":
        from mae_transfer.objectives import AnyObjective  # imports torch, too

        union = AnyObjective
    else:
        return None
    found = members(union).get(name)
    return found.model_fields[option].default if found and option in found.model_fields else None


class PretrainingFacts(NamedTuple):
    """What the record says of a pretraining by this package."""

    target: str
    """"norm_pixel"; with another decoder than MAE's, "norm_pixel, cross, 33% of hidden predicted"."""
    mask: str
    hidden: str
    """Share of hidden patches, "75%", and the same words on the decoder."""
    epochs: str


def pretraining(result: Result) -> PretrainingFacts | None:
    """Return what a pretraining of this package did, from its own result or a transfer's.

    It is None for other weights and for results without a record.
    """
    made = result.record
    if made is not None and result.task != "pretrain":
        made = made.pretraining()
    target = setting(made.recipe, "target.name") if made else None
    if made is None or target is None:
        return None
    mask, ratio = setting(made.recipe, "mask.name"), setting(made.recipe, "mask.ratio")
    kind, share = setting(made.recipe, "model.decoder.kind"), setting(made.recipe, "model.decoder.share")
    decoder = (", cross" if kind == "cross" else "") + (f", {share:.0%} of hidden predicted" if share != 1 else "")
    hidden = f"{0.75 if ratio is None else ratio:.0%}"
    return PretrainingFacts(f"{target}{decoder}", str(mask), hidden + decoder, made.length)


def backbone(result: Result) -> str:
    """Return the paper's name of the backbone, or its own."""
    name = BACKBONES.get(result.backbone, result.backbone)
    return f"{name} at 448" if result.tokens_per_image == TOKENS_AT_448 and name == "ViT-H/14" else name


def dataset(name: str) -> str:
    """Return the paper's name of a data set by the usual names of its folder, or its own."""
    return FOLDERS.get(re.sub(r"[^a-z0-9]", "", name.lower()), name)


def data_of(result: Result) -> str:
    """Return the paper's name of the data set that a result was evaluated on, by its counts; else its own.

    Without a record the name of the folder counts.
    """
    if result.record is None:
        return dataset(result.dataset)
    return data_title(result.record) or result.dataset

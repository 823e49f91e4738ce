"""An invalid number gives one line that names its key, before anything is written.

Every numeric field of every tool's config is tried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mae_transfer.config import Part, Schema, assign, load, validate
from mae_transfer.tasks import classify, detect, knn, pretrain, segment, task, tokenizer
from mae_transfer.tasks.evaluation import Evaluation

ROOT = Path(__file__).parents[2]
TOOLS: dict[str, tuple[type[Schema], Any]] = {
    "pretrain/mae_vit_base_16_800e": (pretrain.PretrainConfig, pretrain.Pretrain.launch),
    "tokenizer/dalle_8192": (tokenizer.TokenizerConfig, tokenizer.Tokenizer.launch),
    "classify/finetune_vit_base": (classify.ClassifyConfig, classify.Classify.launch),
    "classify/linear_probe": (classify.ClassifyConfig, classify.Classify.launch),
    "classify/knn": (knn.KnnConfig, Evaluation.launch),
    "segment/upernet_vit_base_160k": (segment.SegmentConfig, segment.Segment.launch),
    "detect/mask_rcnn_vitdet_base_100ep": (detect.DetectConfig, detect.Detect.launch),
}
NEVER = (math.nan, math.inf, -math.inf, 1e300, 10**30, "seven", [[]])
SOMETIMES = (0, -1)  # where the field allows it, the run begins


class BegunError(Exception):
    """The first step."""


def numeric(cfg: Schema, prefix: str = "", *, parts: bool = True) -> Iterator[str]:
    """Yield the dotted keys of the fields that hold numbers; parts: also those of parts that are chosen by name."""
    for name, annotation in get_type_hints(type(cfg)).items():
        if name in type(cfg).model_fields:
            value = getattr(cfg, name)
            if isinstance(value, Schema):
                if parts or not isinstance(value, Part):
                    yield from numeric(value, f"{prefix}{name}.", parts=parts)
            elif {int, float} & set(flat(annotation)):
                yield prefix + name


def values_of(cfg: Schema) -> dict[str, Any]:
    """Return the values of a config, with the options that its parts leave out."""
    values = {name: getattr(cfg, name) for name in type(cfg).model_fields}
    return {name: values_of(value) if isinstance(value, Schema) else value for name, value in values.items()}


def flat(annotation: Any) -> list[Any]:
    return [part for below in get_args(annotation) for part in flat(below)] or [annotation]


def changed(base: dict[str, Any], key: str, bad: Any) -> Iterator[dict[str, Any]]:
    """Yield the config with the value, and, where a tuple is expected, with it in the first place."""
    old: Any = base
    for part in key.split("."):
        old = old[part]
    for value in (bad, (bad, *old[1:])) if isinstance(old, tuple) and old else (bad,):
        values = _copy(base)
        assign(values, key, value)
        yield values


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in values.items()}


def base_of(tool: str) -> Schema:
    return load(ROOT / "configs" / f"{tool}.py", TOOLS[tool][0], debug=True)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_no_number_or_beyond_all_sense_is_refused_by_its_key(tool: str) -> None:
    base, schema = base_of(tool), TOOLS[tool][0]
    for key in numeric(base):
        for bad in NEVER:
            for values in changed(values_of(base), key, bad):
                with pytest.raises(ValueError) as error:
                    validate(values, schema, where=tool)
                assert key in str(error.value), f"{key} = {bad!r}: {error.value}"


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_and_less_are_refused_by_their_key_or_begin(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise BegunError

    monkeypatch.setattr(task, "train", train)
    base, (schema, run) = base_of(tool), TOOLS[tool]
    cases = [
        (key, bad, values)
        for key in numeric(base, parts=False)
        for bad in SOMETIMES
        for values in changed(values_of(base), key, bad)
    ]
    for number, (key, bad, values) in enumerate(cases):
        folder = tmp_path / f"{number}"
        with pytest.raises((BegunError, ValueError)) if tool != "classify/knn" else suppress(ValueError) as found:
            run(validate(values, schema, where=tool), folder)
        if found is not None and not isinstance(found.value, BegunError):
            assert key.rpartition(".")[2] in str(found.value), f"{key} = {bad!r}: {found.value}"
            assert not folder.exists(), f"{key} = {bad!r}: {found.value}"


@pytest.mark.parametrize(("tool", "override", "named"), [
    ("pretrain/mae_vit_base_16_800e", "model.decoder.heads=3", "model.decoder: heads = 3 does not divide dim = 16"),
    ("pretrain/mae_vit_base_16_800e", "model.encoder.heads=5", "model.encoder: heads = 5 does not divide dim = 32"),
    ("pretrain/mae_vit_base_16_800e", "model.encoder.patch=10", "data.size, image_size.* multiples of patch = 10"),
    ("pretrain/mae_vit_base_16_800e", "mask.unit=4", "mask.unit = 4"),
    ("pretrain/mae_vit_base_16_800e", "mask.ratio=0.999", "mask.ratio: "),
    ("pretrain/mae_vit_base_16_800e", "schedule.warmup_epochs=3", "warmup_epochs=3 is "),
    ("pretrain/mae_vit_base_16_800e", "batch=1000000000", "< batch = 1000000000; lower batch"),
    ("pretrain/mae_vit_base_16_800e", "run.device_batch=3", "run.device_batch = 3"),
    ("pretrain/mae_vit_base_16_800e", "run.augment_on=device", "only task 'joint'"),
    ("pretrain/mae_vit_base_16_800e", "run.position_bias=flex", "no block has relative positions"),
    ("pretrain/mae_vit_base_16_800e", "run.position_bias=channels", "no block has decomposed relative positions"),
    ("classify/linear_probe", "run.device_batch=1", "raise run.device_batch"),
    ("classify/finetune_vit_base", "run.decode_on=device", "'rand_augment' with run.augment_on = 'device'"),
    ("detect/mask_rcnn_vitdet_base_100ep", "run.decode_on=device", "only pretraining and classification"),
    ("classify/linear_probe", "run.augment_on=device", "data.augmentation 'rand_augment'"),
    ("classify/finetune_vit_base", "data.size=30", "data.size, image_size.* multiples of patch"),
    ("classify/finetune_vit_base", "data.augmentation.policy=rand-x9", "policy"),
    ("classify/partial", "protocol.tune_blocks=99", "tune_blocks = 99"),
    ("segment/upernet_vit_base_160k", "protocol.taps=(3, 5, 7, 99)", "taps .*99"),
    ("detect/mask_rcnn_vitdet_base_100ep", "adapter={'name': 'tap_fpn', 'taps': (0, 9)}", "taps .*9"),
    ("detect/mask_rcnn_vitdet_base_100ep", "adapter.channels=0", "channels = 0"),
    ("detect/mask_rcnn_vitdet_base_100ep", "heads.anchors=(32,)", "anchors"),
])  # fmt: skip
def test_values_that_do_not_fit_together_are_named_and_the_corrected_command_runs(
    tool: str, override: str, named: str, tmp_path: Path
) -> None:
    schema, run = TOOLS.get(tool, (classify.ClassifyConfig, classify.Classify.launch))
    with pytest.raises(ValueError, match=named):
        run(load(ROOT / "configs" / f"{tool}.py", schema, debug=True, overrides=[override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_of_a_run_that_left_nothing_binds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise BegunError

    monkeypatch.setattr(task, "train", train)
    for override in ("seed=0", "seed=1"):
        with pytest.raises(BegunError):
            pretrain.Pretrain.launch(
                load(ROOT / "configs/mini/pretrain.py", pretrain.PretrainConfig, debug=True, overrides=[override]),
                tmp_path,
            )


@pytest.mark.parametrize(
    ("override", "key"),
    [("heads.detections=100000000", "heads.detections"), ("data.augmentation.scale=(1e-9,1e-9)", "scale.0 = 1e-09")],
)
def test_what_would_fail_or_mean_nothing_after_all_training_is_refused(override: str, key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        load(ROOT / "configs/detect/mini.py", detect.DetectConfig, overrides=[override])

"""Image statistics are stored with the weights; a default is reported and can be overridden, recorded ones cannot."""

import argparse
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_transfer import checkpoints, results
from mae_transfer.config import load, validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks import classify
from mae_transfer.tasks.backbones import BackboneConfig, open_backbone
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.evaluation import Evaluation
from mae_transfer.tasks.knn import KnnConfig

HALF = Statistics((0.5,) * 3, (0.5,) * 3)
OWN = Statistics((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
TOOL = Path(__file__).parents[2] / "tools" / "export_checkpoint.py"
CLASSIFY = Path(__file__).parents[2] / "configs" / "classify" / "mini.py"
KNN = Path(__file__).parents[2] / "configs" / "classify" / "mini_knn.py"


def encoder(**options: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig.model_validate({"size": None, "dim": 32, "depth": 2, "heads": 4, "image_size": 32} | options))


def beit(path: Path, **more: Any) -> str:
    vit = encoder(positions="none", relative_positions="shared", qkv_bias="qv", layer_scale=0.1)
    tensors = {
        name.replace("rel_pos_bias.0.table", "rel_pos_bias.relative_position_bias_table"): t
        for name, t in vit.state_dict().items()
    }
    tensors = {
        name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): tensor
        for name, tensor in tensors.items()
    }
    torch.save({"model": tensors} | more, path)
    return f"beit:{path}"


def plain(path: Path) -> str:
    torch.save({"model": encoder().state_dict()}, path)
    return f"mae:{path}"


def opened(reference: str, statistics: Statistics | None = None) -> Any:
    return open_backbone(BackboneConfig(reference=reference, changes={"heads": 4}), {}, statistics=statistics, seed=0)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(end.value.code or 0)

    return run


def test_a_default_is_taken_stated_and_overridden(tmp_path: Path) -> None:
    for reference, own in ((beit(tmp_path / "b.pth"), HALF), (plain(tmp_path / "m.pth"), IMAGENET)):
        default = opened(reference)
        assert default.statistics == own
        assert f"the default of {reference.partition(':')[0]}:; the file does not say" in default.normalization
        other = opened(reference, OWN)
        assert other.statistics == OWN
        assert (
            "mean (0.1, 0.2, 0.3) and std (0.3, 0.2, 0.1) (set by the config instead of the default of"
            in other.normalization
        )


def test_what_is_recorded_is_taken_and_not_contradicted(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    checkpoints.export_backbone(path, encoder(), about={"recipe": {"mean": OWN.mean, "std": OWN.std}})
    assert opened(str(path)).statistics == OWN
    assert opened(str(path), OWN).normalization.endswith("(recorded with the weights)")
    with pytest.raises(
        ValueError,
        match=r"of mean \(0\.1, 0\.2, 0\.3\) .*recorded with its weights, "
        r"and the config sets mean \(0\.5.*--set 'mean=",
    ):
        opened(str(path), HALF)


@pytest.mark.parametrize("flag", [True, False])
def test_beit_s_own_options_tell_what_it_was_trained_with(flag: bool, tmp_path: Path) -> None:
    loaded = checkpoints.load(beit(tmp_path / "b.pth", args=argparse.Namespace(imagenet_default_mean_and_std=flag)))
    assert (loaded.statistics, loaded.recorded) == (IMAGENET if flag else HALF, True)


@pytest.mark.parametrize("name", ["ours", "timm", "hf"])
@pytest.mark.parametrize("given", [True, False])
def test_statistics_travel_through_every_export(
    name: str, given: bool, tool: Callable[..., int], tmp_path: Path
) -> None:
    """A default stays a default that may be overridden; what --mean and --std record is recorded."""
    reference, out = beit(tmp_path / "b.pth"), tmp_path / "out" / "x.safetensors"
    more = ("--mean", 0.1, 0.2, 0.3, "--std", 0.3, 0.2, 0.1) if given else ()
    assert tool(reference, "--format", name, "--out", out, *map(str, more)) == 0
    again = f"{ {'ours': '', 'timm': 'beit:', 'hf': 'hf:'}[name] }{out}"
    loaded = checkpoints.load(again)
    assert (loaded.statistics, loaded.recorded) == (OWN if given else HALF, given)
    if name == "hf":
        assert json.loads((out / "preprocessor_config.json").read_text())["image_mean"] == list(loaded.statistics.mean)
    assert tool(again, "--out", tmp_path / "twice.safetensors") == 0
    twice = checkpoints.load(tmp_path / "twice.safetensors")
    assert (twice.statistics, twice.recorded) == (loaded.statistics, given)
    assert (
        checkpoints.metadata(tmp_path / "twice.safetensors")["pretrain"]
        == {"ours": "beit", "timm": "beit", "hf": "hf"}[name]
    )
    assert tool(
        again, "--out", tmp_path / "other.safetensors", "--mean", "0.4", "0.4", "0.4", "--std", "0.2", "0.2", "0.2"
    ) == int(given)


def test_detectron2_s_file_cannot_say_and_the_tool_does(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(plain(tmp_path / "m.pth"), "--heads", "4", "--format", "detectron2", "--out", tmp_path / "d.pth") == 0
    assert "model.pixel_mean=[123.675, 116.28, 103.53]" in capsys.readouterr().out
    assert json.loads(checkpoints.read(tmp_path / "d.pth")["source"])["statistics"]["recorded"] is False


def test_statistics_of_grey_levels_are_refused_with_the_remedy(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = ["mean=(123.675, 116.28, 103.53)", "std=(58.395, 57.12, 57.375)"]
    for path, schema in ((CLASSIFY, ClassifyConfig), (KNN, KnnConfig)):
        with pytest.raises(ValueError, match=r"mean: .*scale 0\.\.255; divide by 255: \(0\.485, 0\.456, 0\.406\)"):
            load(path, schema, overrides=grey)
        with pytest.raises(ValueError, match=r"set both"):
            load(path, schema, overrides=["mean=(0.5, 0.5, 0.5)"])
    path = tmp_path / "b.safetensors"
    checkpoints.export_backbone(path, encoder(), about={"recipe": {"mean": [123.0] * 3, "std": [58.0] * 3}})
    with pytest.raises(ValueError, match=r"metadata \(recipe\) of .*b\.safetensors: .*0\.\.255; divide by 255"):
        checkpoints.load(path)
    assert tool(plain(tmp_path / "m.pth"), "--heads", "4", "--out", tmp_path / "o", "--mean", "123", "--std", "58") == 1
    assert "0..255" in capsys.readouterr().err


@pytest.mark.parametrize(("processor", "expected"), [
    ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}, OWN),
    ({"do_normalize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
        Statistics((0.0,) * 3, (1.0,) * 3)),
    ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, HALF),
    ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, HALF),
])  # fmt: skip
def test_transformers_image_processor_is_read_as_it_computes(
    processor: dict[str, Any], expected: Statistics, tmp_path: Path
) -> None:
    checkpoints.FORMATS["hf"](tmp_path, encoder(), {})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = checkpoints.load(f"hf:{tmp_path}")
    assert loaded.recorded
    assert loaded.statistics.matches(expected)


def test_timm_s_config_beside_a_file_of_the_hub_is_read(tmp_path: Path) -> None:
    plain(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    loaded = checkpoints.load(f"deit:{tmp_path / 'pytorch_model.bin'}", changes={"heads": 4})
    assert (loaded.statistics, loaded.recorded) == (HALF, True)


def test_an_override_stands_in_the_log_the_result_and_the_work_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = load(KNN, KnnConfig, debug=True, overrides=[f"mean={OWN.mean}", f"std={OWN.std}"])
    small = encoder(image_size=32)
    torch.save({"model": small.state_dict()}, tmp_path / "m.pth")
    backbone = {"reference": f"mae:{tmp_path / 'm.pth'}", "changes": {"heads": 4}}
    cfg = validate(cfg.model_dump() | {"backbone": backbone, "precision": "float32"}, KnnConfig, where="test")
    written = Evaluation.launch(cfg, tmp_path / "own")
    assert "set by the config instead of the default of mae:" in str(written[0].normalization)
    assert "set by the config instead of the default of mae:" in (
        capsys.readouterr().out + (tmp_path / "own" / "log.jsonl").read_text()
    )
    assert load(tmp_path / "own" / "config.py", KnnConfig).statistics == OWN
    assert results.load(tmp_path / "own" / "results.jsonl")[0][0].normalization == written[0].normalization
    plain_cfg = validate(cfg.model_dump() | {"mean": None, "std": None}, KnnConfig, where="test")
    assert "the file does not say" in str(Evaluation.launch(plain_cfg, tmp_path / "default")[0].normalization)
    assert load(tmp_path / "default" / "config.py", KnnConfig).statistics is None


def test_a_training_state_is_evaluated_with_its_own_run_s_statistics(tmp_path: Path) -> None:
    cfg = load(CLASSIFY, ClassifyConfig, debug=True, overrides=[f"mean={OWN.mean}", f"std={OWN.std}"])
    classify.Classify.launch(cfg, tmp_path / "run")
    state = str(next((tmp_path / "run" / "checkpoints").glob("*.pt")))
    silent = validate(cfg.model_dump() | {"mean": None, "std": None}, ClassifyConfig, where="test")
    assert classify.Classify.as_trained(silent, state).statistics == OWN
    first = classify.Classify.evaluate_checkpoint(cfg, state, None)[0]
    assert classify.Classify.evaluate_checkpoint(silent, state, None)[0].normalization == first.normalization
    with pytest.raises(ValueError, match=r"was trained with mean \(0\.1, 0\.2, 0\.3\).*leave mean and std out"):
        classify.Classify.as_trained(cfg.model_copy(update={"mean": HALF.mean, "std": HALF.std}), state)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_backbone_of_other_images_is_refused_with_file_and_key(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "grey.safetensors"
    recipe = {"mean": [0.5] * channels, "std": [0.5] * channels}
    checkpoints.export_backbone(path, encoder(channels=channels), about={"recipe": recipe})
    assert checkpoints.load(path).backbone.cfg.channels == channels
    with pytest.raises(
        ValueError, match=rf"grey\.safetensors takes images of {channels} channel\(s\) \(encoder\.channels, patch_embed"
    ):
        opened(str(path))
    with pytest.raises(ValueError, match="backbone.encoder takes images of"):
        open_backbone(BackboneConfig(encoder=encoder(channels=channels).cfg), {}, statistics=None, seed=0)
    with pytest.raises(ValueError, match="has 1 values|have 1 values"):
        opened(plain(tmp_path / "m.pth"), Statistics((0.5,), (0.5,)))

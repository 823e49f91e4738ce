"""zoo:NAME: the models that are part of the package load from anywhere, are the released ones, and serve the tools."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mae_transfer import checkpoints, load_backbone, results
from mae_transfer.checkpoints import released
from mae_transfer.suite.store.work import defect_of
from mae_transfer.tasks.backbones import pretrain_of

ROOT = Path(__file__).parents[2]
LARGEST = 5_000_000  # bytes of a weight file


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the zoo that may be damaged."""
    shutil.copytree(released.ZOO, tmp_path / "zoo")
    monkeypatch.setattr(released, "ZOO", tmp_path / "zoo")
    return tmp_path / "zoo"


def test_the_list_of_checksums_names_every_weight_file_and_no_other() -> None:
    assert released.zoo_names() == sorted(path.stem for path in released.ZOO.glob("*.safetensors"))
    assert released.zoo_names()


@pytest.mark.parametrize("name", released.zoo_names())
def test_a_model_loads_as_float32_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = load_backbone(f"zoo:{name}")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    features = encoder(torch.rand(2, 3, 64, 64), norm=True)
    assert features.maps[0].isfinite().all()
    assert pretrain_of(f"zoo:{name}").startswith(f"MAE {name.removeprefix('shapes64_')}, random 75%")


@pytest.mark.parametrize("name", released.zoo_names())
def test_a_model_is_small_and_comes_with_its_recipe_and_log(name: str) -> None:
    file = released.zoo_file(name)
    assert file.stat().st_size <= LARGEST
    stored = checkpoints.read(file)
    assert {tensor.dtype for key, tensor in stored.items() if key != "pos_embed"} == {torch.float16}
    about = checkpoints.metadata(file)
    assert about["recipe"]["target"]["name"] == name.removeprefix("shapes64_")
    assert about["images_seen"] == 96_000
    assert about["record"]["task"] == "pretrain"
    assert "val_loss" in (released.ZOO / f"{name}.jsonl").read_text(encoding="utf-8")
    card = (released.ZOO / "README.md").read_text(encoding="utf-8")
    assert f"## {name}" in card
    assert f"configs/zoo/{name}.py" in card


def test_a_file_that_is_not_the_released_one_is_refused(copied: Path) -> None:
    file = copied / f"{released.zoo_names()[0]}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the released file: its sha256 .* install mae_transfer again"):
        load_backbone(f"zoo:{file.stem}")
    file.unlink()
    with pytest.raises(ValueError, match="is missing; install mae_transfer again"):
        load_backbone(f"zoo:{file.stem}")


def test_an_unknown_name_proposes_the_nearest_and_lists_all() -> None:
    near = (
        r"no model 'shapes64_norm_pixels' in the zoo; it has \(nearest name first\): "
        "shapes64_norm_pixel, shapes64_pixel"
    )
    with pytest.raises(ValueError, match=near):
        load_backbone("zoo:shapes64_norm_pixels")
    assert "no model 'vit' in the zoo" in str(defect_of("backbone.reference", "zoo:vit"))
    assert defect_of("backbone.reference", f"zoo:{released.zoo_names()[0]}") is None


def test_an_export_keeps_the_recipe(tmp_path: Path) -> None:
    about = checkpoints.training_metadata(f"zoo:{released.zoo_names()[0]}")
    encoder = load_backbone(f"zoo:{released.zoo_names()[0]}", changes={"image_size": 96})
    checkpoints.export_backbone(tmp_path / "b.safetensors", encoder, about=about)
    assert checkpoints.training_metadata(tmp_path / "b.safetensors") == about
    assert about["recipe"]["data"]["size"] == 64
    assert load_backbone(tmp_path / "b.safetensors").cfg.image_size == 96


@pytest.mark.parametrize("task", ["cls_train/classify/mini_knn", "cls_train/classify/mini", "det_train/detect/mini"])
def test_a_transfer_takes_a_model_by_name(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = released.zoo_names()[0]
    tool, _, config = task.partition("/")
    words = ["configs/" + config + ".py", "--backbone", f"zoo:{name}", "--debug", "--work-dir", str(tmp_path / "run")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(f"tools/{tool}.py", run_name="__main__")
    assert not end.value.code
    found = results.load(tmp_path / "run" / "results.jsonl")[0][-1]
    assert found.pretrain == pretrain_of(f"zoo:{name}")
    assert found.record is not None
    assert found.record.inputs["backbone"].record.recipe == checkpoints.training_metadata(f"zoo:{name}")["recipe"]
    assert found.checkpoint_sha256 == checkpoints.sha256(released.zoo_file(name))

"""checkpoints/: the released layout in and out, and files that must be refused."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViT, ViTConfig

TINY = ViTConfig(size="vit_tiny", patch=16, image_size=32)


def released(model: MAE, *, full: bool) -> dict[str, Tensor]:
    """Return a state with the names of MAE's release, by a key map written by hand."""
    encoder = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    decoder = {"mask_token": model.decoder.mask_token.data.clone()}
    for name, tensor in model.decoder.state_dict().items():
        if name != "mask_token":
            decoder["decoder_" + name] = tensor.clone()
    return encoder | (decoder if full else {})


def mae() -> MAE:
    torch.manual_seed(0)
    model = MAE(MAEConfig(encoder=TINY, decoder=DecoderConfig(depth=1, dim=32, heads=4)), 768)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_the_released_names_are_these() -> None:
    names = set(released(mae(), full=True))
    block = {
        f"blocks.0.{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    assert block | {"decoder_" + name for name in block} <= names
    assert {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "norm.bias",
        "mask_token",
        "decoder_embed.weight",
        "decoder_pos_embed",
    } <= names
    assert {"decoder_norm.weight", "decoder_pred.bias"} <= names


@pytest.mark.parametrize(("prefix", "full"), [("mae", False), ("mae-full", True)])
def test_a_released_file_loads_strictly_and_exports_back_equal_in_every_tensor(
    tmp_path: Path, prefix: str, full: bool
) -> None:
    tensors = released(mae(), full=full)
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": tensors, "epoch": 1600, "args": argparse.Namespace(lr=1e-3)}, path)
    vit = checkpoints.load_backbone(f"{prefix}:{path}", changes={"heads": 3})
    assert (vit.dim, vit.depth, vit.patch, vit.grid, vit.training) == (192, 12, 16, (2, 2), False)
    checkpoints.export_backbone(tmp_path / "out.safetensors", vit, about={"digest": "abc", "recipe": {"lr": 1}})
    written = checkpoints.read(tmp_path / "out.safetensors")
    assert written.keys() == {name for name in tensors if not name.startswith("decoder_") and name != "mask_token"}
    assert all(torch.equal(written[name], tensors[name]) for name in written)
    about = checkpoints.metadata(tmp_path / "out.safetensors")
    assert about["digest"] == "abc"
    again = checkpoints.load_backbone(tmp_path / "out.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images).maps[0], vit(images).maps[0])


def test_the_decoder_comes_along_and_goes_back(tmp_path: Path) -> None:
    tensors = released(mae(), full=True)
    torch.save({"model": tensors}, tmp_path / "full.pth")
    model = MAE(MAEConfig(encoder=TINY, decoder=DecoderConfig(depth=1, dim=32, heads=4)), 768)
    checkpoints.load_mae(model, tmp_path / "full.pth")
    checkpoints.export_mae(tmp_path / "full.safetensors", model, about={})
    written = checkpoints.read(tmp_path / "full.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    cross = MAE(MAEConfig(encoder=TINY, decoder=DecoderConfig(kind="cross", depth=1, dim=32, heads=4)), 768)
    with pytest.raises(ValueError, match="cannot hold CrossMAE's decoder"):
        checkpoints.export_mae(tmp_path / "cross.safetensors", cross, about={})


def damaged(kind: str) -> dict[str, Any]:
    tensors = released(mae(), full=False)
    if kind == "extra":
        tensors["blocks.0.attn.k_norm.weight"] = torch.zeros(1)
    elif kind == "missing":
        del tensors["blocks.3.mlp.fc1.bias"]
    elif kind == "shape":
        tensors["blocks.3.mlp.fc1.bias"] = torch.zeros(3)
    elif kind == "width":
        tensors["patch_embed.proj.weight"] = torch.zeros(100, 3, 16, 16)
    return tensors


@pytest.mark.parametrize(("kind", "match"), [
    ("extra", "not used: blocks.0.attn.k_norm.weight"), ("missing", "missing: blocks.3.mlp.fc1.bias"),
    ("shape", r"blocks.3.mlp.fc1.bias: \(3,\) does not fit \(768,\)"), ("width", "width 100, depth 12"),
])  # fmt: skip
def test_a_tensor_without_a_place_and_a_place_without_a_tensor_are_errors(
    tmp_path: Path, kind: str, match: str
) -> None:
    torch.save({"model": damaged(kind)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=match) as error:
        checkpoints.load_backbone(f"mae:{tmp_path / 'x.pth'}", changes={} if kind == "width" else {"heads": 3})
    assert "x.pth" in str(error.value)


def test_references_that_fit_no_layout_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layout 'mea'"):
        checkpoints.load_backbone("mea:x.pth")
    with pytest.raises(ValueError, match="does not exist"):
        checkpoints.load_backbone(f"mae:{tmp_path / 'absent.pth'}")
    torch.save({"state_dict": {}}, tmp_path / "moco.pth")
    with pytest.raises(
        ValueError,
        match=r"has no 'model' entry with [.]+patch_embed.proj.weight: its keys are state_dict, its names none",
    ):
        checkpoints.load_backbone(f"mae:{tmp_path / 'moco.pth'}")
    torch.save(torch.zeros(1), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor"):
        checkpoints.load_backbone(f"mae:{tmp_path / 'tensor.pth'}")
    checkpoints.export_mae(tmp_path / "full.safetensors", mae(), about={})
    with pytest.raises(ValueError, match="not a backbone written by this package"):
        checkpoints.load_backbone(tmp_path / "full.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "crater"))
    path = tmp_path / "evil.pth"
    content = {"model": released(mae(), full=False), "args": Bomb()}
    torch.save(content, path) if writer == "torch" else path.write_bytes(pickle.dumps({"args": Bomb()}, protocol=2))
    with pytest.raises(ValueError, match="evil.pth is damaged or holds more than tensors"):
        checkpoints.load_backbone(f"mae:{path}")
    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save({"model": released(mae(), full=False)}, path)
    else:
        checkpoints.export_backbone(path, ViT(TINY), about={})
    path.write_bytes(path.read_bytes()[:-1000])
    reference = f"mae:{path}" if suffix == ".pth" else path
    with pytest.raises(ValueError, match="cut.*damaged"):
        checkpoints.load_backbone(reference)


def test_a_failed_export_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = ViT(TINY)
    checkpoints.export_backbone(tmp_path / "b.safetensors", vit, about={"digest": "old"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mae_transfer.checkpoints.files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.export_backbone(tmp_path / "b.safetensors", vit, about={"digest": "new"})
    assert checkpoints.metadata(tmp_path / "b.safetensors")["digest"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]

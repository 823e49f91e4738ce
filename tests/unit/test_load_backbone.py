"""checkpoints/: what a task may change on loading, and files and references that must be refused with a remedy."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mae_transfer import checkpoints
from mae_transfer.checkpoints import LAYOUTS
from mae_transfer.models.vit import ViT, ViTConfig

FILES = [name for name in LAYOUTS if name]


def encoder(**options: Any) -> ViT:
    torch.manual_seed(0)
    vit = ViT(ViTConfig.model_validate({"size": None, "dim": 32, "depth": 2, "heads": 4, "image_size": 64} | options))
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def stored(tmp_path: Path, **options: Any) -> Path:
    checkpoints.export_backbone(tmp_path / "b.safetensors", encoder(**options), about={})
    return tmp_path / "b.safetensors"


def test_the_package_hands_out_load_backbone_without_importing_torch_first(tmp_path: Path) -> None:
    load = f"mae_transfer.load_backbone({str(stored(tmp_path))!r})"
    script = f"import sys, mae_transfer; assert 'torch' not in sys.modules; print({load}.dim)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "32", run.stderr


def test_the_normalisation_of_the_pretraining_comes_along(tmp_path: Path) -> None:
    checkpoints.export_backbone(
        tmp_path / "b.safetensors", encoder(), about={"recipe": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}}
    )
    assert checkpoints.load(tmp_path / "b.safetensors").statistics == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert checkpoints.load(stored(tmp_path)).statistics.mean == (0.485, 0.456, 0.406)


def test_a_dense_task_takes_the_encoder_without_class_token_and_norm(tmp_path: Path) -> None:
    vit = encoder()
    ours = checkpoints.load_backbone(
        stored(tmp_path), changes={"class_token": False, "final_norm": False, "drop_path": 0.3, "skip_dropped": True}
    )
    assert ours.cls_token is None
    assert ours.norm is None
    assert ours.blocks[1].drop_path.drop_prob == ours.blocks[1].rate_skipped == pytest.approx(0.3)
    assert torch.equal(ours.pos_embed, vit.pos_embed[:, 1:])
    assert ours(torch.randn(1, 3, 64, 64)).cls is None


def test_a_transfer_does_not_inherit_that_the_pretraining_skipped_dropped_samples(tmp_path: Path) -> None:
    """Its drop path may be 0, or for few images."""
    path = stored(tmp_path, drop_path=0.3, skip_dropped=True)
    for rate in (0.0, 0.2):
        ours = checkpoints.load_backbone(path, changes={"drop_path": rate})
        assert isinstance(ours, ViT)
        assert (ours.cfg.drop_path, ours.cfg.skip_dropped) == (rate, False)


def test_fine_tuning_may_train_the_positions(tmp_path: Path) -> None:
    assert not checkpoints.load_backbone(stored(tmp_path)).pos_embed.requires_grad
    assert checkpoints.load_backbone(stored(tmp_path), changes={"positions": "learned"}).pos_embed.requires_grad


@torch.no_grad()
def test_tables_that_the_file_has_not_begin_at_zero(tmp_path: Path) -> None:
    images = torch.randn(1, 3, 64, 64)
    biased = checkpoints.load_backbone(stored(tmp_path), changes={"relative_positions": "per_block"})
    assert all(not table.table.any() for table in biased.rel_pos_bias)
    torch.testing.assert_close(biased(images).maps[0], encoder()(images).maps[0])


@pytest.mark.parametrize("size", [(96, 64), (32, 32), (64, 64)])
@torch.no_grad()
def test_relative_tables_follow_the_image_size(size: tuple[int, int], tmp_path: Path) -> None:
    """A table linear in the offsets stays linear inside: offsets in a stretched grid have proportional values."""
    vit = encoder(relative_positions="shared", positions="none")
    path = tmp_path / "b.safetensors"
    h = torch.arange(-3, 4.0).repeat_interleave(7)
    vit.rel_pos_bias[0].table[:49] = h[:, None]
    checkpoints.export_backbone(path, vit, about={})
    ours = checkpoints.load_backbone(path, changes={"image_size": size})
    table = ours.rel_pos_bias[0].table
    rows, columns = 2 * size[0] // 16 - 1, 2 * size[1] // 16 - 1
    assert torch.equal(table[-3:], vit.rel_pos_bias[0].table[-3:])
    grid = table[:-3, 0].view(rows, columns)
    expected = (torch.arange(rows) + 0.5) * 7 / rows - 0.5 - 3
    inner = (expected > -1.5) & (expected < 1.5)
    torch.testing.assert_close(
        grid[inner], expected[inner, None].expand(-1, columns), rtol=0, atol=0.1
    )  # torch's cubic is linear to 0.05
    bare = checkpoints.load_backbone(path, changes={"class_token": False})
    assert len(bare.rel_pos_bias[0].table) == 49


@pytest.mark.parametrize(("options", "changes", "match"), [
    ({}, {"depth": 8}, "depth cannot be changed on loading; choose from heads, image_size"),
    ({}, {"heads": 5}, "heads = 5 does not divide dim"),
    ({}, {"image_size": "big"}, "image_size"),
    ({"class_token": False}, {"class_token": True}, "no tensors for class_token"),
    ({"final_norm": False}, {"final_norm": True}, "no tensors for final_norm"),
    ({}, {"positions": "none"}, "cannot become 'none'"),
    ({"positions": "none", "relative_positions": "per_block"}, {"positions": "learned"}, "cannot become 'learned'"),
    ({"relative_positions": "per_block"}, {"relative_positions": "shared"}, "cannot become 'shared'"),
    ({}, {"image_size": 65}, "65"),
])  # fmt: skip
def test_changes_that_cannot_be_made_are_named(
    options: dict[str, Any], changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        checkpoints.load_backbone(stored(tmp_path, **options), changes=changes)


def test_a_width_of_no_named_size_asks_for_its_heads(tmp_path: Path) -> None:
    torch.save({"model": encoder().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"width 32, depth 2 is not a known size.*changes=\{'heads': N\}"):
        checkpoints.load_backbone(f"mae:{tmp_path / 'x.pth'}")


def written(tmp_path: Path, looks: str) -> Path:
    """A file that looks like a layout to the eye, by its keys."""
    plain = encoder().state_dict()
    contents: dict[str, Any] = {
        "mae": {"model": plain}, "dino": plain, "mae-full": {"model": plain | {"decoder_embed.weight": torch.zeros(1)}},
        "mae-finetuned": {"model": plain | {"fc_norm.weight": torch.zeros(1)}},
        "deit": {"model": plain | {"head.weight": torch.zeros(1)}},
        "moco-v3": {"state_dict": {f"module.base_encoder.{name}": tensor for name, tensor in plain.items()}},
        "mmpretrain": {"state_dict": {"backbone.layers.0.ln1.weight": torch.zeros(1)}},
        "moby": {"model": {"encoder_k.x": torch.zeros(1)}},
        "esvit": {"teacher": {"module.backbone.layers.0.blocks.0.norm1.weight": torch.zeros(1)}},
        "ibot": {"state_dict": {"masked_embed": torch.zeros(1)}},
        "beit": {"model": encoder(qkv_bias="qv").state_dict()}, "dinov2": encoder(layer_scale=1.0).state_dict(),
        "simmim": {"model": {f"encoder.{k}": v for k, v in plain.items()} | {"encoder.mask_token": torch.zeros(1)}},
        "hf": {"vit.embeddings.cls_token": torch.zeros(1)},
    }  # fmt: skip
    if looks == "augreg":
        np.savez(tmp_path / "x.npz", **{"Transformer/encoder_norm/bias": np.zeros(1)})
        return tmp_path / "x.npz"
    torch.save(contents[looks], tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize("looks", [name for name in FILES if name != "mmpretrain"])
def test_a_prefix_that_does_not_fit_is_refused_with_the_one_that_does(looks: str, tmp_path: Path) -> None:
    path = written(tmp_path, looks)
    with pytest.raises(ValueError, match=rf"looks like .*'{looks}:{path}'"):
        checkpoints.load_backbone(f"mmpretrain:{path}")


def test_a_bare_path_and_a_prefix_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looks like 'moco-v3:"):
        checkpoints.load_backbone(written(tmp_path, "moco-v3"))
    with pytest.raises(ValueError, match=r"looks like '[^:']*b.safetensors'"):
        checkpoints.load_backbone(f"moco-v3:{stored(tmp_path)}")
    with pytest.raises(ValueError, match=r"not used: head.weight[\s\S]*looks like 'deit:"):
        checkpoints.load_backbone(f"mae:{written(tmp_path, 'deit')}", changes={"heads": 4})


@pytest.mark.parametrize(("prefix", "name", "match"), [
    ("moco-v3", "module.base_encoder.patch_embed.proj.0.weight", "convolutional stem"),
    ("deit", "dist_token", "timm:deit_base_distilled"),
    ("dinov2", "storage_tokens", "vit_small_patch16_dinov3"), ("dinov2", "register_tokens", "lacks .*mlp.fc1.weight"),
])  # fmt: skip
def test_what_the_encoder_has_not_is_refused_with_the_way_round(
    prefix: str, name: str, match: str, tmp_path: Path
) -> None:
    tensors = {"patch_embed.proj.weight": torch.zeros(1), name: torch.zeros(1)}
    torch.save({{"moco-v3": "state_dict", "deit": "model", "dinov2": "teacher"}[prefix]: tensors}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=match):
        checkpoints.load_backbone(f"{prefix}:{tmp_path / 'x.pth'}")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def evil(tmp_path: Path, prefix: str) -> str:
    """A file or directory of a layout whose reading would run code; the way to write it in a reference."""
    if prefix == "augreg":
        np.savez(tmp_path / "x.npz", cls=np.array([Bomb()], dtype=object))
        return f"augreg:{tmp_path / 'x.npz'}"
    torch.save(
        {"model": {}, "state_dict": {}, "teacher": {}, "args": Bomb()},
        tmp_path / ("pytorch_model.bin" if prefix == "hf" else "x.pth"),
    )
    if prefix == "hf":
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    return f"{prefix}:{tmp_path}" if prefix == "hf" else f"{prefix}:{tmp_path / 'x.pth'}"


@pytest.mark.parametrize("prefix", [*FILES, "timm:resnet18@"])
def test_no_layout_runs_what_a_file_holds(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "crater"))
    reference = evil(tmp_path, prefix.partition(":")[0])
    if "@" in prefix:
        reference = prefix + str(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="damaged or"):
        checkpoints.load_backbone(reference)
    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize("prefix", [*FILES, "timm:resnet18@"])
def test_a_truncated_file_and_a_missing_one_are_named_in_every_layout(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.npz" if prefix == "augreg" else "pytorch_model.bin" if prefix == "hf" else "x.pth")
    np.savez(path, cls=np.zeros(100)) if prefix == "augreg" else torch.save(
        {"model": {"x": torch.zeros(1000)}, "args": argparse.Namespace()}, path
    )
    path.write_bytes(path.read_bytes()[:-300])
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    colon = "" if "@" in prefix else ":"
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        checkpoints.load_backbone(f"{prefix}{colon}{path}")
    path.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        checkpoints.load_backbone(f"{prefix}{colon}{path}")


def test_a_user_s_own_fine_tuned_file_with_its_command_line_is_read(tmp_path: Path) -> None:
    state = encoder(final_norm=False).state_dict() | {
        "fc_norm.weight": torch.ones(32),
        "fc_norm.bias": torch.zeros(32),
        "head.weight": torch.zeros(5, 32),
    }
    torch.save(
        {"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": argparse.Namespace(lr=0.1)},
        tmp_path / "x.pth",
    )
    loaded = checkpoints.load(f"mae-finetuned:{tmp_path / 'x.pth'}", changes={"heads": 4})
    assert sorted(loaded.head) == ["fc_norm.bias", "fc_norm.weight", "head.weight"]


def test_timm_s_files_are_taken_strictly(tmp_path: Path) -> None:
    state = timm.create_model("convnext_atto", num_classes=0).state_dict()
    for change, match in (
        ({"conv9.weight": torch.zeros(1)}, "conv9.weight"),
        ({"stem.0.bias": torch.zeros(1)}, "stem.0.bias"),
    ):
        torch.save(state | change, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=rf"timm:convnext_atto cannot be created from [^ ]*x.pth: [\s\S]*{match}"):
            checkpoints.load_backbone(f"timm:convnext_atto@{tmp_path / 'x.pth'}")

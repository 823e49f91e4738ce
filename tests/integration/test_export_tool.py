"""tools/export_checkpoint.py: any layout in, four kinds of names out, mistakes told in one line."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mae_transfer import checkpoints
from mae_transfer.models.vit import ViT, ViTConfig

TOOL = Path(__file__).parents[2] / "tools" / "export_checkpoint.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(end.value.code or 0)

    return run


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file in the layout of MAE's fine-tuned release, with a class token's norm and a head."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=None, dim=32, depth=2, heads=4, image_size=64))
    torch.save(
        {"model": vit.state_dict() | {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}},
        tmp_path / "x.pth",
    )
    return tmp_path / "x.pth"


def test_every_format_is_written_and_ours_reads_back(
    tool: Callable[..., int], released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = released.parent
    reference = f"mae-finetuned:{released}"
    images = torch.randn(1, 3, 64, 64)
    expected = checkpoints.load_backbone(reference, changes={"heads": 4})(images, norm=True)
    for name in ("ours", "timm", "hf", "detectron2"):
        assert (
            tool(
                reference,
                "--heads",
                "4",
                "--format",
                name,
                "--out",
                folder / "out" / name / ("x.pth" if name == "detectron2" else "x.safetensors"),
            )
            == 0
        )
    said = capsys.readouterr().out
    assert said.count("0.1 M parameters") == 4
    assert "not written, because a backbone has no classifier: head.weight, head.bias" in said
    for prefix, path, changes in (
        ("", "ours/x.safetensors", {}),
        ("deit:", "timm/x.safetensors", {"heads": 4}),
        ("hf:", "hf/x.safetensors", {}),
    ):
        features = checkpoints.load_backbone(f"{prefix}{folder / 'out' / path}", changes=changes)(images, norm=True)
        assert torch.equal(features.maps[0], expected.maps[0]), prefix
    hidden = AutoModel.from_pretrained(folder / "out" / "hf" / "x.safetensors").eval()(images).last_hidden_state
    torch.testing.assert_close(hidden[:, 0], expected.cls, rtol=1e-5, atol=1e-5)
    about = checkpoints.metadata(folder / "out" / "ours" / "x.safetensors")
    assert about["reference"] == "x.pth"
    assert about["source_sha256"] == checkpoints.sha256(released)


def test_positions_are_resampled_when_asked(tool: Callable[..., int], released: Path) -> None:
    out = released.parent / "large.safetensors"
    assert tool(f"deit:{released}", "--heads", "4", "--image-size", "96", "--out", out) == 0
    assert checkpoints.load_backbone(out).grid == (6, 6)


def test_mistakes_are_told_in_one_line_and_leave_no_file(
    tool: Callable[..., int], released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = released.parent / "out.safetensors"
    assert tool(f"beit:{released.parent / 'absent.pth'}", "--out", out) == 1
    assert tool(f"mae:{released}", "--out", out) == 1
    said = capsys.readouterr().err
    assert "absent.pth' does not exist" in said
    assert "looks like 'deit:" in said
    assert "Traceback" not in said
    assert tool(f"mae:{released}") == 2
    assert not out.exists()


def test_licences_are_listed(tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("--licence") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checkpoints.RELEASED)
    assert any(
        line.startswith("released:mae_vit_base ") and "CC-BY-NC 4.0" in line and "md5:8cad7c" in line for line in lines
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_halves_the_file_and_loads_as_float32(
    tool: Callable[..., int], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=None, dim=32, depth=2, heads=4, image_size=64))
    recipe = {"mean": [0.5] * 3, "std": [0.5] * 3, "lr": 1.0}
    checkpoints.export_backbone(tmp_path / "b.safetensors", vit, about={"pretrain": "MAE", "recipe": recipe})
    assert tool(tmp_path / "b.safetensors", "--dtype", dtype, "--out", tmp_path / "half.safetensors") == 0
    stored = checkpoints.read(tmp_path / "half.safetensors")
    assert stored["pos_embed"].dtype == torch.float32, "fixed positions are exact"
    assert {tensor.dtype for name, tensor in stored.items() if name != "pos_embed"} == {getattr(torch, dtype)}
    about = checkpoints.training_metadata(tmp_path / "half.safetensors")
    assert (about["pretrain"], about["recipe"]) == ("MAE", recipe)
    for changes in ({}, {"image_size": 96}, {"patch": 8, "image_size": 32, "positions": "learned"}):
        images = torch.randn(1, 3, changes.get("image_size", 64), changes.get("image_size", 64))
        full, half = (
            checkpoints.load_backbone(tmp_path / name, changes=changes)
            for name in ("b.safetensors", "half.safetensors")
        )
        assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
        expected = full(images, norm=True).maps[0]
        difference = half(images, norm=True).maps[0] - expected
        assert 0 < difference.abs().max() < tolerance * expected.abs().max()


def test_values_that_half_precision_cannot_hold_are_refused(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = ViT(ViTConfig(size=None, dim=32, depth=1, heads=4, image_size=64))
    torch.nn.init.constant_(vit.norm.bias, 1e5)
    checkpoints.export_backbone(tmp_path / "b.safetensors", vit, about={})
    assert tool(tmp_path / "b.safetensors", "--dtype", "float16", "--out", tmp_path / "half.safetensors") == 1
    assert "norm.bias holds values that torch.float16 cannot represent; use bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "half.safetensors").exists()

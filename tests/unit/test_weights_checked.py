"""Checks when weights are loaded: non-finite values, flipped bits, foreign classes; and paths with colons."""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mae_transfer import checkpoints
from mae_transfer.checkpoints.files import DIGEST, read
from mae_transfer.checkpoints.tokenizers import export_tokenizer, load_basis, load_tokenizer, save_basis
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.pca import Basis
from mae_transfer.core.positions import sincos_2d
from mae_transfer.models.dvae import DVAE, DVAEConfig
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.suite.store.work import defect_of
from mae_transfer.tasks.pretrain import load_start
from mae_transfer.tasks.targets import TargetFiles

SMALL = ViTConfig(size=None, dim=32, depth=2, heads=4, image_size=32)
NAN, INF = float("nan"), float("inf")


def basis(**tensors: torch.Tensor) -> Basis:
    fitted = {"mean": torch.zeros(12), "components": torch.eye(12)[:3], "variance": torch.ones(3)}
    return Basis(**fitted | {"explained": torch.ones(3) / 3} | tensors, patch=2, statistics=IMAGENET)


def spoiled(state: dict[str, torch.Tensor], name: str, value: float) -> dict[str, torch.Tensor]:
    state[name].view(-1)[3] = value
    return state


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["own", "mae", "head", "timm", "mae_full", "state", "tokenizer", "basis"])
def test_values_that_are_not_finite_are_refused_with_file_and_tensor(kind: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    said = f"{path} holds values that are not finite, in " + r"[\w.]+ \(1 (NaN|infinite) of \d+\)"
    model = MAE(MAEConfig(encoder=SMALL, decoder=DecoderConfig(depth=1, dim=32, heads=4)), 768)
    state = {name: tensor.clone() for name, tensor in ViT(SMALL).state_dict().items()}
    if kind == "own":
        vit = ViT(SMALL)
        vit.load_state_dict(spoiled(state, "blocks.1.mlp.fc2.weight", value))
        checkpoints.export_backbone(path, vit, about={})
    elif kind == "mae_full":
        spoiled(model.state_dict(), "decoder.pred.weight", value)
        checkpoints.export_mae(path, model, about={})
    elif kind == "tokenizer":
        dvae = DVAE(DVAEConfig(codes=4, groups=2, blocks=1, width=8, decoder_input=8))
        spoiled(dvae.state_dict(), next(name for name in dvae.state_dict() if name.endswith("weight")), value)
        export_tokenizer(path, dvae, about={})
    elif kind == "basis":
        save_basis(path, basis(variance=torch.tensor([1.0, 1.0, value])))
    elif kind == "timm":
        spoiled(state := checkpoints.load_backbone("random:test_vit").model.state_dict(), "norm.weight", value)
        torch.save(state, path := tmp_path / "x.pth")
        said = said.replace(".safetensors", ".pth")
    else:
        head = {"head.weight": torch.full((5, 32), value), "head.bias": torch.zeros(5)} if kind == "head" else {}
        torch.save(
            {"model": spoiled(state, "norm.weight", value) if kind == "mae" else state | head},
            path := tmp_path / "x.pth",
        )
        said = said.replace(".safetensors", ".pth").replace("1 (", r"\d+ (")
    if kind == "state":
        torch.save(
            {"model": spoiled(model.state_dict(), "encoder.norm.bias", value)}, path := tmp_path / "step_00000001.pt"
        )
        said = said.replace("x.pth", path.name)
    opened: dict[str, Any] = {
        "own": lambda: checkpoints.load(path), "mae": lambda: checkpoints.load(f"mae:{path}", changes={"heads": 4}),
        "head": lambda: checkpoints.load(f"mae-finetuned:{path}", changes={"heads": 4}),
        "timm": lambda: checkpoints.load(f"timm:test_vit@{path}"),
        "mae_full": lambda: checkpoints.load_mae(model, path), "state": lambda: load_start(model, str(path), IMAGENET),
        "tokenizer": lambda: load_tokenizer(str(path)), "basis": lambda: load_basis(path),
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        opened[kind]()


def test_values_that_leave_the_range_of_float32_and_whole_numbers_are_refused(tmp_path: Path) -> None:
    state = ViT(SMALL).state_dict()
    torch.save({"model": state | {"norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"norm\.weight \(32 infinite of 32\)"):
        checkpoints.load(f"mae:{tmp_path / 'x.pth'}", changes={"heads": 4})
    of_timm = checkpoints.load("random:test_vit").backbone.model.state_dict()  # type: ignore[union-attr]
    torch.save(of_timm | {"norm.weight": torch.full((64,), 1e300, dtype=torch.float64)}, tmp_path / "z.pth")
    with pytest.raises(
        ValueError, match=r"z\.pth holds values that are not finite, in norm\.weight \(64 infinite of 64\)"
    ):
        checkpoints.load(f"timm:test_vit@{tmp_path / 'z.pth'}")
    torch.save({"model": state | {"norm.weight": torch.ones(32, dtype=torch.int8)}}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match=r"norm\.weight: torch\.int8 where torch\.float32 is expected"):
        checkpoints.load(f"mae:{tmp_path / 'y.pth'}", changes={"heads": 4})


def test_a_flipped_bit_of_what_this_suite_wrote_is_refused(tmp_path: Path) -> None:
    """Whatever byte it hits, in the weights or in the header: an error, or the very same backbone."""
    path = tmp_path / "backbone.safetensors"
    checkpoints.export_backbone(
        path, ViT(SMALL), about={"pretrain": "MAE", "recipe": {"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2]}}
    )
    whole, state = path.read_bytes(), read(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 7), *range(header, len(whole), len(whole) // 40), len(whole) - 1]
    refused = equal = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            loaded = checkpoints.load(path)
        except ValueError as error:
            refused += "backbone.safetensors" in str(error)
        else:
            assert all(torch.equal(tensor, loaded.backbone.state_dict()[name]) for name, tensor in state.items())
            assert loaded.statistics.mean == (0.1, 0.2, 0.3)
            equal += 1
    assert refused + equal == len(places)
    assert refused > 0.9 * len(places)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"backbone\.safetensors is damaged.*sha256.*export it again"):
        checkpoints.load(path)


def test_files_without_a_digest_load_as_before(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    checkpoints.export_backbone(path, ViT(SMALL), about={})
    assert len(checkpoints.metadata(path)[DIGEST]) == 64
    about = {key: value for key, value in checkpoints.metadata(path).items() if key != DIGEST}
    save_file(checkpoints.read(path), path, metadata={"mae_transfer": json.dumps(about)})
    assert checkpoints.load(path).backbone.dim == 32


@pytest.mark.parametrize(("held", "name"), [
    (np.float64(3), r"numpy\._core\.multiarray\.scalar"), (Path("x"), r"pathlib\.PosixPath"),
    (datetime.date(2026, 1, 1), r"datetime\.date"),
])  # fmt: skip
def test_a_harmless_class_is_named_with_the_way_to_convert(held: object, name: str, tmp_path: Path) -> None:
    torch.save({"model": ViT(SMALL).state_dict(), "args": argparse.Namespace(lr=1), "best": held}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=name + r"\. It was not read.*python -c \"import torch; c = torch\.load\('x\.pth'"
    ) as error:
        checkpoints.load(f"mae:{tmp_path / 'x.pth'}", changes={"heads": 4})
    assert "weights_only` argument" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["model", "state_dict", "module", "beside"])
def test_the_command_that_the_refusal_names_converts_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, best = ViT(SMALL), np.float64(3)
    files = {"module": vit, "beside": {**vit.state_dict(), "best": best}}
    torch.save(files.get(kind, {kind: vit.state_dict(), "best": best}), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="python -c") as error:
        checkpoints.load(f"mae:{tmp_path / 'x.pth'}")
    monkeypatch.chdir(tmp_path)
    exec(str(error.value).partition('python -c "')[2].partition('"')[0], {})
    assert checkpoints.load("mae:tensors.pth", changes={"heads": 4}).backbone.dim == 32


@pytest.mark.parametrize("folder", ["a:b", "mae:x", "12:30", "~"])
def test_paths_may_hold_colons_and_begin_with_the_home_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / ("home" if folder == "~" else folder)
    place.mkdir()
    root = folder if folder == "~" else str(place)
    checkpoints.export_backbone(place / "b.safetensors", ViT(SMALL), about={"pretrain": "MAE"})
    torch.save({"model": ViT(SMALL).state_dict()}, place / "x.pth")
    model = MAE(MAEConfig(encoder=SMALL, decoder=DecoderConfig(depth=1, dim=32, heads=4)), 768)
    checkpoints.export_mae(place / "full.safetensors", model, about={})
    torch.save({"model": model.state_dict()}, place / "step_00000001.pt")
    save_basis(place / "basis.safetensors", basis())
    export_tokenizer(
        place / "t.safetensors", DVAE(DVAEConfig(codes=4, groups=2, blocks=1, width=8, decoder_input=8)), about={}
    )
    torch.save(checkpoints.load_backbone("random:test_vit").model.state_dict(), place / "timm.pth")
    assert checkpoints.load(f"{root}/b.safetensors").backbone.dim == 32
    assert checkpoints.load(f"mae:{root}/x.pth", changes={"heads": 4}).backbone.dim == 32
    assert checkpoints.load(f"timm:test_vit@{root}/timm.pth").sha256
    load_start(model, f"mae-full:{root}/full.safetensors", IMAGENET)
    load_start(model, f"{root}/step_00000001.pt", IMAGENET)
    assert TargetFiles(None).basis(f"{root}/basis.safetensors").patch == 2  # type: ignore[arg-type]
    assert load_tokenizer(f"{root}/t.safetensors")
    monkeypatch.chdir(place.parent)
    if folder != "~":
        assert checkpoints.load(f"./{folder}/b.safetensors").backbone.dim == 32


def test_a_suite_finds_weights_whose_path_has_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "12:30" / "x.pth"
    path.parent.mkdir()
    path.write_bytes(b"")
    for key, value in (
        ("backbone.reference", f"mae:{path}"),
        ("backbone.reference", str(path)),
        ("target.tokenizer", f"dalle:{path}"),
    ):
        assert defect_of(key, value) is None
        assert str(defect_of(key, f"{value}.x")).partition(";")[0].endswith("does not exist")
    assert "no layout 'mea'" in str(defect_of("backbone.reference", "mea:x.pth"))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_a_start_at_another_image_size_takes_its_positions_along(positions: str, tmp_path: Path) -> None:
    decoder = DecoderConfig(depth=1, dim=32, heads=4)
    small = MAE(MAEConfig(encoder=SMALL.model_copy(update={"positions": positions}), decoder=decoder), 768)
    large = MAE(
        MAEConfig(encoder=SMALL.model_copy(update={"positions": positions, "image_size": 96}), decoder=decoder), 768
    )
    if positions == "learned":
        torch.nn.init.normal_(small.encoder.pos_embed)
    torch.save({"model": small.state_dict()}, tmp_path / "step_00000001.pt")
    checkpoints.export_mae(tmp_path / "full.safetensors", small, about={})
    expected = {"encoder": large.encoder.pos_embed.data.clone(), "decoder": large.decoder.pos_embed.data.clone()}
    for start in (f"mae-full:{tmp_path / 'full.safetensors'}", str(tmp_path / "step_00000001.pt")):
        torch.nn.init.zeros_(large.encoder.pos_embed)
        torch.nn.init.zeros_(large.decoder.pos_embed)
        load_start(large, start, IMAGENET)
        assert torch.equal(large.decoder.pos_embed, sincos_2d(32, (6, 6)))
        assert torch.equal(large.encoder.norm.weight, small.encoder.norm.weight)
        if positions == "fixed":
            assert torch.equal(large.encoder.pos_embed, expected["encoder"])
        else:
            images = torch.randn(1, 3, 96, 96)
            torch.testing.assert_close(large.encoder(images).maps[0], small.encoder(images).maps[0])  # as at transfer


def test_a_layout_of_square_images_does_not_take_the_positions_of_others(tmp_path: Path) -> None:
    checkpoints.FORMATS["timm"](tmp_path / "x.safetensors", ViT(SMALL.model_copy(update={"image_size": (32, 128)})), {})
    with pytest.raises(
        ValueError, match=r"x\.safetensors has the positions of \(2, 8\) patches, .*square images; load the file"
    ):
        checkpoints.load(f"mae:{tmp_path / 'x.safetensors'}", changes={"heads": 4})


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (48, 48)])
def test_a_start_from_images_of_another_shape_has_the_positions_of_its_own(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """2 x 8 patches are as many as 4 x 4: the table of one shape used to be taken for the other's."""
    decoder = DecoderConfig(depth=1, dim=32, heads=4)
    wide, model = (
        MAE(MAEConfig(encoder=SMALL.model_copy(update={"image_size": sides}), decoder=decoder), 768)
        for sides in ((32, 128), size)
    )
    torch.save({"model": wide.state_dict()}, tmp_path / "step_00000001.pt")
    load_start(model, str(tmp_path / "step_00000001.pt"), IMAGENET)
    grid = (size[0] // 16, size[1] // 16)
    assert torch.equal(model.encoder.pos_embed, sincos_2d(32, grid))
    assert torch.equal(model.decoder.pos_embed, sincos_2d(32, grid))

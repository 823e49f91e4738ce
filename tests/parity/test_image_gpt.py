"""ImageGPT against transformers: tokens, features of every layer, and files that are incomplete or wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.checkpoints.layouts import HALF
from mae_transfer.core.normalize import normalize
from mae_transfer.models.heads import Classifier, freeze
from mae_transfer.models.image_gpt import ImageGPT

transformers = pytest.importorskip("transformers")

SIDE, COLOURS, DEPTH = 8, 16, 3
CLUSTERS = np.random.default_rng(0).uniform(-1, 1, (COLOURS, 3))


@pytest.fixture(scope="module")
def oracle() -> Any:
    """A small model of transformers with large random weights."""
    cfg = transformers.ImageGPTConfig(
        vocab_size=COLOURS + 1, n_positions=SIDE**2, n_embd=32, n_layer=DEPTH, n_head=4, use_cache=False
    )
    model = transformers.ImageGPTForCausalImageModeling(cfg).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def folder(oracle: Any, tmp_path: Path) -> Path:
    """A directory as on the hub: the model with its head, and the colours."""
    oracle.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": CLUSTERS.tolist()}))
    return tmp_path


def pictures() -> Tensor:
    return torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def indices() -> Tensor:
    """The nearest colours by a plain formula, (B, N)."""
    pixels = pictures().permute(0, 2, 3, 1).reshape(2, -1, 1, 3).double() / 127.5 - 1
    return (pixels - torch.from_numpy(CLUSTERS)).square().sum(-1).argmin(-1)


@torch.no_grad()
def expected(oracle: Any, layer: int) -> Tensor:
    """The features of a layer, (B, D): the mean over positions of its normalised input."""
    states = []
    body = oracle.transformer
    norm = body.ln_f if layer == DEPTH else body.h[layer].ln_1
    hook = norm.register_forward_hook(lambda module, args, output: states.append(output))
    start = torch.full((2, 1), COLOURS)
    body(torch.cat([start, indices()[:, :-1]], dim=1))
    hook.remove()
    return states[0].mean(1)


@pytest.mark.parametrize("layer", [1, 2, DEPTH])
@torch.no_grad()
def test_the_features_of_each_layer_are_those_of_transformers(folder: Path, oracle: Any, layer: int) -> None:
    loaded = checkpoints.load(f"hf:{folder}", changes={"depth": layer, "image_size": SIDE})
    model = loaded.backbone
    assert isinstance(model, ImageGPT)
    assert (model.dim, model.depth, model.patch) == (32, layer, 1)
    assert (loaded.statistics, loaded.recorded) == (HALF, True)
    images = normalize(pictures(), loaded.statistics)
    assert torch.equal(model.tokens(images), indices())
    features = model(images, norm=True)
    assert features.maps[0].shape == (2, 32, SIDE, SIDE)
    torch.testing.assert_close(features.maps[0].mean((2, 3)), expected(oracle, layer), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_pixel_sees_only_the_pixels_before_it_and_taps_are_blocks(folder: Path) -> None:
    model = checkpoints.load_backbone(f"hf:{folder}")
    images = normalize(pictures(), HALF)
    changed = images.clone()
    changed[:, :, 4] = -changed[:, :, 4]  # row 4; the input is shifted by one pixel
    gap = (model(images).maps[0] - model(changed).maps[0]).abs().amax((0, 1)).flatten()
    assert gap[: 4 * SIDE + 1].max() == 0
    assert gap[4 * SIDE + 1 :].min() > 0
    maps = model(images, taps=(0, 2)).maps
    assert torch.equal(maps[1], model(images).maps[0])
    assert torch.equal(maps[0], checkpoints.load_backbone(f"hf:{folder}", changes={"depth": 1})(images).maps[0])


def test_a_file_of_earlier_versions_with_causal_masks_loads(folder: Path, oracle: Any) -> None:
    tensors = oracle.state_dict()
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(DEPTH)}
    more = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(DEPTH)}
    torch.save(tensors | masks | more, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert isinstance(checkpoints.load_backbone(f"hf:{folder}"), ImageGPT)


def test_a_probe_freezes_the_model_and_its_last_block_can_train(folder: Path) -> None:
    model = checkpoints.load_backbone(f"hf:{folder}", changes={"final_norm": False, "drop_path": 0.0})
    freeze(model, 1)
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {str(DEPTH - 1)}
    logits = Classifier(model, 5)(normalize(pictures(), HALF))
    logits.sum().backward()
    assert model.layer_of("pos_embed") == 0
    assert model.layer_of("blocks.1.norm1.weight") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, r"set 1\.\.3"),
        ({"depth": 4}, r"set 1\.\.3"),
        ({"image_size": 224}, "data.size=8"),
        ({"patch": 16}, "patch of an ImageGPT cannot be changed"),
        ({"drop_path": 0.1}, "neither class token nor drop path"),
    ],
)
def test_changes_that_it_cannot_make_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoints.load(f"hf:{folder}", changes=changes)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {}, "no `clusters` of 16 colours"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 0]]}, "no `clusters` of 16 colours"),
        ("config.json", {"model_type": "imagegpt", "activation_function": "gelu"}, "activation_function"),
        ("config.json", {"model_type": "imagegpt"}, "n_head"),
        ("config.json", {"model_type": "imagegpt", "n_head": 5}, "does not divide the width 32"),
    ],
)
def test_wrong_files_beside_the_weights_are_refused(
    folder: Path, file: str, values: dict[str, Any], message: str
) -> None:
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        checkpoints.load(f"hf:{folder}")


def test_a_file_without_a_norm_is_refused(folder: Path, oracle: Any) -> None:
    (folder / "model.safetensors").unlink()
    for lost in ("ln_f", "h.1.ln_1"):
        tensors = {name: tensor for name, tensor in oracle.state_dict().items() if f".{lost}." not in name}
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"norm\.weight"):
            checkpoints.load(f"hf:{folder}", changes={"depth": 1})


def test_images_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="data.size=8"):
        checkpoints.load_backbone(f"hf:{folder}")(torch.zeros(1, 3, 16, 16))

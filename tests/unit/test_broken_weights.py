"""Broken weight files of every layout: loading gives a backbone or one ValueError with the file, and runs no code."""

import copy
import functools
import json
import math
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.checkpoints.files import ABOUT, DIGEST
from mae_transfer.checkpoints.tokenizers import export_tokenizer, load_basis, load_tokenizer, save_basis
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.pca import Basis
from mae_transfer.models.dvae import DVAE, DVAEConfig
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViT, ViTConfig

SMALL: dict[str, Any] = {"size": None, "dim": 8, "depth": 2, "heads": 2, "patch": 4, "image_size": 8}
BEIT = {"positions": "none", "relative_positions": "shared", "qkv_bias": "qv", "layer_scale": 0.1}
MAE_SMALL = MAEConfig(encoder=ViTConfig(**SMALL), decoder=DecoderConfig(depth=1, dim=8, heads=2))
State = dict[str, Any]


def state(**options: Any) -> State:
    return dict(ViT(ViTConfig.model_validate(SMALL | options)).state_dict())


def renamed(tensors: State, *rules: tuple[str, str], prefix: str = "") -> State:
    for old, new in rules:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def beit() -> State:
    rules = (
        ("rel_pos_bias.0.table", "rel_pos_bias.relative_position_bias_table"),
        (".ls1.gamma", ".gamma_1"),
        (".ls2.gamma", ".gamma_2"),
    )
    return renamed(state(**BEIT), *rules)


def mmpretrain() -> State:
    rules = (("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), (".norm1.", ".ln1."),
        (".norm2.", ".ln2."),
             ("mlp.fc1.", "ffn.layers.0.0."), ("mlp.fc2.", "ffn.layers.1."), ("norm.", "ln1."))  # fmt: skip
    return renamed(state(), *rules, prefix="backbone.")


def swin() -> State:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=16,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
        window_size=2,
        num_classes=0,
    )
    return dict(model.state_dict())


def flax() -> State:
    parts = {
        "cls": (1, 1, 8),
        "Transformer/posembed_input/pos_embedding": (1, 5, 8),
        "embedding/kernel": (4, 4, 3, 8),
        "embedding/bias": (8,),
    }
    parts |= {f"Transformer/encoder_norm/{name}": (8,) for name in ("scale", "bias")}
    block, attention = "Transformer/encoderblock_0/", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"
    parts |= {f"{block}LayerNorm_{number}/{name}": (8,) for number in (0, 2) for name in ("scale", "bias")}
    parts |= {f"{attention}{name}/kernel": (8, 2, 4) for name in ("query", "key", "value")}
    parts |= {f"{attention}{name}/bias": (2, 4) for name in ("query", "key", "value")}
    parts |= {
        f"{attention}out/kernel": (2, 4, 8),
        f"{attention}out/bias": (8,),
        f"{block}MlpBlock_3/Dense_0/kernel": (8, 32),
    }
    parts |= {
        f"{block}MlpBlock_3/Dense_0/bias": (32,),
        f"{block}MlpBlock_3/Dense_1/kernel": (32, 8),
        f"{block}MlpBlock_3/Dense_1/bias": (8,),
    }
    return {name: torch.zeros(shape) for name, shape in parts.items()}


CONTENTS: dict[str, Callable[[], State]] = {
    "mae": lambda: {"model": state(), "epoch": 3},
    "mae-full": lambda: {"model": renamed(dict(MAE(MAE_SMALL, 48).state_dict()), ("encoder.", ""),
                ("decoder.mask_token", "mask_token"), ("decoder.", "decoder_"))},
    "mae-finetuned": lambda: {"model": state(final_norm=False)
                | {"fc_norm.weight": torch.ones(8), "fc_norm.bias": torch.ones(8)}},
    "moco-v3": lambda: {"state_dict": renamed(state(), prefix="module.base_encoder.")},
    "dino": lambda: {"teacher": renamed(state(), prefix="backbone.")},
    "ibot": lambda: {"state_dict": state() | {"masked_embed": torch.zeros(8)}},
    "beit": lambda: {"model": beit()},
    "simmim": lambda: {"model": renamed(beit(), prefix="encoder.")},
    "deit": lambda: {"model": state() | {"head.weight": torch.zeros(3, 8)}},
    "dinov2": lambda: state(layer_scale=1.0), "mmpretrain": lambda: {"state_dict": mmpretrain()},
    "moby": lambda: {"model": renamed(swin(), prefix="encoder.")},
    "esvit": lambda: {"teacher": renamed(swin(), prefix="module.backbone.")},
    "timm": lambda: dict(timm.create_model("test_vit", num_classes=3).state_dict()), "augreg": flax, "": state,
    "hf": state,
    "tokenizer": lambda: dict(DVAE(TOKENIZER).state_dict()),
    "dalle": lambda: dict(DVAE(TOKENIZER).encoder.state_dict()),
    "basis": lambda: {"mean": torch.zeros(12), "components": torch.eye(12)[:3], "variance": torch.ones(3),
        "explained": torch.ones(3) / 3},
    "start": lambda: renamed(dict(MAE(MAE_SMALL, 48).state_dict()), ("encoder.", ""),
        ("decoder.mask_token", "mask_token"), ("decoder.", "decoder_")),
}  # fmt: skip
TOKENIZER = DVAEConfig(codes=4, groups=2, blocks=1, width=8, decoder_input=8)
SAFE = ("", "hf", "tokenizer", "basis", "start")  # written as .safetensors by this package
LOAD: dict[str, Callable[[Path], Any]] = {
    "tokenizer": lambda path: load_tokenizer(str(path)), "dalle": lambda path: load_tokenizer(f"dalle:{path}"),
    "basis": load_basis,
    "timm": lambda path: checkpoints.load(f"timm:test_vit@{path}"), "": lambda path: checkpoints.load(path),
    "hf": lambda path: checkpoints.load(f"hf:{path.parent}"),
    "start": lambda path: checkpoints.load_mae(MAE(MAE_SMALL, 48), path),
}  # fmt: skip


def load(layout: str, path: Path) -> Any:
    heads = {} if layout in ("augreg", "beit", "simmim", "moby", "esvit") else {"heads": 2}
    return LOAD[layout](path) if layout in LOAD else checkpoints.load(f"{layout}:{path}", changes=heads)


@functools.cache
def content(layout: str) -> State:
    torch.manual_seed(0)
    return CONTENTS[layout]()


@functools.cache
def written(layout: str) -> dict[str, bytes]:
    """Return the files that this package writes of a layout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if layout == "tokenizer":
            export_tokenizer(path, DVAE(TOKENIZER), about={})
        elif layout == "basis":
            save_basis(path, Basis(**content(layout), patch=2, statistics=IMAGENET))
        elif layout == "start":
            checkpoints.export_mae(path, MAE(MAE_SMALL, 48), about={})
        elif layout == "hf":
            about = {"statistics": {"mean": [0.5] * 3, "std": [0.5] * 3, "recorded": True}}
            checkpoints.FORMATS["hf"](Path(folder), ViT(ViTConfig(**SMALL)), about)
        else:
            checkpoints.export_backbone(
                path, ViT(ViTConfig(**SMALL)), about={"recipe": {"mean": [0.5] * 3, "std": [0.5] * 3}}
            )
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


VALUES = (math.nan, math.inf, -math.inf, 1e300)
JUNK = (None, "x", 3, [], {}, {"a": 1}, [1, "b"], True, -1, 0, 1e308, "\udce4")


def places(tree: State, found: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all tensors of nested dicts."""
    inner = [(*found, key) for key, value in tree.items() if isinstance(value, Tensor)]
    return inner + [
        place for key, value in tree.items() if isinstance(value, dict) for place in places(value, (*found, key))
    ]


def break_tensors(rng: random.Random, tree: State) -> None:
    """Spoil up to three tensors of nested dicts in place."""
    for _ in range(rng.randint(1, 3)):
        every = places(tree)
        if not every:
            return
        *parents, leaf = rng.choice(every)
        inner = functools.reduce(lambda level, key: level[key], parents, tree)
        tensor, how = (
            inner[leaf],
            rng.choice(["drop", "shape", "value", "type", "rename", "extra", "junk", "bomb", "swap"]),
        )
        if how in ("drop", "rename"):
            del inner[leaf]
        if how == "rename":
            inner[
                rng.choice(
                    ["blocks.x.norm1.weight", "blocks.99.norm1.weight", f"module.{leaf}", leaf[1:], "", "blocks."]
                )
            ] = tensor
        elif how == "shape":
            inner[leaf] = torch.zeros([rng.randint(0, 9) for _ in range(rng.randint(0, 5))])
        elif how == "value" and tensor.numel():
            inner[leaf] = (
                tensor.double().index_fill(0, torch.tensor([0]), rng.choice(VALUES)) if tensor.ndim else tensor
            )
        elif how == "type":
            inner[leaf] = tensor.to(
                rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16])
            )
        elif how == "extra":
            inner[rng.choice(["extra", "blocks.2.norm1.weight", "teacher.patch_embed.proj.weight", "dist_token"])] = (
                torch.zeros(3)
            )
        elif how == "junk":
            inner[leaf] = rng.choice(JUNK)
        elif how == "bomb":
            inner[leaf] = Bomb()
        elif how == "swap":
            inner[leaf] = (
                functools.reduce(lambda level, key: level[key], rng.choice(every), tree).clone()
                if not parents
                else tensor.flatten().clone()
            )


def break_bytes(rng: random.Random, data: bytes) -> bytes:
    how = rng.choice(["cut", "flip", "header", "noise", "none"])
    place = rng.randrange(max(1, len(data)))
    if how == "cut":
        return data[:place]
    if how == "noise":
        return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place + 1 :]
    if how in ("flip", "header"):
        place = place % (400 if how == "header" else len(data)) % len(data)
        return data[:place] + bytes([data[place] ^ (1 << rng.randint(0, 7))]) + data[place + 1 :]
    return data


def spoil(rng: random.Random, layout: str, folder: Path) -> Path:
    """Write a broken file of a layout; return its path."""
    if layout in SAFE and rng.random() < 0.5:  # what this package wrote, bytes changed
        files = dict(written(layout))
        hurt = rng.choice(sorted(files))
        files[hurt] = break_bytes(rng, files[hurt])
        if hurt.endswith(".json") and rng.random() < 0.5:
            values = json.loads(written(layout)[hurt])
            values[rng.choice(sorted(values))] = rng.choice(JUNK[:-1])
            files[hurt] = json.dumps(values).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder / "model.safetensors"
    tree = copy.deepcopy(content(layout))
    break_tensors(rng, tree)
    if layout == "augreg":
        path = folder / "x.npz"
        np.savez(path, **{name or "empty": np.asarray(plain(value), dtype=None) for name, value in tree.items()})
    elif layout in SAFE:
        path = folder / "model.safetensors"
        header = written(layout)["model.safetensors"]
        stored = json.loads(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"][ABOUT])
        stored.pop(DIGEST)
        if stored and rng.random() < 0.5:
            stored[rng.choice(sorted(stored))] = rng.choice(JUNK[:-1])
        about = {ABOUT: rng.choice(["{", "[1]", json.dumps(stored), json.dumps(stored)])}
        save_file(
            {name: value.contiguous() for name, value in tree.items() if isinstance(value, Tensor)},
            path,
            metadata=about,
        )
        for name, data in written(layout).items():
            if name.endswith(".json"):
                (folder / name).write_bytes(data)
    else:
        path = folder / "x.pth"
        torch.save(tree, path)
    path.write_bytes(break_bytes(rng, path.read_bytes()))
    return path


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.array([value], dtype=object)


def check(rng: random.Random, layout: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["BOMB"] = f"{place}/crater"
        path = spoil(rng, layout, Path(place))
        try:
            load(layout, path)
        except ValueError as error:
            beside = {file.name for file in path.parent.iterdir()} | {path.name, path.parent.name}
            message = str(error)
        else:
            beside, message = {""}, ""
        assert any(name in message for name in beside), message
        assert not Path(os.environ["BOMB"]).exists()


NO_CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "print_blob": False}


@pytest.mark.parametrize("layout", sorted(CONTENTS))
def test_a_sound_file_of_every_layout_loads(layout: str, tmp_path: Path) -> None:
    """Shows that the other tests fail only because of what they break."""
    if layout in SAFE:
        for name, data in written(layout).items():
            (tmp_path / name).write_bytes(data)
        load(layout, tmp_path / "model.safetensors")
    elif layout == "augreg":
        np.savez(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in content(layout).items()})
        load(layout, tmp_path / "x.npz")
    else:
        torch.save(content(layout), tmp_path / "x.pth")
        load(layout, tmp_path / "x.pth")


@settings(max_examples=150, derandomize=True, **NO_CHECKS)
@given(st.sampled_from(sorted(CONTENTS)), st.integers(0, 2**32))
def test_a_broken_file_gives_a_backbone_or_one_error_that_names_it(layout: str, seed: int) -> None:
    check(random.Random(seed), layout)


@pytest.mark.parametrize("seed", [48876588, 3557481463])  # a position table of one dimension; no filters of patches
def test_tensors_that_do_not_fit_an_encoder_are_named(seed: int) -> None:
    check(random.Random(seed), "")


@pytest.mark.slow
@settings(max_examples=2000, **NO_CHECKS)
@given(st.sampled_from(sorted(CONTENTS)), st.integers(0, 2**32))
def test_2000_broken_files(layout: str, seed: int) -> None:
    check(random.Random(seed), layout)

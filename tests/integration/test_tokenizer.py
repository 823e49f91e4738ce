"""tools/tokenizer_train.py: a discrete VAE and a PCA basis from images to the targets that pretraining predicts."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer import results
from mae_transfer.checkpoints import read
from mae_transfer.checkpoints.tokenizers import load_basis, load_tokenizer
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.engine import checkpoint
from mae_transfer.engine.schedule import Anneal
from mae_transfer.tasks import basis, cached, pretrain, tokenizer
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.reconstruct import reconstruct
from mae_transfer.tasks.tokenizer import TokenizerConfig
from tests.integration.conftest import Torchrun

SHAPES = {
    "train": {"name": "shapes", "length": 24, "size": 32},
    "val": {"name": "shapes", "length": 6, "size": 32, "seed": 1}, "size": 16,
    "augmentation": {"name": "random_crop", "scale": (0.5, 1.0)},
}  # fmt: skip
RUN = {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "progress": False}
VALUES: dict[str, Any] = {
    "scale": "mini", "epochs": 2.0, "batch": 8, "data": SHAPES, "precision": "float32", "optim": {"lr": 1e-3},
    "run": RUN,
    "model": {"codes": 16, "groups": 3, "blocks": 1, "width": 8, "decoder_input": 8},
    "tau": {"start": 1.0, "end": 0.1, "epochs": 2.0}, "kl": {"start": 0.0, "end": 6.6, "epochs": 1.0},
}  # fmt: skip
PRETRAIN: dict[str, Any] = {
    "scale": "mini", "epochs": 1.0, "batch": 8, "data": SHAPES | {"size": 32}, "precision": "float32",
    "optim": {"lr": 1e-3}, "run": RUN,
    "model": {
        "encoder": {"size": None, "dim": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 32},
        "decoder": {"depth": 1, "dim": 16, "heads": 2},
    },
}  # fmt: skip


def config(**changes: Any) -> TokenizerConfig:
    return validate(VALUES | changes, TokenizerConfig, where="test")


def pretraining(**changes: Any) -> PretrainConfig:
    return validate(PRETRAIN | changes, PretrainConfig, where="test")


def payload(folder: Path) -> dict[str, Any]:
    found = checkpoint.load_newest(folder / "checkpoints")
    assert found is not None
    return found.payload


def test_half_a_cosine_and_then_constant() -> None:
    tau = Anneal(start=1.0, end=0.0625, epochs=2.0)
    assert [round(tau.at(step, steps_per_epoch=10, steps=40), 5) for step in (0, 10, 20, 35)] == [
        1.0,
        0.53125,
        0.0625,
        0.0625,
    ]
    share = Anneal(start=1.0, end=0.0625, epochs="50%")
    assert [share.at(step, steps_per_epoch=10, steps=40) for step in range(40)] == [
        tau.at(step, steps_per_epoch=10, steps=40) for step in range(40)
    ]


def test_a_temperature_that_the_run_is_too_short_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs=60 of an annealed value is .* steps, but the run has .*epochs="):
        tokenizer.Tokenizer.launch(config(tau={"start": 1.0, "end": 0.1, "epochs": 60.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_goes_from_images_to_a_pretraining_on_its_tokens(tmp_path: Path) -> None:
    written = tokenizer.Tokenizer.launch(config(), tmp_path / "tok")
    assert {(r.split, r.metric) for r in written} == {
        ("val", "val_mse"),
        ("val", "val_codes_used"),
        ("val", "val_code_perplexity"),
    }
    path = tmp_path / "tok" / "tokenizer.safetensors"
    assert (load_tokenizer(str(path)).codes, load_tokenizer(str(path)).stride) == (16, 4)
    assert list((tmp_path / "tok" / "reconstructions").glob("*.png"))
    spec = {"name": "token", "tokenizer": str(path)}
    pretrain.Pretrain.launch(pretraining(target=spec), tmp_path / "run")  # 4 x 4 patches: a 16-px view at stride 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"accuracy", "perplexity", "classes_used"} <= set(rows[0])
    assert reconstruct(tmp_path / "run", None, mask_ratios=(0.5, 0.75), out=tmp_path / "sheets", most=2)
    tokenizer.Tokenizer.launch(config(seed=1), tmp_path / "other")
    path.write_bytes((tmp_path / "other" / "tokenizer.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"the checkpoint was made with '\+tokenizer.safetensors:"):
        pretrain.Pretrain.launch(pretraining(target=spec), tmp_path / "run", resume=True)


def test_6_steps_are_3_and_3_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(run=RUN | {"save_every": 3})
    tokenizer.Tokenizer.launch(cfg, tmp_path / "whole")
    tokenizer.Tokenizer.launch(cfg, tmp_path / "halves")
    (tmp_path / "halves" / "checkpoints" / "step_00000006.pt").unlink()
    (tmp_path / "halves" / "tokenizer.safetensors").unlink()
    tokenizer.Tokenizer.launch(cfg, tmp_path / "halves", resume=True)
    a, b = payload(tmp_path / "whole"), payload(tmp_path / "halves")
    assert a["step"] == b["step"] == 6
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    one, two = (read(tmp_path / name / "tokenizer.safetensors") for name in ("whole", "halves"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_collapsed_codebook_is_warned_about_with_the_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer.Tokenizer.launch(
            config(least_use=1.0, epochs=1.0, tau={**VALUES["tau"], "epochs": "100%"}), tmp_path / "run"
        )
    assert "of the 16 codes are in use: the codebook has collapsed" in caplog.text
    used = next(r.value for r in results.load(tmp_path / "run" / "results.jsonl")[0] if r.metric == "val_codes_used")
    assert f"only {100 * used:.1f}%" in caplog.text


def test_a_size_that_the_stride_does_not_divide_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"data.size = 18 is not a multiple of the tokenizer's stride 4"):
        config(data=SHAPES | {"size": 18})


def test_a_basis_goes_from_crops_into_the_checkpoint_and_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    basis.fit(pretraining(), tmp_path / "pca", components=10, images=24)
    assert "share of the variance explained by the first: 1: " in capsys.readouterr().out
    path = tmp_path / "pca" / "basis.safetensors"
    assert load_basis(path).statistics == IMAGENET
    cfg = pretraining(target={"name": "pca", "basis": str(path)})
    pretrain.Pretrain.launch(cfg, tmp_path / "run")
    assert torch.equal(payload(tmp_path / "run")["extra"]["target"]["mean"], load_basis(path).mean)
    first = reconstruct(tmp_path / "run", None, mask_ratios=(0.75,), out=tmp_path / "with", most=2)[0].read_bytes()
    path.unlink()
    assert (
        reconstruct(tmp_path / "run", None, mask_ratios=(0.75,), out=tmp_path / "without", most=2)[0].read_bytes()
        == first
    )
    with pytest.raises(
        ValueError, match=r"basis.safetensors' does not exist: fit one with tools/tokenizer_train.py pca"
    ):
        pretrain.Pretrain.launch(cfg, tmp_path / "again")


def test_more_components_than_values_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="193 components cannot be fitted to 384 patches of 192 values"):
        basis.fit(pretraining(), tmp_path, components=193, images=24)


def test_kept_tokens_give_the_same_run_and_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.Tokenizer.launch(config(), tmp_path / "tok")
    reference, still = (
        str(tmp_path / "tok" / "tokenizer.safetensors"),
        SHAPES | {"size": 32, "augmentation": {"name": "none"}},
    )
    spec = {"name": "token", "tokenizer": reference}
    pretrain.Pretrain.launch(pretraining(target=spec, data=still), tmp_path / "plain")
    kept = pretraining(target=spec | {"cache": str(tmp_path / "codes")}, data=still, run=RUN | {"workers": 1})
    pretrain.Pretrain.launch(kept, tmp_path / "kept")
    a, b = payload(tmp_path / "plain"), payload(tmp_path / "kept")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert len(list((tmp_path / "codes").glob("tokens_*.npy"))) == 2  # training and validation images
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").glob("*.npy")}
    pretrain.Pretrain.launch(kept, tmp_path / "again")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").glob("*.npy")} == written


def test_tokens_of_other_images_are_not_taken_and_damaged_ones_are_named(tmp_path: Path) -> None:
    """If the images of a folder are replaced by as many others, their old tokens must not be used (a former bug)."""
    (tmp_path / "images").mkdir()
    data = {"root": str(tmp_path), "size": 32, "augmentation": {"name": "none"}} | {
        part: {"name": "folder", "split": "images", "labelled": False} for part in ("train", "val")
    }
    cfg = pretraining(target={"name": "token", "tokenizer": "random:16/4", "cache": str(tmp_path / "codes")}, data=data)
    for image in ("first", "second"):
        for index in range(8):
            pixels = np.random.default_rng([index, len(image)]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels if image == "first" else pixels // 2).save(tmp_path / "images" / f"{index}.png")
        pretrain.Pretrain.launch(cfg, tmp_path / image)
    kept = sorted((tmp_path / "codes").glob("*.npy"))
    assert len(kept) == 4
    for file in kept:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tokens_\w+\.npy is damaged .*delete it, then it is computed again"):
        pretrain.Pretrain.launch(cfg, tmp_path / "third")


def kept_tokens(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.load(file) for file in folder.glob("tokens_*.npy")}


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pretrain.PretrainConfig:
    """A pretraining of 37 images that keeps its tokens in parts of 8 images."""
    monkeypatch.setattr(cached, "IMAGES_PER_PART", 8)
    tokenizer.Tokenizer.launch(config(), tmp_path / "tok")
    reference = str(tmp_path / "tok" / "tokenizer.safetensors")
    spec = {"name": "token", "tokenizer": reference, "cache": str(tmp_path / "codes")}
    train = {"name": "shapes", "length": 37, "size": 32}
    data = SHAPES | {"size": 32, "augmentation": {"name": "none"}, "train": train}
    return pretraining(target=spec, data=data, run=RUN | {"evaluation_batch": 8})


def test_an_interrupted_computation_of_tokens_continues_with_the_missing_parts(
    keeping: pretrain.PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.Pretrain.launch(keeping, tmp_path / "undisturbed")
    expected = kept_tokens(tmp_path / "codes")
    for file in (tmp_path / "codes").iterdir():
        file.unlink()
    compute, parts = cached._compute, []

    def third_part_fails(missing: Any, rows: Any) -> None:
        def counted(images: range) -> Any:
            parts.append(images.start)
            if len(parts) == 3:
                raise KeyboardInterrupt
            return rows(images)

        compute(missing, counted)

    monkeypatch.setattr(cached, "_compute", third_part_fails)
    with pytest.raises(KeyboardInterrupt):
        pretrain.Pretrain.launch(keeping, tmp_path / "interrupted")
    assert len(list((tmp_path / "codes").glob(".*.npy"))) == 2
    pretrain.Pretrain.launch(keeping, tmp_path / "continued")
    assert parts[:6] == [0, 8, 16, 16, 24, 32]  # the first two parts were not computed again
    found = kept_tokens(tmp_path / "codes")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not list((tmp_path / "codes").glob(".*.npy"))


def test_two_processes_compute_a_half_of_the_tokens_each_and_find_those_of_one(
    keeping: pretrain.PretrainConfig, torchrun: Torchrun, tmp_path: Path
) -> None:
    pretrain.Pretrain.launch(keeping, tmp_path / "one")
    expected = kept_tokens(tmp_path / "codes")
    (tmp_path / "config.py").write_text(keeping.source())
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom mae_transfer.config import load\n"
        "from mae_transfer.tasks import cached, pretrain\ncached.IMAGES_PER_PART = 8\ncompute = cached._compute\n"
        "def counted(parts, *rest):\n    sys.stdout.write(f'computes {len(parts)}\\n')\n    sys.stdout.flush()\n"
        "    compute(parts, *rest)\n"
        "cached._compute = counted\n"
        "cfg = load(sys.argv[1], pretrain.PretrainConfig, overrides=sys.argv[3:])\n"
        "pretrain.Pretrain.launch(cfg, Path(sys.argv[2]))\n"
    )
    changes = [f"target.cache={tmp_path / 'of_two'}", "run.timeout_minutes=5.0"]
    done = torchrun(script, tmp_path / "config.py", tmp_path / "two", *changes)
    assert sorted(re.findall(r"computes (\d)", done.stdout))[-2:] == ["2", "3"]  # of five parts
    found = kept_tokens(tmp_path / "of_two")
    assert sorted(map(bytes, found.values())) == sorted(map(bytes, expected.values()))


def test_tokens_of_random_crops_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data.augmentation is 'random_crop', which is random: set data.augmentation.name=none"
    ):
        pretrain.Pretrain.launch(
            pretraining(target={"name": "token", "tokenizer": "random:16/4", "cache": str(tmp_path)}), tmp_path / "run"
        )

"""Start and resume of a pretraining: moved data, other values, released weights, and launches that cannot work."""

import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from pretrain_runs import config, losses, stop_at

from mae_transfer.checkpoints.fit import released_name
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.engine.dist import Dist
from mae_transfer.models.mae import MAE
from mae_transfer.targets import TokenConfig
from mae_transfer.tasks import pretrain
from mae_transfer.tasks.reconstruct import reconstruct


def test_the_data_may_lie_elsewhere_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in ("job1", "job2"):
        for index in range(8):
            path = tmp_path / job / "in" / "train" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (index * 30, 10, 10)).save(path)
    cfgs = [
        config(data={"root": str(tmp_path / job / "in"), "train": {"name": "folder", "labelled": False}, "size": 16})
        for job in ("job1", "job2")
    ]
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    pretrain.Pretrain.launch(cfgs[0], tmp_path / "run")
    monkeypatch.undo()
    assert cfgs[0].digest() == cfgs[1].digest()
    assert pretrain.Pretrain.launch(cfgs[1], tmp_path / "run", resume=True)[0].steps == 5


def test_other_values_of_a_run_that_goes_on_are_taken_where_its_config_was_deleted(tmp_path: Path) -> None:
    """The remedy that the error names."""
    pretrain.Pretrain.launch(config(), tmp_path / "run")
    (tmp_path / "run" / "config.py").unlink()
    assert pretrain.Pretrain.launch(config(epochs=6.0), tmp_path / "run", resume=True)[0].steps == 12


def test_pictures_show_the_runs_own_mask_where_none_is_asked_for(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(mask={"name": "grid"}, epochs=1.0), tmp_path / "run")
    assert [path.name for path in reconstruct(tmp_path / "run", None, mask_ratios=None, out=tmp_path, most=1)] == [
        "grid.png"
    ]


def test_released_weights_with_a_decoder_are_continued_and_drawn(tmp_path: Path) -> None:
    pretrain.Pretrain.launch(config(epochs=1.0), tmp_path / "run")
    state = next((tmp_path / "run" / "checkpoints").glob("*.pt"))
    model = MAE(config().model, 48)
    pretrain.load_start(model, str(state), IMAGENET)
    released = {released_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": released}, tmp_path / "mae_full.pth")
    starts = [f"mae-full:{tmp_path / 'mae_full.pth'}", str(state)]
    first = []
    for index, start in enumerate(starts):
        pretrain.Pretrain.launch(config(start=start, epochs=1.0), tmp_path / str(index))
        first.append(losses(tmp_path / str(index))[1])
    assert first[0] == first[1]
    assert first[0] != losses(tmp_path / "run")[1]
    (tmp_path / "cfg.py").write_text(config().source())
    sheets = [
        reconstruct(start, None, mask_ratios=None, out=tmp_path / f"sheet{index}", most=2, config=tmp_path / "cfg.py")
        for index, start in enumerate(starts)
    ]
    assert sheets[0][0].read_bytes() == sheets[1][0].read_bytes()
    with pytest.raises(ValueError, match=r"give a released MAE with its decoder .*or a step_\*.pt"):
        pretrain.load_start(model, "mae:x.pth", IMAGENET)
    own = config().model
    other = MAE(own.model_copy(update={"encoder": own.encoder.model_copy(update={"norm_eps": 1e-5})}), 48)
    with pytest.raises(ValueError, match="has norm_eps = 1e-06, but model.encoder has 1e-05: set it to the same"):
        pretrain.load_start(other, str(state), IMAGENET)
    with pytest.raises(ValueError, match="as recorded with its weights, and the config sets"):
        pretrain.load_start(model, str(state), Statistics((0.5,) * 3, (0.5,) * 3))
    torch.save({"model": {k: v for k, v in released.items() if "decoder" not in k}}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="missing: decoder"):
        pretrain.load_start(model, f"mae-full:{tmp_path / 'mae.pth'}", IMAGENET)


def test_the_record_names_the_tokenizer_of_dall_e(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenConfig(tokenizer="random:16/4")
    opened = pretrain.open_target(tokens, config().model.encoder, IMAGENET)
    monkeypatch.setattr(pretrain, "open_target", lambda *_: opened)
    found = pretrain.Pretrain.launch(
        config(target={"name": "token", "tokenizer": "dalle:encoder.pkl"}, epochs=1.0), tmp_path / "run"
    )
    record = found[0].record
    assert record is not None
    assert (record.inputs["tokenizer"].name, record.inputs["tokenizer"].layout) == ("encoder.pkl", "dalle")


def test_a_layer_decay_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="pretraining has one rate for all layers"):
        config(optim={"lr": 1e-3, "layer_decay": 0.75})


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match=r"srun started 4 processes.*start one task per node and torchrun in it"):
        pretrain.Pretrain.launch(config(), tmp_path / "run")


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_where_bfloat16_is_the_slow_choice_the_run_says_so(
    precision: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae_transfer.tasks.run.CPU_HAS_AMX", amx)
    cfg = config(precision=precision)
    task = pretrain.Pretrain(cfg, Dist(torch.device("cpu")))
    task.open()
    assert ("--set precision=float32" in task.plan(task.loop())) == (precision == "bfloat16" and not amx)


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_state_that_holds_nan_is_not_resumed(part: str, tmp_path: Path) -> None:
    cfg = config(epochs=1.0, ema_decay=0.9)
    pretrain.Pretrain.launch(cfg, tmp_path / "run")
    state = next((tmp_path / "run" / "checkpoints").glob("*.pt"))
    payload = torch.load(state, weights_only=True)
    payload[part]["encoder.norm.bias"][0] = float("nan")
    torch.save(payload, state)
    name = r"ema\.encoder\.norm\.bias" if part == "ema" else r"encoder\.norm\.bias"
    with pytest.raises(ValueError, match=rf"{state.name} holds values that are not finite, in {name}; delete it"):
        pretrain.Pretrain.launch(cfg, tmp_path / "run", resume=True)

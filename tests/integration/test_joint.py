"""Pretraining by joint embedding, end to end: five systems, resume, accumulation, processes, export, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_runs import HEAD, MLP, SYSTEMS, Values, config, values
from PIL import Image
from pretrain_runs import ROOT, assert_equal, log, losses, payload

from mae_transfer import checkpoints, results
from mae_transfer.config import validate
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.state import LoopConfig
from mae_transfer.models.joint import Joint
from mae_transfer.objectives import DistillConfig
from mae_transfer.suite.report.page import last_alarm
from mae_transfer.tasks.backbones import pretrain_of
from mae_transfer.tasks.joint import JointConfig, JointEmbedding
from tests.integration.conftest import Torchrun

CPU = Dist(torch.device("cpu"))


def changed(system: str, path: str, **options: Any) -> dict[str, Values]:
    """Return {path: its values with these options}, for `config`."""
    return {path: values(system)[path] | options}


QUICK = ("ibot", "moby")
"""Systems whose runs are among the fast tests: with masks and a centre of patches, with a queue."""
EACH = [pytest.param(system, marks=() if system in QUICK else pytest.mark.slow) for system in SYSTEMS]


@contextmanager
def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send SIGTERM to a run when it computes the loss of a step."""
    loss = JointEmbedding.loss

    def stopping(self: Any, model: Any, batch: Any, at: Any) -> Any:
        if at.number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch, at)

    with monkeypatch.context() as patched:
        patched.setattr(JointEmbedding, "loss", stopping)
        yield


@pytest.mark.parametrize("system", EACH)
def test_ten_steps_are_five_and_five_resumed_bit_for_bit(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation, centre or queue, moving rates, drop path and masks; workers 0 -> 1."""
    JointEmbedding.launch(config(system), tmp_path / "whole")
    with stopped_at(4, monkeypatch):
        assert JointEmbedding.launch(config(system), tmp_path / "halves") == []
    JointEmbedding.launch(config(system, **changed(system, "run", workers=1)), tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "halves"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    held = payload(tmp_path / "whole")["held"]
    assert held.keys() == {"dino": {"centres"}, "moby": {"queue"}, "moco_v3": set()}.get(system, {"centres"})
    assert not [
        name for name, value in held.items() if torch.equal(value, payload(tmp_path / "halves", 5)["held"][name])
    ]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
def test_colours_on_the_device_train_as_those_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with compiled blocks and colours."""
    find = torch._dynamo.lookup_backend
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: find("eager"))
    model = values("ibot")["model"]
    still = model | {"encoder": model["encoder"] | {"drop_path": 0.0}}  # compiled, it draws other samples
    ways = {"worker": ("worker", False), "device": ("device", False), "compiled": ("device", True)}
    for name, (where, compiled) in ways.items():
        run = values("ibot")["run"] | {"augment_on": where, "compile": compiled}
        JointEmbedding.launch(config("ibot", run=run, epochs=2.0, model=still), tmp_path / name)
    for name in ("device", "compiled"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "worker"), rel=1e-4)


@pytest.mark.parametrize("system", EACH)
def test_a_run_writes_its_numbers_its_views_and_its_encoder(system: str, tmp_path: Path) -> None:
    written = JointEmbedding.launch(config(system, evaluate_epochs=2.0), tmp_path)
    assert [(r.task, r.metric, r.backbone) for r in written] == [("pretrain", "val_feature_spread", "vit-16x2/4")]
    assert results.load(tmp_path / "results.jsonl")[0] == written
    name = {"dino": "DINO", "ibot": "iBOT", "esvit": "EsViT", "moco_v3": "MoCo v3", "moby": "MoBY"}[system]
    method = f"{name}, 2{'' if system in ('moco_v3', 'moby') else ' + 2'} views, 5 ep"
    assert written[0].pretrain == written[0].record.method == method
    assert list((tmp_path / "reconstructions").iterdir())
    rows = [row for row in log(tmp_path) if row["kind"] == "train"]
    names = {"accuracy"} if system in ("moco_v3", "moby") else {"teacher_entropy", "teacher_mean_entropy"}
    assert names | {"feature_spread"} <= rows[0].keys()
    exported = checkpoints.load_backbone(tmp_path / "backbone.safetensors").state_dict()
    part = "model" if system in ("moco_v3", "moby") else "ema"  # the trained encoder, as released, or the teacher
    assert_equal(dict(exported), {name: payload(tmp_path)[part][f"encoder.{name}"] for name in exported})
    assert checkpoints.metadata(tmp_path / "backbone.safetensors")["pretrain"] == method


@pytest.mark.parametrize("system", [case for case in EACH if case.values[0] not in ("moco_v3", "moby")])
def test_accumulation_changes_neither_centre_nor_teacher_nor_gradient(system: str, tmp_path: Path) -> None:
    """1 x 8 images against 4 x 2, in float64. SGD of the first step's gradient shows it in the weights."""
    torch.set_default_dtype(torch.float64)
    try:
        model = values(system)["model"] | {"encoder": values(system)["model"]["encoder"] | {"drop_path": 0.0}}
        optim = values(system)["optim"] | {"algorithm": {"name": "sgd"}, "lr": 0.1}
        for size in (8, 2):
            cfg = config(system, model=model, optim=optim, **changed(system, "run", device_batch=size))
            JointEmbedding.launch(cfg, tmp_path / str(size))
    finally:
        torch.set_default_dtype(torch.float32)
    whole, parts = (payload(tmp_path / size) for size in ("8", "2"))
    for part in ("held", "ema", "model"):
        torch.testing.assert_close(whole[part], parts[part], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(losses(tmp_path / "8"), losses(tmp_path / "2"), rtol=1e-7, atol=0)


@pytest.mark.slow
def test_two_processes_train_as_one(torchrun: Torchrun, tmp_path: Path) -> None:
    model = values("ibot")["model"] | {"encoder": values("ibot")["model"]["encoder"] | {"drop_path": 0.0}}
    cfg = config("ibot", model=model, **changed("ibot", "run", device_batch=None))
    JointEmbedding.launch(cfg, tmp_path / "one")
    (tmp_path / "config_of_test.py").write_text(cfg.source())
    torchrun(ROOT / "tools" / "pretrain.py", tmp_path / "config_of_test.py", "--work-dir", tmp_path / "two")
    a, b = (losses(tmp_path / name) for name in ("one", "two"))
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-4)
    one, two = (payload(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one["held"], two["held"], rtol=1e-3, atol=1e-5)
    spreads = [results.load(tmp_path / name / "results.jsonl")[0][0].value for name in ("one", "two")]
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-4)  # 3 images over 2 processes


@pytest.mark.slow
def test_prototypes_and_the_stem_stay_frozen_while_they_should(tmp_path: Path) -> None:
    def stay(system: str, name: str, **changes: Any) -> list[bool]:
        """Return whether a tensor is the same after steps 2 and 4 as after step 1, to the last bit."""
        folder = tmp_path / f"{system}_{name}"
        run = values(system)["run"] | {"save_every": 1, "keep_last": 10}
        JointEmbedding.launch(config(system, run=run, epochs=2.0, **changes), folder)
        found = [payload(folder, step)["model"][name] for step in (1, 2, 4)]
        return [torch.equal(found[0], later) for later in found[1:]]

    assert stay("dino", "head.prototypes", **changed("dino", "objective", warmup_epochs=2)) == [True, False]
    assert stay("esvit", "patch_head.length") == [True, False]
    assert stay("moco_v3", "encoder.patch_embed.proj.weight") == [True, True]
    assert stay("moby", "encoder.patch_embed.proj.weight") == [False, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:timm")  # timm resamples tables
def test_a_swin_is_trained_and_loads_into_transfers(tmp_path: Path) -> None:
    """EsViT's encoder: narrow views are smaller than the model's images."""
    swin = {"timm": "swin_tiny_patch4_window7_224", "encoder": {"image_size": 32, "drop_path": 0.1}}
    data = values("esvit")["data"] | {"size": 32, "views": {"narrow": 1, "narrow_size": 16}}
    objective = HEAD | {"patches": "matched", "shared": False, "fixed_norm": False, "freeze_epochs": 0.0}
    cfg = config("esvit", model=swin, data=data, epochs=0.5, batch=4, schedule={}, objective=objective)
    written = JointEmbedding.launch(cfg, tmp_path)
    assert written[0].backbone == "swin_tiny_patch4_window7_224"
    loaded = checkpoints.load(tmp_path / "backbone.safetensors", changes={"image_size": 64, "final_norm": False})
    images = torch.zeros(1, 3, 64, 64)
    assert [part.shape[1] for part in loaded.backbone(images, taps=(0, 1, 2, 3)).maps] == [96, 192, 384, 768]
    teacher = payload(tmp_path, 2)["ema"]
    same = checkpoints.load_backbone(tmp_path / "backbone.safetensors").model.state_dict()
    assert_equal(dict(same), {name: teacher[f"encoder.model.{name}"] for name in same})


def weights_at_first(cfg: JointConfig) -> dict[str, torch.Tensor]:
    """Return the weights of student and teacher before the first step, which must be the same."""
    task = JointEmbedding(cfg, CPU)
    task.open()
    state = task.build_state(task.loop())
    assert state.averaged is not None
    assert_equal(dict(state.bare.state_dict()), dict(state.averaged.state_dict()))
    return dict(state.bare.state_dict())


@pytest.mark.parametrize("system", ["ibot", "moby"])
def test_a_run_starts_from_a_state_with_its_heads_and_from_a_backbone_with_fresh_ones(
    system: str, tmp_path: Path
) -> None:
    JointEmbedding.launch(config(system, epochs=2.0), tmp_path)
    state = tmp_path / "checkpoints" / "step_00000004.pt"
    part = payload(tmp_path, 4)["ema" if system == "ibot" else "model"]  # what the run exports
    assert_equal(weights_at_first(config(system, start=str(state))), dict(part))
    fresh, found = (
        weights_at_first(config(system, **start)) for start in ({}, {"start": str(tmp_path / "backbone.safetensors")})
    )
    for name, value in found.items():
        assert torch.equal(value, (part if name.startswith("encoder.") else fresh)[name]), name
    task = JointEmbedding(config(system, start=str(state)), CPU)
    task.open()
    assert task.inputs["start"].kind == "run"
    assert task.inputs["start"].record is not None
    assert task.inputs["start"].record.method == task.method.replace("5 ep", "2 ep")


def test_a_start_that_does_not_fit_is_refused_and_names_the_field(tmp_path: Path) -> None:
    JointEmbedding.launch(config("dino", epochs=1.0, objective=HEAD), tmp_path)
    backbone, state = tmp_path / "backbone.safetensors", tmp_path / "checkpoints" / "step_00000002.pt"
    model = values("dino")["model"]

    def start(reference: Path, **encoder: Any) -> None:
        changes = {"model": model | {"encoder": model["encoder"] | encoder}, "start": str(reference)}
        JointEmbedding(config("dino", **changes), CPU).open()

    with pytest.raises(ValueError, match="has heads = 2, but model.encoder has 4: set it to the same"):
        start(backbone, heads=4)
    for field, value in (("heads", 4), ("dim", 32), ("norm_eps", 1e-5)):
        with pytest.raises(ValueError, match=f"has {field} = .*, but model.encoder has {value}: set it to the same"):
            start(state, **{field: value})
    for reference in (backbone, state):
        with pytest.raises(ValueError, match="as recorded with its weights, and the config sets"):
            JointEmbedding(config("dino", mean=(0.5,) * 3, std=(0.5,) * 3, start=str(reference)), CPU).open()
    for system, objective in (("dino", HEAD | {"out": 16}), ("moby", values("moby")["objective"])):
        with pytest.raises(ValueError, match="has the heads of another objective: set objective as there, or start"):
            JointEmbedding(config(system, objective=objective, start=str(state)), CPU).open()
    content = torch.load(state, weights_only=True)
    torch.save(content | {"record": None}, tmp_path / "step_1.pt")
    with pytest.raises(ValueError, match="has no record of its run: it is of an earlier version; give the backbone"):
        checkpoints.load(tmp_path / "step_1.pt")


def test_a_training_state_is_a_backbone_and_says_how_long_it_was_trained(tmp_path: Path) -> None:
    """The monitor, curves and transfers need no export of it."""
    run = values("moby")["run"] | {"save_every": 4, "keep_last": 10}
    JointEmbedding.launch(config("moby", run=run), tmp_path)
    state = tmp_path / "checkpoints" / "step_00000010.pt"
    exported = checkpoints.load(tmp_path / "backbone.safetensors")
    loaded = checkpoints.load(state)
    assert_equal(dict(loaded.backbone.state_dict()), dict(exported.backbone.state_dict()))
    assert (loaded.statistics, loaded.recorded, loaded.backbone.name()) == (exported.statistics, True, "vit-16x2/4")
    assert pretrain_of(str(state)) == "MoBY, 2 views, 5 ep"
    early = state.with_name("step_00000004.pt")
    assert pretrain_of(str(early)) == "MoBY, 2 views, 5 ep, after 2 ep"
    origin = checkpoints.origin(str(early), checkpoints.PREFIXES, sha256=None)
    assert origin.record is not None
    assert (origin.record.epochs, origin.record.reached, origin.record.length) == (5.0, 2.0, "2 of 5")


@pytest.mark.slow
def test_a_monitor_measures_the_exported_encoder(image_folder: Path, tmp_path: Path) -> None:
    watched = {"data": {"root": str(image_folder)}, "every_epochs": 3.0, "ks": (1, 3), "pool": "cls"}
    JointEmbedding.launch(config("dino", monitor=watched), tmp_path / "with")
    JointEmbedding.launch(config("dino"), tmp_path / "without")
    figures = [row for row in log(tmp_path / "with") if row["kind"] == "monitor"]
    assert [row["step"] for row in figures] == [6, 10]
    assert any("knn" in name for name in figures[0])
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_an_alarm_names_a_collapse_that_lasts(tmp_path: Path) -> None:
    fine = {"feature_spread": 0.6, "teacher_entropy": 0.7, "teacher_mean_entropy": 0.9}

    def alarms(steps: int, collapsed: range, change: dict[str, float], **options: Any) -> list[str]:
        """Return the alarms of a run that logs every 20 steps and is collapsed in some of them."""
        task = JointEmbedding(config("dino", **options), CPU)
        task.open()
        task.state, task.steps = task.build_state(task.loop()), steps
        lines = range(20, steps + 1, 20)
        return [words for n in lines if (words := task.inspect(n, fine | change if n in collapsed else fine))]

    flat = {"feature_spread": 0.01}
    assert alarms(400, range(300, 400), flat, alarm_steps=100) == [
        "collapse between steps 280 and 380: all images have nearly the same features; lower the learning rate, or "
        "raise the batch"
    ]
    assert alarms(400, range(300, 370), flat) == []
    assert len(alarms(400, range(370, 401), flat)) == 1  # its end
    assert len(alarms(400, range(401), {"teacher_entropy": 0.999})) == 4
    assert "one prototype" in alarms(400, range(401), {"teacher_mean_entropy": 0.001})[0]
    assert alarms(40_000, range(10_000, 11_900), flat) == []
    assert len(alarms(40_000, range(10_000, 12_100), flat)) == 1


def test_a_collapsed_run_says_so_in_its_log_and_a_resumed_one_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images and views are the same, so all features are, too."""
    for split in ("train", "val"):
        (tmp_path / "grey" / split / "one").mkdir(parents=True)
        for number in range(16):
            Image.new("RGB", (24, 24), (90, 90, 90)).save(tmp_path / "grey" / split / "one" / f"{number}.png")
    plain = {"jitter_share": 0.0, "grey": 0.0, "blur": (0.0,) * 3, "solarise": (0.0,) * 3}
    data = {"root": str(tmp_path / "grey"), "size": 16, "views": {"narrow": 0, **plain}}
    data |= {part: {"name": "folder", "split": part} for part in ("train", "val")}
    model = values("dino")["model"] | {"encoder": values("dino")["model"]["encoder"] | {"drop_path": 0.0}}
    cfg = config("dino", data=data, model=model, alarm_steps=6, optim={"lr": 1e-12}, schedule={})
    JointEmbedding.launch(cfg, tmp_path / "whole")
    with stopped_at(3, monkeypatch):
        JointEmbedding.launch(cfg, tmp_path / "halves")
    JointEmbedding.launch(cfg, tmp_path / "halves", resume=True)
    for run in ("whole", "halves"):
        rows = [row for row in log(tmp_path / run) if row["kind"] == "alarm"]
        assert [row["step"] for row in rows] == [7]
        assert rows[0]["words"].startswith("collapse between steps 1 and 7: ")
        assert last_alarm(tmp_path / run / "log.jsonl") == rows[0]["words"]


BAD: dict[str, tuple[str, Values, str]] = {
    "a queue smaller than the batch": (
        "moby", {"objective": MLP | {"queue": 4}}, "objective.queue = 4 is smaller than batch = 8",
    ),
    "one wide view": ("dino", {"data": {"views": {"wide": 1}, "size": 16}}, "data.views.wide = 1: .* set it to 2"),
    "three wide views of a contrast": (
        "moby", {"data": {"views": {"wide": 3, "narrow": 0}, "size": 16}}, "compares two wide views; set it to 2",
    ),
    "narrow views of a contrast": (
        "moby", {"data": {"views": {"narrow": 2, "narrow_size": 8}, "size": 16}}, "data.views.narrow = 2: .* to 0",
    ),
    "a mask without patches": ("dino", {"mask": {}}, "mask is set, but only objective.patches = 'masked' uses it"),
    "a mask that hides no patch": ("ibot", {"mask": {"ratio": 0.02, "spread": 0.0}}, "hides no patch of a 4x4 grid"),
    "patches without a mask": ("dino", {"objective": HEAD | {"patches": "masked"}}, "nothing is hidden: set mask"),
    "no teacher": ("dino", {"ema_decay": None}, "ema_decay is not set, but the average is the teacher"),
    "a narrow view that patches do not fit": (
        "dino", {"data": {"views": {"narrow_size": 10}, "size": 16}},
        r"data\.views\.narrow_size = 10 is no multiple of model\.encoder\.patch = 4: change one",
    ),
    "a warm-up longer than the run": (
        "dino", {"epochs": 2.0}, "objective.warmup_epochs = 3 is longer than epochs = 2: shorten it, give a share",
    ),
    "a freeze longer than the run": (
        "ibot", {"epochs": 0.5}, "objective.freeze_epochs = 1 is longer than epochs = 0.5: .* '30%', or train longer",
    ),
    "a head for patches without patches": (
        "dino", {"objective": HEAD | {"shared": False}}, "shared = False has no effect: patches have no head",
    ),
    "a size of narrow views without them": (
        "moby", {"data": {"views": {"narrow": 0, "narrow_size": 8}, "size": 16}}, "narrow_size = 8 has no effect",
    ),
    "a share of narrow views without them": (
        "moby", {"data": {"views": {"narrow": 0, "narrow_scale": (0.1, 0.2)}, "size": 16}}, "narrow_scale = .*no",
    ),
    "masks of a Swin": (
        "ibot", {"model": {"timm": "swin_tiny_patch4_window7_224", "encoder": {"image_size": 16}}},
        r"model\.timm = 'swin_tiny_patch4_window7_224' has no mask token: use a ViT \(model\.encoder\) or objective",
    ),
    "a frozen stem of a Swin": (
        "moby", {"model": {"timm": "swin_tiny_patch4_window7_224", "encoder": {"image_size": 16}, "freeze_stem": True}},
        r"model\.freeze_stem = True, but only a ViT \(model\.encoder\) has its patch projection",
    ),
    "a decay below 0": (
        "dino", {"ema_decay": {"start": -0.5, "end": 1.0, "epochs": 1.0}}, r"^test: ema_decay\.start = -0\.5: Input",
    ),
    "a norm below 0": (
        "dino", {"optim": {"lr": 1e-3, "clip_norm": {"each": -1.0}}}, r"^test: optim\.clip_norm\.each = -1\.0: Input",
    ),
    "a ViT's field beside a model of timm": (
        "dino", {"model": {"timm": "swin_tiny_patch4_window7_224", "encoder": {"image_size": 16, "patch": 4}}},
        r"model\.encoder\.patch = 4 has no effect on model\.timm = 'swin_tiny_patch4_window7_224'",
    ),
    "a decay above 1": (
        "dino", {"ema_decay": {"start": 0.9, "end": 1.5, "epochs": 1.0}}, "end at 1.0 or below",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case: str) -> None:
    system, change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        config(system, **change)


WHOLE = values("esvit")["data"] | {"size": 32, "views": {"narrow": 0}}


def timm_model(name: str) -> Values:
    return {"timm": name, "encoder": {"image_size": 32}}


def test_a_model_of_timm_may_pool_a_wider_vector_than_its_last_map() -> None:
    """1024 values of 288 channels. Its batch norms keep their statistics until the first step."""
    task = JointEmbedding(config("dino", model=timm_model("mobilenetv3_small_050"), data=WHOLE), CPU)
    task.open()
    means = {name: value for name, value in task.joint.state_dict().items() if name.endswith("running_mean")}
    assert means
    assert not any(value.any() for value in means.values())
    assert task.joint(torch.zeros(2, 2, 3, 32, 32)).features.shape == (2, 2, 1024)
    assert task.evaluate(task.joint.eval(), 0).keys() == {"val_feature_spread"}


def test_shares_of_a_run_are_epochs_of_it() -> None:
    shares = validate(HEAD | {"warmup_epochs": "30%", "freeze_epochs": "1%"}, DistillConfig, where="test")
    assert [shares.timed(epochs).warmup_epochs for epochs in (1.0, 10.0, 50.0)] == [1, 3, 15]
    timed = shares.timed(50.0)
    assert (timed.freeze_epochs, timed.is_live(0.49), timed.is_live(0.5)) == (0.5, False, True)
    whole = validate(HEAD | {"warmup_epochs": 15, "freeze_epochs": 0.5}, DistillConfig, where="test")
    assert whole.timed(50.0) == whole
    assert [timed.temperature(e) for e in range(20)] == [whole.temperature(e) for e in range(20)]


def test_a_shared_warm_up_trains_as_one_in_epochs(tmp_path: Path) -> None:
    shares = {"warmup_epochs": "60%", "freeze_epochs": "20%"}
    for name, lengths in (("epochs", {}), ("shares", shares)):
        JointEmbedding.launch(config("dino", **changed("dino", "objective", **lengths)), tmp_path / name)
    assert losses(tmp_path / "epochs") == losses(tmp_path / "shares")


def test_a_run_is_resumed_with_its_own_objective_only(tmp_path: Path) -> None:
    JointEmbedding.launch(config("moby", epochs=1.0), tmp_path)
    for option, found in (({"queue": 16}, "queue: "), ({"out": 16}, "queue: ")):
        (tmp_path / "config.py").unlink(missing_ok=True)
        other = config("moby", epochs=2.0, **changed("moby", "objective", **option))
        with pytest.raises(ValueError, match=f"objective \\(set it as when the run began\\): .*{found}"):
            JointEmbedding.launch(other, tmp_path, resume=True)


def test_what_a_run_cannot_do_is_refused_before_it_starts(tmp_path: Path) -> None:
    split = config("moco_v3", **changed("moco_v3", "run", device_batch=4))
    with pytest.raises(ValueError, match=r"split its batch into 2 micro-steps: .* from a queue \(objective.queue=4096"):
        JointEmbedding.launch(split, tmp_path)
    single = config("moby", **changed("moby", "run", device_batch=1))
    with pytest.raises(ValueError, match="batch norms, and this run would have one image per forward pass"):
        JointEmbedding.launch(single, tmp_path)
    cfg = config("moco_v3")
    for dist, found in ((Dist(CPU.device, world=2), "norms are synchronised on cuda only"), (CPU, None)):
        task = JointEmbedding(cfg, dist)
        loop = LoopConfig(steps=4, steps_per_epoch=2, global_batch=8)
        with pytest.raises(ValueError, match=found) if found else nullcontext():
            task.prepare(loop)
    with pytest.raises(
        ValueError, match=r"timm = 'mobilenetv3_small_050' has features of width 288 for patches and 1024"
    ):
        JointEmbedding(config("esvit", model=timm_model("mobilenetv3_small_050"), data=WHOLE), CPU).open()
    narrow = WHOLE | {"views": {"narrow": 1, "narrow_size": 20}}
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' cannot encode images of 20 px \(data\.size = 32, d"):
        JointEmbedding(config("dino", model=timm_model("vit_tiny_patch16_224"), data=narrow), CPU).open()
    with pytest.raises(ValueError, match="the data set is smaller than one batch"):
        JointEmbedding.launch(config("dino", batch=64), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tool_estimates_and_shows(tmp_path: Path) -> None:
    (tmp_path / "config_of_test.py").write_text(config("ibot").source())
    command = [sys.executable, str(ROOT / "tools" / "pretrain.py"), str(tmp_path / "config_of_test.py")]
    for option, expected in (("--show", "objective.patches = 'masked'"), ("--estimate", "images/s, ")):
        done = subprocess.run([*command, option], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


GOLDEN = ROOT / "tests" / "golden" / "joint_losses.json"


def golden_losses(system: str, folder: Path) -> list[float]:
    """Return the losses of the run in float64 on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        JointEmbedding.launch(config(system), folder)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    return list(losses(folder).values())


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.6 draws other numbers from the same seed")
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_losses_are_the_committed_ones(system: str, tmp_path: Path) -> None:
    assert golden_losses(system, tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())[system], rel=1e-6)


def test_a_joint_model_is_what_the_config_says() -> None:
    task = JointEmbedding(config("ibot"), CPU)
    task.open()
    assert isinstance(task.joint, Joint)
    assert task.joint.mask_token is not None
    assert task.joint.patch_head is None

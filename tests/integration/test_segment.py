"""Segmentation end to end, on files in ADE20K's layout: results, exact resume, evaluation, ranks and bad input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pretrain_runs import ROOT, Values, assert_equal, log, payload

from mae_transfer import checkpoints, results
from mae_transfer.config import load, validate
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.data.dense_shapes import write_ade
from mae_transfer.engine.log import NonFiniteLoss
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks import segment
from mae_transfer.tasks.segment import SegmentConfig
from tests.integration.conftest import Torchrun

STEPS = 6
ENCODER = {"size": None, "dim": 16, "depth": 4, "heads": 2, "patch": 4, "image_size": 16}
RUN = {
    "device": "cpu",
    "workers": 0,
    "device_batch": 2,
    "log_every": 1,
    "save_minutes": None,
    "progress": False,
    "pictures": 2,
}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "backbone.safetensors"
    about = {"pretrain": "MAE for a test", "recipe": IMAGENET._asdict()}
    checkpoints.export_backbone(path, ViT(ViTConfig.model_validate(ENCODER)), about=about)
    return path


@pytest.fixture
def base(tmp_path: Path, backbone: Path) -> Values:
    """6 steps on 8 images, with everything on that could break an exact resume."""
    write_ade(tmp_path / "scenes", train=8, val=3, size=40)
    return {
        "scale": "mini", "epochs": 3.0, "batch": 4, "precision": "float32", "ema_decay": 0.9,
        "backbone": {"reference": str(backbone)},
        "data": {"root": str(tmp_path / "scenes"), "size": 32, "scale": (80, 40), **sets()},
        "protocol": {"name": "upernet", "channels": 8, "drop_path": 0.3, "relative_positions": "per_block",
            "layer_scale": 1.0},
        "optim": {"lr": 1e-2, "layer_decay": 0.75}, "schedule": {"kind": "linear", "warmup_epochs": 1.0}, "run": RUN,
    }  # fmt: skip


def sets(**options: Any) -> Values:
    """Training and validation set; so few scenes need not show every class."""
    return {
        name: {"name": "ade", "split": split, "allow_absent": True, **options}
        for name, split in (("train", "training"), ("val", "validation"))
    }


def config(values: Values, **changes: Any) -> SegmentConfig:
    return validate(values | changes, SegmentConfig, where="test")


def test_a_run_leaves_numbers_and_pictures(base: Values, backbone: Path, tmp_path: Path) -> None:
    cfg = config(base)
    written = segment.Segment.launch(cfg, tmp_path / "run")
    assert load(tmp_path / "run" / "config.py", SegmentConfig) == cfg
    assert results.load(tmp_path / "run" / "results.jsonl") == (written, [])
    assert [(r.metric, r.task, r.protocol, r.unit) for r in written] == [
        (name, "segment", "upernet", "%") for name in ("mIoU", "mAcc", "aAcc")
    ]
    first = written[0]
    assert (first.backbone, first.pretrain, first.checkpoint_sha256) == (
        "vit-16x4/4",
        "MAE for a test",
        checkpoints.sha256(backbone),
    )
    assert (first.tokens_per_image, first.steps, first.images_seen, first.dataset) == (65, 6, 24, "scenes")
    assert first.flops_per_image
    assert sorted(path.name for path in (tmp_path / "run" / "segmentations").iterdir()) == ["0000.png", "0001.png"]
    assert (tmp_path / "run" / "curves.png").is_file()
    rows = log(tmp_path / "run")
    assert {"decode_loss", "aux_loss", "accuracy"} <= rows[0].keys()
    assert rows[0]["loss"] == pytest.approx(rows[0]["decode_loss"] + rows[0]["aux_loss"])


@pytest.mark.parametrize("protocol", ["upernet", "linear"])
def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(
    base: Values, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation 2, random crops and colours, drop path, dropout, EMA, running statistics; workers 0 -> 1."""
    changes = {"protocol": {"name": "linear"}, "optim": {"lr": 1e-2}} if protocol == "linear" else {}
    cfg = config(base, **changes)
    segment.Segment.launch(cfg, tmp_path / "whole")
    loss = segment.Segment.loss

    def stopping(self: Any, model: Any, batch: Any, at: Any) -> Any:
        if (at.number, at.micro) == (2, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch, at)

    with monkeypatch.context() as patched:
        patched.setattr(segment.Segment, "loss", stopping)
        assert segment.Segment.launch(cfg, tmp_path / "halves") == []
    assert payload(tmp_path / "halves", 3)["step"] == 3
    again = cfg.model_copy(update={"run": cfg.run.model_copy(update={"workers": 1})})
    segment.Segment.launch(again, tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "halves", STEPS))
    whole, halves = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("whole", "halves"))
    assert [r.value for r in whole] == [r.value for r in halves]


def test_kill_9_loses_only_the_steps_since_the_last_save(base: Values, tmp_path: Path) -> None:
    cfg = config(base, run=RUN | {"save_every": 2, "pictures": 0})
    segment.Segment.launch(cfg, tmp_path / "whole")
    (tmp_path / "cfg.py").write_text(cfg.source())
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from mae_transfer.config import load\nfrom mae_transfer.tasks import segment\n"
        "losses = segment.Segmenter.losses\ncalls = []\n"
        "def losses_until_killed(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 10:\n"  # in the second half of the fifth step, after a thread has written the fourth
        "        while not (Path(sys.argv[2]) / 'checkpoints/step_00000004.pt').exists():\n"
        "            time.sleep(0.01)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return losses(*given)\n"
        "segment.Segmenter.losses = losses_until_killed\n"
        "segment.Segment.launch(load(sys.argv[1], segment.SegmentConfig), Path(sys.argv[2]))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cfg.py"), str(tmp_path / "killed")], env=environment, timeout=240
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("*.pt")) == [
        "step_00000002.pt",
        "step_00000004.pt",
    ]
    segment.Segment.launch(cfg, tmp_path / "killed", resume=True)
    assert_equal(payload(tmp_path / "whole", STEPS), payload(tmp_path / "killed", STEPS))


def test_a_checkpoint_evaluates_to_the_runs_own_numbers_and_to_others_at_several_scales(
    base: Values, tmp_path: Path
) -> None:
    cfg = config(base)
    trained = segment.Segment.launch(cfg, tmp_path / "run")
    reference = str(tmp_path / "run" / "checkpoints" / "step_00000006.pt")
    again = segment.Segment.evaluate_checkpoint(
        config({**base, "backbone": {}}), reference, None
    )  # it knows the backbone from the run's own config
    assert [r.value for r in again] == [r.value for r in trained]
    several = cfg.model_copy(
        update={"inference": cfg.inference.model_copy(update={"scales": (0.5, 1.0, 1.5), "flip": True})}
    )
    found = segment.Segment.evaluate_checkpoint(several, reference, tmp_path / "ms")
    assert [r.metric for r in found] == ["mIoU/ms", "mAcc/ms", "aAcc/ms"]
    assert found[0].value != trained[0].value
    assert len(list((tmp_path / "ms" / "segmentations").iterdir())) == 2


def test_whole_inference_takes_images_of_any_size(base: Values, tmp_path: Path) -> None:
    write_ade(tmp_path / "odd", train=4, val=2, size=37)
    cfg = config(
        base,
        data={**base["data"], "root": str(tmp_path / "odd"), **sets(), "scale": (74, 37)},
        inference={"mode": "whole"},
        epochs=1.0,
    )
    assert segment.Segment.launch(cfg, tmp_path / "run")[0].value is not None


def test_a_broken_file_stops_the_run_before_it_starts_or_is_replaced_as_the_user_chose(
    base: Values, tmp_path: Path
) -> None:
    broken = sorted((tmp_path / "scenes" / "annotations" / "training").iterdir())[3]
    broken.write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"the training set, .*\n  1 x unreadable map: {broken.name}"):
        segment.Segment.launch(config(base), tmp_path / "stops")
    assert not (tmp_path / "stops").exists()
    skipping = config(base, data={**base["data"], "on_error": "skip", "max_unreadable": 1})
    assert len(segment.Segment.launch(skipping, tmp_path / "goes_on")) == 3


def test_a_label_beyond_the_classes_is_named(base: Values, tmp_path: Path) -> None:
    fewer = ("ground", "circle")
    with pytest.raises(ValueError, match=r"8 x value beyond the 2 classes: .*reduce_zero_label=True"):
        segment.Segment.launch(config(base, data={**base["data"], **sets(classes=fewer)}), tmp_path / "run")


def test_masks_of_0_and_255_are_no_perfect_score(base: Values, tmp_path: Path) -> None:
    """255 is void: one class was left, and mIoU was 100.00 %."""
    for path in (tmp_path / "scenes" / "annotations").rglob("*.png"):
        mask = Image.new("L", (40, 40), 0)
        mask.paste(255, (10, 10, 30, 30))
        mask.save(path)
    data = {**base["data"], **sets(classes=("ground", "crack"), reduce_zero_label=False, allow_absent=False)}
    with pytest.raises(
        ValueError,
        match=r"1 x class without a pixel in any map: 'crack' \(value 1\); .* 0, 255 \(void\); .*values=\(0, 255\)",
    ):
        segment.Segment.launch(config(base, data=data), tmp_path / "run")
    data = {**base["data"], **sets(classes=("ground", "crack"), values=(0, 255), allow_absent=False)}
    assert segment.Segment.launch(config(base, data=data), tmp_path / "run")[0].value < 100


def test_what_evaluation_needs_is_checked_before_the_first_step(base: Values, tmp_path: Path) -> None:
    image = sorted((tmp_path / "scenes" / "images" / "validation").iterdir())[2]
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"the validation set, .*\n  1 x unreadable image: {image.name}"):
        segment.Segment.launch(config(base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(
    base: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = segment.Segmenter.losses
    monkeypatch.setattr(
        segment.Segmenter, "losses", lambda *given: {name: loss * float("nan") for name, loss in losses(*given).items()}
    )
    with pytest.raises(NonFiniteLoss, match="step 0"):
        segment.Segment.launch(config(base), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {**RUN, "device_batch": 1}}, "forward pass: 1, but the heads' batch norms need 2"),
        ({"protocol": {"name": "linear"}}, "encoder is frozen"),
        ({"protocol": {"name": "upernet", "taps": (1, 2, 3, 9)}}, "give maps 0..3"),
        ({"backbone": {}}, "no backbone"),
        ({"inference": {"stride": 33}}, "windows would miss pixels"),
        (
            {
                "backbone": {"reference": "random:vit_tiny_patch16_224"},
                "protocol": {"name": "upernet"},
                "inference": {"mode": "whole"},
            },
            "takes images of 32 pixels only",
        ),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "--set 'mean="),
    ],
)
def test_what_does_not_fit_together_is_said_before_training_starts(
    base: Values, changes: Values, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        segment.Segment.launch(config(base, **changes), tmp_path / "run")


def test_classes_of_training_and_validation_must_be_the_same(base: Values, tmp_path: Path) -> None:
    val = {"name": "ade", "split": "validation", "classes": ("a", "b")}
    for train, message in (
        ({"name": "shapes", "length": 2}, "only one set has"),
        ({**val, "classes": ("b", "a")}, "their order differs"),
    ):
        with pytest.raises(ValueError, match=message):
            segment.Segment.launch(config(base, data={**base["data"], "val": val, "train": train}), tmp_path / "r")


def test_a_checkpoint_keeps_the_provenance_and_the_protocol_of_its_run(base: Values, tmp_path: Path) -> None:
    """A config with its own encoder (configs/segment/camvid.py), trained with --backbone, does not count as random."""
    segment.Segment.launch(config(base, run=RUN | {"pictures": 0}), tmp_path / "run")
    reference = str(tmp_path / "run" / "checkpoints" / "step_00000006.pt")
    again = segment.Segment.evaluate_checkpoint(
        config(base, backbone={"encoder": ENCODER}, run=RUN | {"pictures": 0}), reference, None
    )
    assert (again[0].pretrain, again[0].steps, again[0].images_seen) == ("MAE for a test", 6, 24)
    for changes, message in (
        ({"protocol": {**base["protocol"], "taps": (0, 1, 2, 3)}}, "protocol.taps"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "leave mean and std out"),
    ):
        with pytest.raises(ValueError, match=message):
            segment.Segment.evaluate_checkpoint(config(base, **changes), reference, None)


def test_a_checkpoint_does_not_count_for_classes_in_another_order(base: Values, tmp_path: Path) -> None:
    segment.Segment.launch(config(base, epochs=0.5, schedule={}, run=RUN | {"pictures": 0}), tmp_path / "run")
    reference, listed = str(tmp_path / "run" / "checkpoints" / "step_00000001.pt"), tmp_path / "scenes" / "classes.txt"
    names = listed.read_text().splitlines()
    for other, message in (
        ([names[1], names[0], *names[2:]], "class 0 was 'ground'"),
        (names[:-1], f"{len(names)} classes, the data have"),
    ):
        listed.write_text("\n".join(other))
        with pytest.raises(ValueError, match=message):
            segment.Segment.evaluate_checkpoint(config(base), reference, None)


def test_a_run_is_not_resumed_with_classes_in_another_order(base: Values, tmp_path: Path) -> None:
    """Before a step is taken: a state saved after it would pass for one of the new order, or of the old one."""
    cfg, listed = (
        config(base, run=RUN | {"save_every": 1, "keep_last": 9, "pictures": 0}),
        tmp_path / "scenes" / "classes.txt",
    )
    segment.Segment.launch(cfg, tmp_path / "run")
    for path in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[2:]:
        path.unlink()
    names = listed.read_text().splitlines()
    listed.write_text("\n".join([names[1], names[0], *names[2:]]))
    with pytest.raises(
        ValueError, match=rf"made with '{len(names)} classes \w+', this run has '{len(names)} classes \w+'"
    ):
        segment.Segment.launch(cfg, tmp_path / "run", resume=True)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")) == [
        "step_00000001.pt",
        "step_00000002.pt",
    ]


def test_an_evaluation_in_the_work_dir_does_not_finish_a_run_that_was_killed_at_its_end(
    base: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(base, epochs=0.5, schedule={}, run=RUN | {"pictures": 0})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(segment.Segment, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            segment.Segment.launch(cfg, tmp_path / "run")
    evaluated = segment.Segment.evaluate_checkpoint(
        cfg, str(tmp_path / "run" / "checkpoints" / "step_00000001.pt"), tmp_path / "run"
    )
    written = segment.Segment.launch(cfg, tmp_path / "run", resume=True)
    assert [(r.value, r.epochs, r.steps) for r in written] == [(r.value, 0.5, 1) for r in evaluated]
    assert results.load(tmp_path / "run" / "results.jsonl")[0] == evaluated + written
    assert segment.Segment.launch(cfg, tmp_path / "run", resume=True) == written  # now it is finished


def test_a_validation_set_without_a_labelled_pixel_is_an_error(base: Values, tmp_path: Path) -> None:
    for path in (tmp_path / "scenes" / "annotations" / "validation").iterdir():
        Image.new("L", (40, 40)).save(path)
    with pytest.raises(
        ValueError,
        match=r"the validation set, .*\n  1 x map set in which no pixel has a class: the maps contain the values 0;",
    ):
        segment.Segment.launch(config(base, epochs=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_validation_image_is_left_out_of_the_numbers_and_no_other_counts_twice(
    base: Values, tmp_path: Path
) -> None:
    cfg = config(base, epochs=1.0, data={**base["data"], "on_error": "skip"})
    segment.Segment.launch(cfg, tmp_path / "run")
    reference = str(tmp_path / "run" / "checkpoints" / "step_00000002.pt")
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        (tmp_path / "scenes" / folder / "validation" / f"000000000002.{suffix}").rename(tmp_path / f"2.{suffix}")
    without = segment.Segment.evaluate_checkpoint(cfg, reference, tmp_path / "without")
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        (tmp_path / "scenes" / folder / "validation" / f"000000000002.{suffix}").write_bytes(b"torn")
    torn = segment.Segment.evaluate_checkpoint(cfg, reference, tmp_path / "torn")
    assert [(r.value, r.unreadable) for r in torn] == [(r.value, 1) for r in without]


def test_an_evaluation_needs_no_training_set(base: Values, tmp_path: Path) -> None:
    cfg = config(base, epochs=1.0)
    written = segment.Segment.launch(cfg, tmp_path / "run")
    shutil.rmtree(tmp_path / "scenes" / "images" / "training")
    again = segment.Segment.evaluate_checkpoint(cfg, str(tmp_path / "run" / "checkpoints" / "step_00000002.pt"), None)
    assert [r.value for r in again] == [r.value for r in written]


def test_a_linear_head_trains_on_one_crop_at_a_time(base: Values, tmp_path: Path) -> None:
    run = RUN | {"device_batch": 1, "pictures": 0}
    assert (
        len(
            segment.Segment.launch(
                config(base, epochs=0.5, protocol={"name": "linear"}, optim={"lr": 1e-2}, schedule={}, run=run),
                tmp_path / "run",
            )
        )
        == 3
    )


def test_two_ranks_train_and_count_every_image_once(torchrun: Torchrun, tmp_path: Path) -> None:
    script, config_file = ROOT / "tools" / "seg_train.py", ROOT / "configs" / "segment" / "mini.py"
    torchrun(script, config_file, "--work-dir", tmp_path / "run", "--debug", "--set", "data.val.length=5")
    written, _ = results.load(tmp_path / "run" / "results.jsonl")
    assert [r.world_size for r in written] == [2, 2, 2]
    assert written[2].value is not None
    assert written[2].value / 100 * 5 * 48 * 48 == pytest.approx(round(written[2].value / 100 * 5 * 48 * 48), abs=1e-3)

"""What earlier versions wrote is still good: configs, work dirs, checkpoints, results, suites and command lines.

tests/fixtures/COMMIT holds what the tools of that commit wrote, without tensorboard, pictures and some states:
stopped (a pretraining after 7 of 12 steps) and done (the same, finished), tuning and tuned (a fine-tuning, likewise),
a work dir of each other task, and suite. tables.csv holds what tools/tables.py of d346324 reads there. Digests are
those of d346324; earlier configs had fewer keys.
"""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mae_transfer import load_backbone, results
from mae_transfer.cli.main import main
from mae_transfer.config import Schema, load_saved
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.knn import KnnConfig
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.segment import SegmentConfig
from mae_transfer.tasks.tokenizer import TokenizerConfig

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
VERSIONS = ("a44a55f", "d346324")
LATEST = VERSIONS[-1]
SCHEMAS: dict[str, type[Schema]] = {
    "stopped": PretrainConfig,
    "tuning": ClassifyConfig,
    "finetune": ClassifyConfig,
    "linear": ClassifyConfig,
    "knn": KnnConfig,
    "detect": DetectConfig,
    "segment": SegmentConfig,
    "tokenizer": TokenizerConfig,
    "suite/pixel/pretrain/seed0": PretrainConfig,
    "suite/pixel/fine_tune/seed0": ClassifyConfig,
    "suite/pixel/knn/seed0": KnnConfig,
}
RUNS = [(version, run) for version in VERSIONS for run in SCHEMAS if (FIXTURES / version / "runs" / run).is_dir()]
COMMANDS = (
    "pretrain.py configs/mini/pretrain.py --work-dir runs/mini --show",
    "pretrain.py configs/pretrain/mae_vit_base_16_1600e.py --work-dir D --set data.root=/data --resume --show",
    "pretrain.py configs/ablations/table1a.py --row all --mini --work-dir runs/table1a --show",
    "pretrain.py configs/ablations/table1d.py --row 'pixel (w/ norm)' --work-dir D --set run.device_batch=128 --show",
    "pretrain.py pretrain.py --estimate",
    "pretrain.py pretrain.py --debug --work-dir runs/debug",
    "tokenizer_train.py dvae configs/tokenizer/tokens_64px.py --work-dir runs/tok --set data.root=/data --show",
    "tokenizer_train.py pca configs/pretrain/mae_small_64px.py --work-dir D --components 96 --images 10000 --show",
    "cls_train.py configs/classify/finetune_vit_base.py --backbone runs/b.safetensors --work-dir D --show",
    "cls_train.py configs/classify/partial.py --backbone mae:l.pth --set protocol.tune_blocks=half --work-dir D --show",
    "cls_train.py configs/classify/linear_probe.py --backbone moco-v3:vit-b-300ep.pth.tar --work-dir D --show",
    "cls_train.py configs/classify/knn.py --backbone timm:vit_base_patch16_224.dino --work-dir D --show",
    "cls_train.py configs/classify/finetune_vit_base.py --eval --checkpoint mae-finetuned:b.pth --show",
    "det_train.py configs/detect/mini.py --work-dir runs/det --show",
    "det_train.py configs/detect/mini.py --eval --checkpoint step_1.pt --visualize 20 --work-dir D --show",
    "det_train.py configs/detect/mask_rcnn_vitdet_base_100ep.py --backbone R --set engine=detectron2 --show",
    "seg_train.py configs/segment/upernet_beit_base_160k.py --backbone beit:b.pth --set data.root=/data/ade --show",
    "seg_train.py configs/segment/mini.py --eval --checkpoint C --multi-scale --visualize 20 --work-dir D_ms --show",
    "reproduce.py configs/suites/table3.py --work-dir D --root imagenet=/data/imagenet --gpus-per-node 8 --dry-run",
    "reproduce.py configs/suites/table3.py --work-dir D --devices 0,1,2,3 --only seed0 --force linear --dry-run",
    "reproduce.py suite.py --work-dir D --launcher slurm --gpus-per-node 8 --nodes 4 --slurm partition=gpu --dry-run",
    "reproduce.py suite.py --work-dir runs/suite --jobs 2 --debug --dry-run",
    "tables.py --list",
    "tables.py runs/suite runs/detect --table 4 --table knn --format latex",
    "tables.py runs/suite --table 1d --published all --why",
    "prepare_data.py shapes --root data/shapes --format coco --train 2 --val 1",
    "prepare_data.py shapes --root data/maps --format ade --train 2 --val 1 --size 96 --seed 1",
    "export_checkpoint.py --licence",
    "export_checkpoint.py runs/done/backbone.safetensors --format timm --out timm.safetensors",
    "export_checkpoint.py runs/done/backbone.safetensors --dtype float16 --image-size 32 --out half.safetensors",
    "visualize.py runs/stopped --mask-ratio 0.75 0.85 --most 2",
)
"""Command lines from the pages of earlier versions. --show, --estimate and --dry-run keep them short."""


@pytest.fixture
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a version ran, as a copy; it is the current folder."""
    folder = tmp_path / "earlier"
    shutil.copytree(FIXTURES / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def cells(table: str) -> list[tuple[str, ...]]:
    return [(row["table"], row["row"], row["column"], row["mean"]) for row in csv.DictReader(table.splitlines())]


@pytest.mark.parametrize("earlier", VERSIONS, indirect=True)
def test_a_stopped_pretraining_resumes_and_ends_with_the_same_losses(earlier: Path) -> None:
    assert main(["pretrain", "pretrain.py", "--work-dir", "runs/stopped", "--resume"]) == 0
    assert losses(earlier / "runs/stopped") == pytest.approx(losses(earlier / "runs/done"), rel=1e-5)
    (mine,), (theirs,) = (results.load(earlier / "runs" / name / "results.jsonl")[0] for name in ("stopped", "done"))
    assert mine.value == pytest.approx(theirs.value, rel=1e-5)
    weights, finished = (
        load_backbone(f"runs/{name}/backbone.safetensors").state_dict() for name in ("stopped", "done")
    )
    for name in weights:
        if name.endswith("qkv.bias"):
            # softmax ignores the key's bias: its gradient is rounding alone, which AdamW enlarges
            for state in (weights, finished):
                state[name].chunk(3)[1].zero_()
    torch.testing.assert_close(weights, finished, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("earlier", [LATEST], indirect=True)
def test_a_stopped_fine_tuning_resumes_and_its_state_is_evaluated(earlier: Path) -> None:
    command = ["classify", "finetune.py", "--backbone", "runs/done/backbone.safetensors"]
    assert main([*command, "--work-dir", "runs/tuning", "--resume"]) == 0
    assert losses(earlier / "runs/tuning") == pytest.approx(losses(earlier / "runs/tuned"), rel=1e-5)
    state = "runs/tuning/checkpoints/step_00000012.pt"
    assert main(["classify", "finetune.py", "--eval", "--checkpoint", state, "--work-dir", "again"]) == 0
    values = {
        run: {r.value for r in results.load(earlier / run / "results.jsonl")[0] if r.metric == "top1"}
        for run in ("again", "runs/tuning", "runs/tuned")
    }
    assert values["again"] == values["runs/tuning"] == values["runs/tuned"]


@pytest.mark.parametrize("earlier", VERSIONS, indirect=True)
def test_a_backbone_transfers(earlier: Path) -> None:
    command = ["classify", "knn.py", "--backbone", "runs/done/backbone.safetensors", "--work-dir", "runs/new"]
    assert main(command) == 0
    metrics = {result.metric for result in results.load(earlier / "runs/new/results.jsonl")[0]}
    assert metrics == {"top1", "top5", "mean-per-class"}


@pytest.mark.parametrize(("version", "run"), RUNS)
def test_the_config_of_a_run_loads_and_keeps_its_digest(version: str, run: str) -> None:
    folder = FIXTURES / version / "runs" / run
    cfg = load_saved(folder / "config.py", SCHEMAS[run])
    if version != LATEST:
        return
    said = re.match(r'"""The resolved config of this run \(digest (\w+)\)', (folder / "config.py").read_text())
    assert said is not None
    assert cfg.digest() == said[1]
    numbers = folder / "results.jsonl"
    for result in results.load(numbers)[0] if numbers.is_file() else ():
        assert (result.config_digest, result.recipe_digest) == (cfg.digest(), cfg.recipe_digest())


@pytest.mark.parametrize("earlier", VERSIONS, indirect=True)
def test_results_are_read_by_the_tables(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "runs", "--table", "all", "--format", "csv"]) == 0
    table, errors = capsys.readouterr()
    assert not errors
    assert cells(table) == cells((earlier / "tables.csv").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("earlier", "state"), [("a44a55f", "changed"), ("d346324", "done")], indirect=["earlier"])
def test_the_plan_of_a_suite_knows_its_runs(earlier: Path, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "suite.py", "--work-dir", "runs/suite", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert re.findall(r"pixel/\w+/seed0 .*?(done|changed|new|failed)", plan) == [state] * 3, plan


@pytest.mark.parametrize("earlier", [LATEST], indirect=True)
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_is_still_understood(earlier: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [f"tools/{script}", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / script), run_name="__main__")
    assert not end.value.code

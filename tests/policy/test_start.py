"""--help and --list of every tool are fast: nothing heavy is imported before the command line is parsed.

No test here measures time.
The help texts fit 100 columns, group their options, and offer the choices that the package has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from mae_transfer import checkpoints
from mae_transfer.bench import options
from mae_transfer.cli.data import LABELLED
from mae_transfer.data.archives import DATA_SETS
from mae_transfer.models.vit import SIZES
from mae_transfer.suite.tables import formats

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
COMMANDS = {
    "benchmark": (
        *("gpu", "pretrain", "targets", "classify", "segment", "slide", "detect", "coco", "masks", "logreg", "scale"),
        "data",
    ),
    "prepare_data": ("coco", "ade20k", *LABELLED, "check", "shapes"),
    "tokenizer_train": ("dvae", "pca"),
}
HELPS = [(tool, *command) for tool in TOOLS for command in [(), *((word,) for word in COMMANDS.get(tool, ()))]]
LISTS = [
    ("pretrain",),
    ("cls_train",),
    ("det_train",),
    ("seg_train",),
    ("reproduce",),
    ("tokenizer_train",),
    ("tokenizer_train", "dvae"),
]
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pydantic",
    "mmengine",
    "mmseg",
    "mmcv",
    "cv2",
    "matplotlib",
    "pycocotools",
    "tensorboard",
    "jinja2",
)
CALLS = """
import contextlib, io, json, os, runpy, sys
root, calls, heavy = json.loads(sys.argv[1])
import mae_transfer
said = []
for words in calls:
    sys.argv = [f"tools/{words[0]}.py", *words[1:]]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(os.path.join(root, sys.argv[0]), run_name="__main__")
    said.append((out.getvalue(), [name for name in heavy if name in sys.modules]))
print(json.dumps(said))
"""
Answer = tuple[str, list[str]]  # what was printed, and the heavy modules that were imported by then


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    """What each tool prints for --help and --list, all in one fresh process."""
    calls = [*((*words, "--help") for words in HELPS), *((*words, "--list") for words in LISTS)]
    run = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps([str(ROOT), calls, HEAVY])],
        cwd=ROOT, capture_output=True, text=True, check=True, env={"COLUMNS": "300", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return {" ".join(words): tuple(answer) for words, answer in zip(calls, json.loads(run.stdout), strict=True)}


def test_no_tool_imports_anything_heavy_before_it_knows_what_to_do(answers):
    assert not {call: heavy for call, (_, heavy) in answers.items() if heavy}


def test_help_fits_100_columns_and_groups_the_options(answers):
    helps = {call: text for call, (text, _) in answers.items() if call.endswith("--help")}
    assert all(text.startswith("usage: ") for text in helps.values())
    assert not [(call, line) for call, text in helps.items() for line in text.splitlines() if len(line) > 100]
    assert not [call for call, text in helps.items() if "\nInformation:\n" not in text or "\noptions:" in text]
    for tool in (
        "pretrain",
        "cls_train",
        "det_train",
        "seg_train",
        "reproduce",
        "visualize",
        "tables",
        "export_checkpoint",
    ):
        assert re.findall(r"^(What|Where|How|Information):$", helps[f"{tool} --help"], re.MULTILINE) == [
            "What",
            "Where",
            "How",
            "Information",
        ]


def test_the_choices_that_the_tools_offer_are_those_of_the_package(answers):
    offered = {
        call: re.findall(r"--(?:format|size) \{([\w,]+)\}", text)
        for call, (text, _) in answers.items()
        if call.endswith("--help")
    }
    assert {tuple(found[-1].split(",")) for call, found in offered.items() if call.startswith("export")} == {
        tuple(checkpoints.FORMATS)
    }
    assert {tuple(found[-1].split(",")) for call, found in offered.items() if call.startswith("tables")} == {
        (*formats.FORMATS, "csv")
    }
    assert tuple(SIZES) == options.SIZES
    assert all(f"prepare_data {name} --help" in answers for name in DATA_SETS)


def test_list_shows_every_config_that_names_the_tool_with_purpose_and_cost(answers):
    for words in LISTS:
        text = answers[f"{' '.join(words)} --list"][0]
        entries = re.split(r"\n(?=configs/)", text.strip())
        paths = [entry.splitlines()[0] for entry in entries]
        configs = {
            str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.py")
        }
        command = rf"tools/{words[0]}\.py {words[1] if words[1:] else '(?:dvae |pca )?'} *"
        assert paths == sorted(path for path, text in configs.items() if re.search(command + re.escape(path), text))
        assert all(re.fullmatch(r"\S+\n    \w.+\n    Cost: .+(\n    .+)*", entry) for entry in entries)
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("pretrain", "configs/pretrain/mae_small_64px.py"), "mask.name = 'random'"),
        (("cls_train", "configs/classify/knn.py"), "backbone.reference = None"),
        (("det_train", "configs/detect/mask_rcnn_vitdet_base_100ep.py"), "adapter.name = 'simple_fpn'"),
        (("seg_train", "configs/segment/camvid.py"), "protocol.name = 'upernet'"),
        (("tokenizer_train", "dvae", "configs/mini/tokenizer.py"), "data.train.name = 'shapes'"),
        (("tokenizer_train", "pca", "configs/pretrain/mae_small_64px.py"), "data.size = 64"),
        (("reproduce", "configs/suites/mini.py"), "title = 'mini'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_show_prints_the_resolved_config_in_every_tool_and_needs_no_work_dir(words, line, run_tool, capsys):
    run_tool(*words, "--show")
    lines = capsys.readouterr().out.splitlines()
    assert line in lines
    assert max(map(len, lines)) <= 100
    documented = [tuple(texts) for indented, texts in groupby(lines, lambda text: text.startswith("    ")) if indented]
    assert len(documented) == len(set(documented)) > 10

"""The worked examples of docs/ work: their files and changes are applied to a copy of the repository, then run.

A block "```python file=PATH" is a file; "```diff file=PATH" is a change with hunks separated by "@@"; a plain block
holds commands. docs/examples holds the longer files.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mae_transfer.config import load
from mae_transfer.tasks.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]
ADDING = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
REPRODUCING = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
STARTED = (ROOT / "docs" / "getting_started.md").read_text(encoding="utf-8")
EXAMPLES = {  # longer files of docs/examples, and where the pages put them
    "arrays.py": "data",
    "lightly.py": "checkpoints",
    "resized.py": "adapters",
    "rotation.py": "tasks",
}
SECONDS = 600
SCREEN = 60  # lines
DRIVER = """
import json, runpy, sys, pytest
for words in json.loads(sys.argv[1]):
    print(*words, flush=True)
    if words[:2] == ["-m", "pytest"]:
        again = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-W", again, *words[2:]])
    else:
        sys.argv, code = words, 0
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    if code:
        sys.exit(f"{' '.join(words)} ended with {code}")
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str  # "" for commands
    file: str  # that it is, or changes
    text: str


def blocks(text: str) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def changed(old: str, diff: str) -> str:
    """Apply a page's change; each hunk must fit in exactly one place."""
    for hunk in diff.split("@@\n"):
        lines = [(line[:1], line[1:]) for line in hunk.splitlines()]
        before, after = ("".join(f"{line}\n" for sign, line in lines if sign != left_out) for left_out in "+-")
        assert old.count(before) == 1, f"the page's change fits in {old.count(before)} places:\n{hunk}"
        old = old.replace(before, after)
    return old


def apply(text: str, copy: Path) -> list[str]:
    """Write and change what a text says; return the files that it wrote."""
    written = []
    for block in blocks(text):
        path = copy / block.file
        if block.language == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), block.text), encoding="utf-8")
        elif block.file:
            assert not path.exists(), f"{block.file} is there already"
            path.write_text(block.text, encoding="utf-8")
            written.append(block.file)
    return written


def run(commands: list[list[str]], copy: Path) -> None:
    """Run commands in the copy, which precedes the installed package; one process imports torch once for all."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    ended = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, f"{ended.stdout[-5000:]}\n{ended.stderr[-5000:]}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files with everything that the pages have their reader write."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("mae_transfer", "configs", "tools", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, folder)
    for file, part in EXAMPLES.items():
        shutil.copy(ROOT / "docs" / "examples" / file, folder / "mae_transfer" / part)
    for page in (STARTED, DATA, FAQ, REPRODUCING, ADDING):
        assert apply(page, folder)
    return folder


def test_every_worked_example_runs_as_it_stands_and_keeps_the_rules_of_imports(copy):
    lines = [line for block in blocks(ADDING) if not block.language for line in block.text.splitlines()]
    commands = [shlex.split(line) for line in lines]
    assert {command[0] for command in commands} == {"python"}
    # the examples add modules, which one test counts
    policy = ["-m", "pytest", "tests/policy/test_imports.py", "-k", "not loads_the_modules"]
    plan = [
        shlex.split(line)[1:]
        for line in REPRODUCING.splitlines()
        if line.startswith("python tools/reproduce.py configs/suites/a_or_b.py")
    ]
    run([*(command[1:] for command in commands), bands(copy), *plan, policy], copy)
    assert len(list((copy / "runs").glob("*/results.jsonl"))) == 1 + sum("--debug" in command for command in commands)


def bands(copy: Path) -> list[str]:
    """Write some arrays of five bands and return the command that pretrains on them, its scale reduced."""
    folder = copy / "bands"
    folder.mkdir()
    for number in range(8):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).integers(0, 256, (5, 70, 80), dtype=np.uint8))
    small = (
        "epochs=1",
        "batch=4",
        "schedule.warmup_epochs=0.5",
        "precision=float32",
        "run.workers=0",
        "run.device=cpu",
        f"data.root={folder}",
    )
    sets = [word for value in small for word in ("--set", value)]
    return ["tools/pretrain.py", "configs/pretrain/five_bands_64px.py", "--work-dir", "runs/bands", *sets]


def test_every_example_fits_on_a_screen():
    """Imports are not counted: nobody writes them by hand."""
    texts = {block.file: block.text for block in blocks(ADDING) if block.language == "python"}
    texts |= {file: (ROOT / "docs" / "examples" / file).read_text(encoding="utf-8") for file in EXAMPLES}
    long = {}
    for file, text in texts.items():
        imports = [node.end_lineno for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        lines = len(text.splitlines()) - max(imports, default=0)
        long |= {file: lines} if lines > SCREEN else {}
    assert not long, f"more than {SCREEN} lines: {long}"


def test_every_test_that_the_page_writes_is_run_by_it():
    written = [block.file for block in blocks(ADDING) if Path(block.file).name.startswith("test_")]
    assert written
    assert all(f"python -m pytest {file}" in ADDING for file in written)


def test_the_code_of_the_examples_is_formatted_and_clean(copy):
    code = [
        block.file
        for block in blocks(ADDING + DATA)
        if block.language == "python" and not block.file.startswith("configs/")
    ]
    for words in (["format", "--check"], ["check"]):
        ended = subprocess.run([sys.executable, "-m", "ruff", *words, *code], cwd=copy, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("page", [STARTED, FAQ], ids=["getting_started", "faq"])
def test_a_config_of_a_page_loads(page, copy):
    (config,) = (block.file for block in blocks(page) if block.file)
    load(copy / config, PretrainConfig)

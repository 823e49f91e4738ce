"""Importing a task loads the modules that it needs and few others."""

from __future__ import annotations

import json
import subprocess
import sys

MOST = {
    "pretrain": 69,
    "joint": 67,
    "tokenizer": 57,
    "classify": 60,
    "knn": 58,
    "ridge": 59,
    "robustness": 62,
    "detect": 72,
    "segment": 76,
}
"""Modules of the package that a task may load. Lower a number when fewer are needed."""
COUNT = """
import importlib, json, os, sys
import timm, torch, torchvision  # once for all tasks

for task in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(f"mae_transfer.tasks.{task}")
        loaded = [name for name in sys.modules if name.split(".")[0] == "mae_transfer"]
        print(json.dumps([task, sorted(loaded)]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_task_loads_few_modules() -> None:
    ran = subprocess.run([sys.executable, "-c", COUNT, *MOST], capture_output=True, text=True, check=True)
    loaded = dict(json.loads(line) for line in ran.stdout.splitlines())
    assert set(loaded) == set(MOST)
    too_many = {task: names for task, names in loaded.items() if len(names) > MOST[task]}
    assert not too_many

"""The tools that a suite runs: script, config classes by task, and the file that other runs read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.config import Schema, read
from mae_transfer.disk import package_folder
from mae_transfer.tasks.entries import CLASSIFY, DETECT, PRETRAIN, SEGMENT, TaskEntry

TOOLS = package_folder("tools")

EVERY = (
    "mae_transfer.cli.showing",
    "mae_transfer.cli.training",
    "mae_transfer.ablations",
    "mae_transfer.draw.curves",
    "mmengine.config",
    "torch.utils.tensorboard",
)  # modules that every tool imports


class Tool(NamedTuple):
    """One way to call a script of tools/."""

    script: str
    tasks: dict[str, str]  # `task` of a config -> module:class of its schema; without `task`, the first
    arguments: tuple[str, ...] = ()  # arguments before the config
    artifact: str | None = None  # the file that other runs read
    metric: str | None = None  # the metric that a table shows as missing if the run fails (split "val")
    trains: bool = True  # it can resume from a training state, and it writes results
    imports: tuple[str, ...] = ()  # slow third-party modules that its runs import after they have started

    def schema(self, config: Path) -> type[Schema]:
        """Return the schema of a config; ValueError if the tool does not know its task.

        Only the module of that task is imported.
        """
        module, name = self.named(config)
        schema: type[Schema] = getattr(importlib.import_module(module), name)
        return schema

    def named(self, config: Path) -> tuple[str, str]:
        """Return module and class name of the schema of a config; ValueError if the tool does not know its task."""
        task = _task(config, config.stat().st_mtime_ns if config.is_file() else 0) or next(iter(self.tasks))
        if task not in self.tasks:
            raise ValueError(f"{config}: task = {task!r}; tools/{self.script} runs {', '.join(self.tasks)}")
        module, _, name = self.tasks[task].partition(":")
        return f"mae_transfer.tasks.{module}", name

    def modules(self, config: Path) -> tuple[str, ...]:
        """Return the modules that a run of a config imports, to import them ahead."""
        return (self.named(config)[0], *EVERY, *self.imports)


@cache
def _task(config: Path, mtime_ns: int) -> Any:
    """Return the `task` of a config; a plan has many runs of one config, and reading it takes time."""
    return read(config).get("task")


def runnable(tasks: Mapping[str, TaskEntry]) -> dict[str, str]:
    """Return the schemas of the tasks that do not start from a training state."""
    return {name: entry.schema for name, entry in tasks.items() if entry.run}


TOOLBOX: dict[str, Tool] = {
    "dvae": Tool("tokenizer_train.py", {"tokenizer": "tokenizer:TokenizerConfig"}, ("dvae",), "tokenizer.safetensors"),
    "pca": Tool(
        "tokenizer_train.py", {"pretrain": "pretrain:PretrainConfig"}, ("pca",), "basis.safetensors", trains=False
    ),
    "pretrain": Tool("pretrain.py", runnable(PRETRAIN), (), "backbone.safetensors"),
    "cls_train": Tool("cls_train.py", runnable(CLASSIFY), metric="top1"),
    "det_train": Tool(
        "det_train.py", runnable(DETECT), metric="bbox/AP", imports=("pycocotools.cocoeval", "faster_coco_eval")
    ),
    "seg_train": Tool(
        "seg_train.py", runnable(SEGMENT), metric="mIoU", imports=("mmseg.models", "mmseg.datasets.transforms")
    ),
}

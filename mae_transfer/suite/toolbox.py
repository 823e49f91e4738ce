"""The tools that a suite runs: script, config classes by task, and what a run leaves for others."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from mae_transfer import shipped
from mae_transfer.config import Schema, read

TOOLS = shipped.folder("tools")

EVERY = (
    "mae_transfer.cli",
    "mae_transfer.suite.grid",
    "mmengine.config",
    "torch.utils.tensorboard",
)  # of Tool.imports, for every tool


class Tool(NamedTuple):
    """One way to call a script of tools/."""

    script: str
    tasks: dict[str, str]  # the config's `task` -> module:class of its config; the first where the file names none
    words: tuple[str, ...] = ()  # before the config
    artifact: str | None = None  # the file that it leaves for other runs
    metric: str | None = None  # what a failed run owes to the tables, on the split "val"
    trains: bool = True  # has a training state to resume from, and results at its end
    imports: tuple[
        str, ...
    ] = ()  # modules of other packages that take long to import and that its runs import after they have started

    def schema(self, config: Path) -> type[Schema]:
        """Return the class of a config; ValueError where the tool does not know its task. A task's module is imported when a suite needs it."""
        module, name = self.named(config)
        schema: type[Schema] = getattr(importlib.import_module(module), name)
        return schema

    def named(self, config: Path) -> tuple[str, str]:
        """Return module and name of the class of a config; ValueError where the tool does not know its task."""
        task = read(config).get("task", next(iter(self.tasks)))
        if task not in self.tasks:
            raise ValueError(f"{config}: task = {task!r}; tools/{self.script} runs {', '.join(self.tasks)}")
        module, _, name = self.tasks[task].partition(":")
        return f"mae_transfer.tasks.{module}", name

    def modules(self, config: Path) -> tuple[str, ...]:
        """Return all that a run of a config imports, ready to be imported ahead."""
        return (self.named(config)[0], *EVERY, *self.imports)


TOOLBOX: dict[str, Tool] = {
    "dvae": Tool("tokenizer_train.py", {"tokenizer": "tokenizer:TokenizerConfig"}, ("dvae",), "tokenizer.safetensors"),
    "pca": Tool(
        "tokenizer_train.py", {"pretrain": "pretrain:PretrainConfig"}, ("pca",), "basis.safetensors", trains=False
    ),
    "pretrain": Tool("pretrain.py", {"pretrain": "pretrain:PretrainConfig"}, (), "backbone.safetensors"),
    "cls_train": Tool("cls_train.py", {"classify": "classify:ClassifyConfig", "knn": "knn:KnnConfig"}, metric="top1"),
    "det_train": Tool(
        "det_train.py",
        {"detect": "detect:DetectConfig"},
        metric="bbox/AP",
        imports=("pycocotools.cocoeval", "faster_coco_eval"),
    ),
    "seg_train": Tool(
        "seg_train.py",
        {"segment": "segment:SegmentConfig"},
        metric="mIoU",
        imports=("mmseg.models", "mmseg.datasets.transforms"),
    ),
}

"""The command `mae-transfer`: one command per script of tools/."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from mae_transfer import __version__
from mae_transfer.disk import package_folder

PROGRAM = "mae-transfer"
COMMANDS = {
    "pretrain": ("pretrain.py", "pretrain a masked autoencoder"),
    "tokenizer": ("tokenizer_train.py", "train a discrete VAE, or fit the PCA basis"),
    "classify": ("cls_train.py", "fine-tuning, partial fine-tuning, linear probes, k-NN, robustness"),
    "detect": ("det_train.py", "Mask R-CNN on COCO-format data"),
    "segment": ("seg_train.py", "UperNet or a linear head"),
    "suite": ("reproduce.py", "run pretrainings, transfers and seeds as one plan"),
    "tables": ("tables.py", "print the paper's tables with your numbers"),
    "data": ("prepare_data.py", "download, check or generate data sets"),
    "export": ("export_checkpoint.py", "write a backbone in another format"),
    "visualize": ("visualize.py", "draw reconstructions or attention"),
    "benchmark": ("benchmark.py", "time training steps and input (checkout only)"),
}
"""Command -> its script, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if words[0] == "configs":
        print("\n".join(configs()))
        return 0
    if words[0] not in COMMANDS:
        print(f"{PROGRAM}: no command {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    script = package_folder("tools") / COMMANDS[words[0]][0]
    sys.argv = [f"{PROGRAM} {words[0]}", *words[1:]]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:11}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            *lines,
            f"  {'configs':11}list the names of the configs",
            "",
            f"`{PROGRAM} COMMAND --help` explains a command, `{PROGRAM} COMMAND --list` its configs.",
        ]
    )


def configs() -> list[str]:
    """Return the names of the configs, as commands take them."""
    root = package_folder("configs")
    return [file.relative_to(root).with_suffix("").as_posix() for file in sorted(root.rglob("*.py"))]

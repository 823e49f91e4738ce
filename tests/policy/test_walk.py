"""The walk of docs/adding.md: a run passes through the named files, in their order, on its way to the loss of a MAE."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_transfer.cli.main import main
from mae_transfer.models.mae import MAE
from mae_transfer.targets import NormPixel

ROOT = Path(__file__).parents[2]
DISPATCH = "mae_transfer/cli/main.py"  # finds the command by its name


def files() -> list[str]:
    """Return the files of this package that are being executed, outermost first."""
    paths = [Path(frame.filename) for frame in traceback.extract_stack()]
    inside = [path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT / "mae_transfer")]
    return list(dict.fromkeys(inside))


def spied(owner: type, name: str, seen: dict[str, list[str]]) -> Callable[..., object]:
    """Return a method that notes, when it is called first, the files that lead to it."""
    method = getattr(owner, name)

    def spy(*given: object) -> object:
        seen.setdefault(owner.__name__, [*files(), Path(inspect.getfile(owner)).relative_to(ROOT).as_posix()])
        return method(*given)

    return spy


def test_the_walk_names_the_files_from_the_command_line_to_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}
    for owner, name in ((MAE, "encode"), (NormPixel, "loss")):
        monkeypatch.setattr(owner, name, spied(owner, name, seen))
    config = str(ROOT / "configs" / "mini" / "pretrain.py")
    assert main(["pretrain", config, "--debug", "--work-dir", str(tmp_path / "run")]) == 0
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    section = page.partition("## The walk\n")[2].partition("\n## ")[0]
    walk = re.findall(r"^\d\. `(mae_transfer/\S+\.py)`", section, re.MULTILINE)
    assert len(walk) <= 6
    passed = dict.fromkeys([*seen["MAE"], *seen["NormPixel"]])
    assert walk == [file for file in passed if file != DISPATCH]

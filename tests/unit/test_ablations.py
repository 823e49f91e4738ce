"""ablations.py: the rows of an ablation as runs, and mistakes that are named before anything starts."""

from pathlib import Path

import pytest

from mae_transfer.ablations import points
from mae_transfer.cli.main import main
from mae_transfer.config import Schema
from mae_transfer.tasks import pretrain

GRID = """
title = "table 9"
rows = {"1 block": {"depth": 1}, "8 blocks": {"depth": 8}}
paper = dict(base="base.py", overrides={"target": "pixel"})
mini = dict(base="mini.py", rows={"8 blocks": {"depth": 2}})
"""


class Example(Schema):
    depth: int = 4
    target: str = "norm"
    width: int = 1


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Example]:
    """The work dirs of the runs that were started, with their configs. Target "stop" is a run that was stopped."""
    found: dict[str, Example] = {}

    def launch(cfg: Example, work_dir: Path, *, resume: bool) -> list[str]:
        found[str(work_dir)] = cfg
        return ["a result"] if cfg.target != "stop" else []

    monkeypatch.setattr(pretrain, "PretrainConfig", Example)
    monkeypatch.setattr(pretrain.Pretrain, "launch", launch)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.py").write_text("width = 7\n")
    (tmp_path / "mini.py").write_text("width = 3\n")
    (tmp_path / "grid.py").write_text(GRID)
    return tmp_path / "grid.py"


def test_rows_are_laid_over_the_base_of_their_scale_and_own_values_of_a_scale_over_them(file: Path) -> None:
    assert [(p.row, p.folder, p.config.name, p.changes) for p in points(file, "paper")] == [
        ("1 block", "1_block", "base.py", {"target": "pixel", "depth": 1}),
        ("8 blocks", "8_blocks", "base.py", {"target": "pixel", "depth": 8}),
    ]
    assert [p.changes for p in points(file, "mini")] == [{"depth": 1}, {"depth": 2}]


@pytest.mark.parametrize(("options", "expected"), [
    (["--row", "8 blocks", "--set", "width=9"], {"runs": Example(depth=8, target="pixel", width=9)}),
    (["--row", "all", "--mini"],
        {"runs/1_block": Example(depth=1, width=3), "runs/8_blocks": Example(depth=2, width=3)}),
])  # fmt: skip
def test_one_row_goes_into_the_work_dir_and_all_of_them_into_folders_of_it(
    file: Path, options: list[str], expected: dict[str, Example], ran: dict[str, Example]
) -> None:
    assert main(["pretrain", str(file), "--work-dir", "runs", *options]) == 0
    assert ran == expected


def test_a_row_that_was_stopped_is_the_last_one(file: Path, ran: dict[str, Example]) -> None:
    assert main(["pretrain", str(file), "--work-dir", "runs", "--row", "all", "--set", "target=stop"]) == 0
    assert list(ran) == ["runs/1_block"]


def test_all_rows_under_torchrun_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ran: dict[str, Example]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["pretrain", str(file), "--work-dir", "runs", "--row", "all"]) == 1
    assert "does not work with torchrun: start each row by its name" in capsys.readouterr().err
    assert not ran


@pytest.mark.parametrize(("options", "text"), [
    ([], "has no row ''"),
    (["--row", "9 blocks"], "name one of ['1 block', '8 blocks'], or all"),
    (["--row", "all", "--set", "widht=1"], "did you mean 'width'"),
])  # fmt: skip
def test_a_mistake_is_named_and_nothing_runs(
    file: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str], ran: dict[str, Example]
) -> None:
    assert main(["pretrain", str(file), "--work-dir", "runs", *options]) == 1
    assert text in capsys.readouterr().err
    assert not ran


def test_values_of_a_row_that_does_not_exist_are_an_error(file: Path) -> None:
    file.write_text(GRID.replace('rows={"8 blocks"', 'rows={"7 blocks"'))
    with pytest.raises(ValueError, match=r"unknown rows \['7 blocks'\]"):
        points(file, "paper")

"""mae_transfer/cli: --list from docstrings, --show with the documentation of every value, and command-line errors."""

import ast
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from mae_transfer.cli import listing, showing
from mae_transfer.cli.main import COMMANDS, call, guarded, main
from mae_transfer.config import Part, Schema, load
from mae_transfer.data.loader import _check_outputs
from mae_transfer.tasks import classify, detect, knn, pretrain, robustness, segment, tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "pretrain": (pretrain.PretrainConfig, "configs/pretrain/mae_small_64px.py"),
    "classify": (classify.ClassifyConfig, "configs/classify/linear_probe.py"),
    "detect": (detect.DetectConfig, "configs/detect/mask_rcnn_vitdet_base_100ep.py"),
    "segment": (segment.SegmentConfig, "configs/segment/camvid.py"),
}
SCRIPTS = ("pretrain", "cls_train", "det_train", "seg_train", "tokenizer_train", "reproduce")
SCHEMAS = (
    *(schema for schema, _ in CONFIGS.values()),
    knn.KnnConfig,
    robustness.RobustnessConfig,
    tokenizer.TokenizerConfig,
)


class Base(Part):
    """A part."""

    name: Literal["base"] = "base"
    ratio: float = 0.5
    """Share of cells,
    in words."""


class Derived(Part):
    """Another part.

    It has more.
    """

    name: Literal["derived"] = "derived"
    ratio: float = 0.7
    """Share of cells, in words."""
    low: int = 1
    """Lower bound."""
    high: int = 2
    """Upper bound."""
    root: str | None = None


class Inner(Schema):
    """A group."""

    width: int = 3
    """Pixels."""


class Example(Schema):
    """A config."""

    part: Annotated[Base | Derived, Field(discriminator="name")] = Base()
    """An entry."""
    inner: Inner = Inner()
    """The group."""
    rows: dict[str, Inner] = Field(default={"a": Inner(width=4)})
    """Several."""
    root: str | None = None
    """The folder of the parts."""


def test_show_prints_every_value_with_its_documentation_by_the_key_that_set_takes() -> None:
    text = showing.shown(Example(part=Derived(high=9), root="/data"), title="x.py")
    assert text.splitlines() == [
        "# x.py",
        "part.name = 'derived'",
        "    An entry. One of base, derived. derived: Another part.",
        "part.ratio = 0.7",
        "    Share of cells, in words.",
        "part.low = 1",
        "    Lower bound.",
        "part.high = 9",
        "    Upper bound.",
        "part.root = '/data'",
        "inner:",
        "    The group.",
        "inner.width = 3",
        "    Pixels.",
        "rows:",
        "    Several.",
        "rows['a']:",
        "rows['a'].width = 4",
        "root = '/data'",
        "    The folder of the parts.",
    ]


@pytest.mark.parametrize("tool", CONFIGS)
def test_show_needs_no_work_dir_and_prints_what_set_and_debug_change(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([tool, CONFIGS[tool][1], "--show", "--set", "seed=7", "--set", "optim.weight_decay=0.125"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "seed = 7" in lines
    assert lines[lines.index("optim.weight_decay = 0.125") + 1].startswith("    Decoupled weight decay")
    assert max(map(len, lines)) <= 100


def test_show_of_an_ablation_prints_the_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["pretrain", "configs/ablations/table1f.py", "--row", "grid 75%", "--mini", "--show"]) == 0
    assert "mask.name = 'grid'" in capsys.readouterr().out.splitlines()


def test_list_reads_docstrings_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CONFIGS", tmp_path / "configs")
    folder = tmp_path / "configs" / "a"
    folder.mkdir(parents=True)
    command = "python tools/pretrain.py configs/a/one.py --work-dir D"
    (folder / "one.py").write_text(
        f'"""Purpose of v1.5, e.g. small. More.\n\nCommand: {command}\nCost:    1 h\n         on a GPU.\n'
        'Published: none.\n"""\nraise OSError\n'
    )
    (folder / "two.py").write_text('"""No command."""\n')
    assert [tuple(entry) for entry in listing.entries("pretrain")] == [
        ("a/one", "Purpose of v1.5, e.g. small", "1 h on a GPU.")
    ]
    assert listing.listing("det_train") == "no config names tools/det_train.py in its docstring"


@pytest.mark.parametrize(
    ("command", "config", "owner"),
    [
        ("detect", "segment/camvid", "segment"),
        ("pretrain", "classify/small_finetune", "classify"),
        ("classify", "suites/own_classification", "suite"),
        ("suite", "pretrain/mae_small_64px", "pretrain"),
    ],
)
def test_the_config_of_another_tool_is_recognised(
    command: str, config: str, owner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"configs/{config}.py", "--work-dir", str(tmp_path / "run")]
    assert main([command, *words]) == 1
    assert f"configs/{config}.py is made for mae-transfer {owner}, as its docstring says\n" in capsys.readouterr().err
    assert call(command, words) == 1
    assert f"made for tools/{COMMANDS[owner].script}.py, as" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("docstring", ["", "no text", "Run it with tools/det_train.py or tools/seg_train.py."])
def test_other_mistakes_are_not_explained_by_the_tool(
    docstring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(f'"""{docstring}"""\nepoch = 3\n')
    for words in (
        ["detect", str(tmp_path / "own.py"), "--work-dir", str(tmp_path / "run")],
        ["detect", str(tmp_path / "none.py"), "--work-dir", str(tmp_path / "run")],
        ["benchmark", "scale", "suites/mini", "--gpus", "12"],
        ["visualize", "missing.pth", "--config", "configs/pretrain/mae_small_64px.py", "--images", str(tmp_path)],
    ):
        assert main(words) == 1
        assert "is made for" not in capsys.readouterr().err


def test_every_config_is_listed_by_one_tool() -> None:
    found = [entry.path for tool in SCRIPTS for entry in listing.entries(tool)]
    configs = [
        path
        for path in (ROOT / "configs").rglob("*.py")
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert sorted(Path(path).resolve() for path in found) == sorted(configs)


@pytest.mark.parametrize("command", [*CONFIGS, "tokenizer dvae", "tokenizer pca"])
def test_a_run_without_work_dir_is_refused_before_its_config_is_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "no_such_config.py"])
    assert "--work-dir is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "change its permissions"), (errno.EROFS, "use another folder"), (errno.ENOTDIR, "is a file")],
)
def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/data/run")

    assert guarded(fail) == 1
    said = capsys.readouterr().err.splitlines()[0]
    assert "'/data/run': " in said
    assert remedy in said


def died() -> Iterator[Any]:
    yield from ()
    raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")


@pytest.mark.parametrize(("fail", "traced"), [
    (lambda: nn.Linear(2, 2)(torch.zeros(3)), True),
    (lambda: torch.zeros(2).view(3), True),
    (lambda: list(_check_outputs(died())), False),
    (lambda: json.loads("{"), False),
    (lambda: load("absent.py", Schema), False),
])  # fmt: skip
def test_torchs_own_errors_keep_their_traceback(
    fail: Callable[[], object], traced: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(fail) == 1
    *before, line, _ = capsys.readouterr().err.splitlines()
    assert "Error: " in line
    assert [text.strip() for text in before[:1]] == ["Traceback (most recent call last):"] * traced


def test_a_command_that_the_installed_package_lacks_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "benchmark", COMMANDS["benchmark"]._replace(package="mae_transfer.absent"))
    assert main(["benchmark", "gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("clone the project and run tools/benchmark.py")

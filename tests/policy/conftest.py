"""The project's own files, parsed once for all the policy tests."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (".py", ".md", ".toml", ".cfg", ".txt", ".sh", ".json")


class Source(NamedTuple):
    """One Python file; `path` is relative to the repository's root, `part` is its module or folder in the package."""

    path: str
    part: str
    text: str
    tree: ast.Module


def read(folder: str) -> list[Source]:
    files = sorted((ROOT / folder).rglob("*.py"))
    sources = [(path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in files]
    return [Source(str(path), Path(path.parts[1]).stem, text, ast.parse(text)) for path, text in sources]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """run_tool("pretrain", "configs/x.py", "--debug") runs tools/pretrain.py in this process, from the root folder.

    The tool must succeed.
    """

    def run(tool: str, *words: str) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        assert not end.value.code, f"tools/{tool}.py {' '.join(words)} ended with {end.value.code}"

    return run


@pytest.fixture(scope="session")
def package() -> list[Source]:
    return read("mae_transfer")


@pytest.fixture(scope="session")
def tools() -> list[Source]:
    return read("tools")


@pytest.fixture(scope="session")
def tests() -> list[Source]:
    return read("tests")


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Every text file of the project by its path: code, configs, tests, pages, and what builds them."""
    folders = ("mae_transfer", "tools", "configs", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXT]
    files += [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in TEXT or path.name == "Makefile")]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted([*files, ROOT / ".ci" / "run"])
    }

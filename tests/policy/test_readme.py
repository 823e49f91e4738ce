"""The tools, targets, options, files and extras that README.md names exist, and every tool has a help text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def help_of(run_tool, capsys) -> Callable[..., str]:
    def text(tool: str, *command: str) -> str:
        run_tool(tool, *command, "--help")
        return capsys.readouterr().out

    return text


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_offers_every_option_that_readme_uses_with_it(tool, readme, help_of):
    calls = re.findall(rf"tools/{tool}\.py(.*(?:\\\n.*)*)", readme)
    command = {word for call in calls if re.match(r" [a-z_]+\b(?!\.|/)", call) for word in call.split()[:1]}
    known = help_of(tool) + "".join(help_of(tool, word) for word in sorted(command))
    assert not set().union(*(options(call.split("#")[0]) for call in calls)) - options(known)


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_explains_each_of_its_options(tool, help_of):
    text = help_of(tool)
    entries = re.split(r"\n(?=  \S)", text)
    silent = [
        entry
        for entry in entries
        if entry.strip().startswith("-") and not re.search(r"(?:\s{2,}|\n\s+)\S", entry.strip())
    ]
    assert not silent


def test_every_tool_and_target_that_readme_names_exists(readme):
    named = set(re.findall(r"tools/(\w+)\.py", readme)) - {"X"}  # stands for any tool
    assert named <= set(TOOLS), f"README names {named - set(TOOLS)}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z]+)\b(?=`|\s*$|\s+#)", readme, re.MULTILINE))
    assert used <= targets, f"README names {used - targets}"
    assert {"mini", "test"} <= used


def test_the_python_code_prints_what_it_says(readme, tmp_path, monkeypatch, capsys):
    code = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.rpartition("  # ")[2].strip()


def test_every_tool_stands_in_readme(readme):
    assert not [tool for tool in TOOLS if f"{tool}.py" not in readme]


def test_every_file_that_readme_points_to_exists(readme):
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if "://" not in link]
    paths = re.findall(r"\b(?:configs|docs)/[\w/]+\.\w+", readme)
    assert not [path for path in links + paths if not (ROOT / path).exists()]

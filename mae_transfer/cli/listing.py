"""The list of a tool's configs. It comes from their docstrings; the files are parsed but never executed."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from mae_transfer.cli.parser import COLUMNS
from mae_transfer.disk import package_folder

CONFIGS = package_folder("configs")


class Entry(NamedTuple):
    """A config file."""

    path: str  # for the command line: a path in the repository's root, else a name
    purpose: str  # one line
    cost: str


def listing(tool: str, command: str = "") -> str:
    """Return the configs of a tool as text. The command in a config's docstring names the tool.

    Args:
        tool: "pretrain" for tools/pretrain.py.
        command: one of the tool's commands ("dvae"); "": all commands.
    """
    found = entries(tool, command)
    if not found:
        return f"no config names tools/{tool}.py {command}".rstrip() + " in its docstring"
    words = textwrap.TextWrapper(width=COLUMNS, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(
        f"{entry.path}\n{words.fill(entry.purpose)}\n{words.fill(f'Cost: {entry.cost}')}" for entry in found
    )


def entries(tool: str, command: str = "") -> list[Entry]:
    """Return the configs whose docstring contains a command of the tool, sorted by path."""
    found = []
    for file in sorted(CONFIGS.rglob("*.py")):
        name = file.relative_to(CONFIGS.parent).as_posix()
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        runs = re.search(rf"tools/{tool}\.py (?:(\w+) )?{re.escape(name)}", text)
        if runs and command in ("", runs[1]):
            cost = re.search(r"^Cost: +(.+(?:\n +.+)*)", text, re.MULTILINE)
            path = name if Path.cwd() == CONFIGS.parent else name.removeprefix("configs/").removesuffix(".py")
            found.append(Entry(path, purpose(text), " ".join(cost[1].split()) if cost else "not stated"))
    return found


def tools_of(config: Path) -> list[str]:
    """Return the tools that a config's docstring names, without ".py"; none if the file cannot be read."""
    try:
        text = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):
        return []
    return re.findall(r"\btools/(\w+)\.py\b", text)


def purpose(text: str) -> str:
    """Return the first sentence of a docstring as one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\w{3}\)|\w{4})\. (?=[A-Z])", paragraph, maxsplit=1)[0]
    return textwrap.shorten(sentence.rstrip("."), COLUMNS - 4, placeholder=" ...")

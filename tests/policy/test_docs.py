"""Links and files named in docs/ exist, and every command in docs/ is accepted by its tool.

A command is a line that calls `tools/X.py`; capitals (CONFIG, D, REF) are placeholders. A block "```python file=PATH"
is a file that the reader writes; tests/integration/test_docs_examples.py writes and runs them.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mae_transfer.ablations import is_grid, points
from mae_transfer.checkpoints import PREFIXES
from mae_transfer.checkpoints.fit import MAY_CHANGE
from mae_transfer.config import load, members, read
from mae_transfer.data import AnyImages
from mae_transfer.data.maps import AnyMaps
from mae_transfer.data.objects import AnyObjects
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.graph.toolbox import TOOLBOX
from mae_transfer.suite.published import PUBLISHED

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = [
    path for path in PAGES if path.parent == ROOT / "docs"
]  # docs/results quotes commands of the commits that it measured
FILES = re.compile(r"(?<![\w/])(?:configs|docs|mae_transfer|tests|tools)/[\w/-]+\.(?:py|md|png|j2)\b")
START = re.compile(r"(?:^|\s)(?:python|torchrun(?: --?[\w-]+[ =]\S+)*) tools/(\w+)\.py\s+(.*)")


class Command(NamedTuple):
    """A call of a tool on a page."""

    page: str
    tool: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: tools/{self.tool}.py {shlex.join(self.words)}"


class Parsed(Exception):  # noqa: N818 - it is how a tool is stopped, no error
    """Raised where a tool has understood its command line."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def written(text: str) -> set[str]:
    """Return the files that a page has its reader write."""
    return set(re.findall(r"^```\w+ file=(\S+)$", text, re.MULTILINE))


def commands(page: Path) -> list[Command]:
    lines = re.sub(r"\\\n\s*", "", text_of(page)).splitlines()
    quoted = [code for line in lines if "`" in line for code in re.findall(r"`([^`]+)`", line)]
    plain = [line for line in lines if "`" not in line]
    found = [match.groups() for line in (*plain, *quoted) if (match := START.search(line))]
    return [Command(name(page), tool, tuple(shlex.split(words, comments=True))) for tool, words in found]


REPRODUCING = re.findall(
    r"^## (Table|Figure) (\w+)( to 1f)?:.*?^(Published.*?)\n\n",
    text_of(ROOT / "docs" / "reproducing.md"),
    re.MULTILINE | re.DOTALL,
)
COMMANDS = [command for page in GUIDES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_of_a_page_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(text_of(target)), (
            f"{name(page)} links to {link}, whose headings are {sorted(anchors(text_of(target)))}"
        )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_a_page_names_exists_or_is_written_on_it(page):
    text = text_of(page)
    assert not {path for path in FILES.findall(text) if not (ROOT / path).exists()} - written(text)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_tool_understands_the_command_of_a_page(command, run_tool, monkeypatch):
    assert (ROOT / "tools" / f"{command.tool}.py").is_file()
    args = understood(command, run_tool, monkeypatch)
    config = Path(str(vars(args).get("config", vars(args).get("suite", ""))))
    if config.suffix == ".py" and str(config) not in written(text_of(ROOT / command.page)):
        assert (ROOT / config).is_file(), f"{command}: no such config"
        loads(command, args, ROOT / config)


def understood(command: Command, run_tool: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what the tool's own parser makes of the command; the tool goes no further."""
    found: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object) -> argparse.Namespace:
        found.append(parse(parser, *given))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        run_tool(command.tool, *command.words)
    return found[0]


def loads(command: Command, args: argparse.Namespace, config: Path) -> None:
    """Load the config with the command's values, as the tool does; a removed key or an invalid value is an error."""
    if command.tool == "reproduce":
        load(config, SuiteConfig)
        return
    if is_grid(config):
        assert points(config, "mini" if args.mini else "paper", args.row or "")
        return
    if read(config).get("task") == "robustness":
        return  # an evaluation, which test_configs.py loads
    kind = command.words[0] if command.tool == "tokenizer_train" else command.tool
    if kind in TOOLBOX:
        load(config, TOOLBOX[kind].schema(config), overrides=args.set, debug=vars(args).get("debug", False))


@pytest.mark.parametrize(
    ("kind", "number", "span", "text"), REPRODUCING, ids=[f"{kind} {number}" for kind, number, _, _ in REPRODUCING]
)
def test_a_page_states_published_numbers_as_the_tables_print_them(kind, number, span, text):
    tables = [f"figure {number}"] if kind == "Figure" else [f"1{letter}" for letter in "abcdef"] if span else [number]
    known = {abs(one.value) for one in PUBLISHED if one.table in (*tables, "ade" if number == "5" else "")}
    stated = [float(word) for word in re.findall(r"\d+\.\d+", text)]
    assert stated
    assert not [value for value in stated if value not in known]


def test_reproducing_covers_every_table_and_figure_of_the_paper():
    covered = {number for _, number, _, _ in REPRODUCING}
    assert covered >= {"1a", "2", "3", "4", "5", "6", "7", "12", "13"}, "tables; figure 5, 7 and 9 share their numbers"
    assert {number for kind, number, _, _ in REPRODUCING if kind == "Figure"} == {"5", "7", "9"}


def test_the_pages_have_commands_for_every_training_tool():
    assert {"pretrain", "cls_train", "det_train", "seg_train", "reproduce", "tables"} <= {
        command.tool for command in COMMANDS
    }


def test_the_page_on_backbones_names_every_layout_and_every_change():
    text = text_of(ROOT / "docs" / "backbones.md")
    assert not [prefix for prefix in PREFIXES if prefix and f"`{prefix}:" not in text]
    assert not [field for field in MAY_CHANGE if f"`{field}`" not in text]


def test_the_page_on_data_names_every_data_set():
    table = text_of(ROOT / "docs" / "data.md").split("##")[0]
    assert all(f"`{entry}`" in table for union in (AnyImages, AnyObjects, AnyMaps) for entry in members(union))


def test_readme_links_to_every_guide():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in GUIDES if f"docs/{page.name}" not in readme]

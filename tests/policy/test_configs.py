"""Every config loads strictly, runs two steps in seconds, and states its command, cost and published number.

The docstring's lines: a command `... tools/X.py configs/...`, `Cost: <a number and its unit, measured or published>`,
and `Published: <number and its table>` or `Published: none ...`. A file or folder whose name begins with an underscore
is a base for others and not run.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from mae_transfer.ablations import is_grid, points
from mae_transfer.config import load, read
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.robustness import RobustnessConfig

ROOT = Path(__file__).parents[2]
FILES = [path.relative_to(ROOT) for path in sorted((ROOT / "configs").rglob("*.py"))]
CONFIGS = [str(path) for path in FILES if not any(part.startswith("_") for part in path.parts)]
GRIDS = [config for config in CONFIGS if is_grid(ROOT / config)]
SUITES = [config for config in CONFIGS if config.startswith("configs/suites/")]
EVALUATIONS = [config for config in CONFIGS if read(ROOT / config).get("task") == "robustness"]  # trains nothing


def docstring(config: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / config).read_text(encoding="utf-8"))) or ""


def tool_of(config: str) -> list[str]:
    """Return the tool in the command of a config's docstring, and its subcommand if there is one."""
    command = re.search(rf"tools/(\w+)\.py (?:(\w+) )?{re.escape(config)}\b", docstring(config))
    assert command, f"{config}: its docstring lacks the command, `python tools/X.py {config} ...`"
    return [word for word in command.groups() if word]


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("config", CONFIGS)
def test_config_says_its_command_its_cost_and_its_published_number(config):
    text = docstring(config)
    assert tool_of(config)
    cost = re.search(r"^Cost: +.*(?:\d|minutes|hours|\w+\.py)", text, re.MULTILINE)
    assert cost, "no line `Cost: ...` with a number, or the name of the config whose cost it refers to"
    assert re.search(r"^Published: +(?:none\b|.*\d)", text, re.MULTILINE), (
        "no line `Published: 83.6 (table 1c)` or `Published: none`"
    )


@pytest.mark.parametrize("config", EVALUATIONS)
def test_a_config_that_only_evaluates_loads(config):
    assert load(ROOT / config, RobustnessConfig).variants


@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in EVALUATIONS + SUITES])
def test_config_runs_two_debug_steps(config, run_tool, tmp_path):
    row = ["--row", points(ROOT / config, "mini")[-1].row, "--mini"] if config in GRIDS else []
    run_tool(*tool_of(config), config, "--work-dir", str(tmp_path / "run"), "--debug", *row)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["step"] for row in rows if "step" in row) == 2


@pytest.mark.parametrize("config", SUITES)
def test_every_run_of_a_suite_loads_and_says_what_it_costs(config):
    cfg, plan = open_plan(ROOT / config)
    assert cfg.title in (Path(config).stem, re.sub(r"(\d)", r" \1", Path(config).stem, count=1))
    assert config.endswith("mini.py") or not [node.name for node in plan.values() if node.hours is None]


@pytest.mark.parametrize("config", GRIDS)
@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_every_row_of_an_ablation_loads(config, scale):
    found = {
        point.row: load(point.config, PretrainConfig, changes=point.changes).digest()
        for point in points(ROOT / config, scale)
    }
    assert len(set(found.values())) == len(found), "two rows are the same run"


def test_a_config_extends_at_most_one_base_that_extends_none():
    bases = {
        path: re.findall(r"^_base_ = (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) for path in FILES
    }
    below = {
        path: (ROOT / path.parent / ast.literal_eval(line)).resolve().relative_to(ROOT)
        for path, lines in bases.items()
        for line in lines
    }
    assert not [f"{path} -> {base}" for path, base in below.items() if base in below]

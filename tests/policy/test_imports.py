"""Import rules: tools, suite, tasks, the middle, {targets, objectives, core, seeding}, interfaces, arithmetic.

Each external library is imported in its own modules only.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator

from mae_transfer.cli.main import COMMANDS

BASE = {
    "interfaces",
    "bounds",
    "seeding",
    "arithmetic",
    "core",
    "config",
    "disk",
    "locks",
    "download",
    "record",
}
MIDDLE = {"adapters", "models", "checkpoints", "data", "engine", "metrics", "draw", "results", "config"}
TASKS = MIDDLE | BASE | {"targets", "objectives"}

MAY_IMPORT = {
    "__init__": {"checkpoints"},  # load_backbone, when it is asked for
    "interfaces": {"arithmetic"},
    "bounds": set(),
    "seeding": set(),
    "arithmetic": set(),
    "core": {"interfaces", "bounds", "config", "seeding"},
    "targets": {"interfaces", "bounds", "config", "seeding", "arithmetic", "core"},
    "objectives": {"interfaces", "bounds", "config", "core"},
    "config": {"disk"},
    "disk": set(),
    "locks": set(),
    "ablations": {"config"},
    "__main__": {"cli"},
    "download": {"locks"},
    "record": set(),
    "results": {"config", "disk", "locks", "record"},
    "cli": TASKS | {"tasks", "ablations"},
    "adapters": BASE,
    "models": BASE,
    "checkpoints": BASE | {"models"},
    "data": BASE,
    "engine": BASE - {"core"},  # it receives callables
    "metrics": BASE | {"data"},  # the rules of COCO
    "draw": BASE,
    "tasks": TASKS,
    "suite": TASKS | {"tasks", "ablations"},
    "bench": TASKS | {"tasks", "suite", "cli"},
}

COMMANDS_OF_THE_SUITE = ("mae_transfer/cli/suite.py", "mae_transfer/cli/tables.py")
"""Only these commands know the suite. The rest of the command line works on single runs."""

# Everything works without these, so few files name them, and optional ones are imported inside a function.
ONLY_IN = {
    "mmengine": ("mae_transfer/config.py", "mae_transfer/bench/"),
    "wandb": ("mae_transfer/engine/log.py",),
    "faster_coco_eval": ("mae_transfer/metrics/coco.py",),
    "tensorboard": ("mae_transfer/engine/log.py",),
    "jinja2": ("mae_transfer/suite/report/",),
    "lightly": ("mae_transfer/bench/",),
    "transformers": ("mae_transfer/bench/",),
    "mmseg": ("mae_transfer/adapters/mmseg", "mae_transfer/bench/"),
    "cv2": ("mae_transfer/adapters/mmseg",),
    "mmcv": ("mae_transfer/adapters/mmseg", "mae_transfer/bench/"),
    "detectron2": ("mae_transfer/adapters/detectron2.py", "mae_transfer/tasks/detectron2.py", "mae_transfer/bench/"),
}
OPTIONAL = {
    "faster_coco_eval",
    "wandb",
    "lightly",
    "transformers",
    "mmseg",
    "mmcv",
    "cv2",
    "detectron2",
    "torchcodec",
}
NOT_ON_PYPI = {"detectron2"}
LOADED = """
import sys
import mae_transfer.tasks.pretrain
print(*(name for name in sys.modules if name.startswith("mae_transfer.")))
"""
MOST = {".checkpoints": 5, ".engine": 8, ".data": 11, ".core": 5, "": 9}
"""The most modules that a pretraining loads, by folder; "" is the package itself.

A pretraining itself loads ten modules of data; docs/data.md adds one. Layouts of released weights, models of timm
and transformers, and tokenizers are loaded when a reference needs them.
"""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that a tree imports; `from a import b` yields a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """Return the tree without the bodies of its functions and of `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    stripped = Strip().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(stripped, ast.Module)
    return stripped


def test_imports_within_the_package_go_one_way(package):
    known = {source.part for source in package}
    assert known <= set(MAY_IMPORT), f"say in MAY_IMPORT whom {known - set(MAY_IMPORT)} may import"
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in package
        for line, name in imports(source.tree)
        if (parts := name.split("."))[0] == "mae_transfer"
        and len(parts) > 1
        and parts[1] in known - {source.part}
        and parts[1] not in MAY_IMPORT[source.part] | ({"suite"} if source.path in COMMANDS_OF_THE_SUITE else set())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_pretraining_loads_the_modules_that_it_needs():
    """None of detection and segmentation is among them."""
    run = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {f"mae_transfer.data.{name}" for name in ("ade", "coco", "checks", "maps", "objects")}
    folders = {name.rpartition(".")[0] for name in loaded}
    for folder, most in MOST.items():
        names = sorted(name for name in loaded - folders if name.rpartition(".")[0] == f"mae_transfer{folder}")
        assert len(names) <= most, f"{len(names)} modules instead of {most}: {', '.join(names)}"


def test_nobody_reaches_into_another_folders_private_names(package, tools):
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in package + tools
        for line, name in imports(source.tree)
        if name.startswith("mae_transfer.")
        and f".{source.part}." not in name
        and any(re.match(r"_[a-z]", part) for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_tool_calls_one_command_and_does_nothing_else(tools):
    scripts = {command.script: name for name, command in COMMANDS.items()}
    assert {source.part: source.text for source in tools} == {
        script: f'''"""Run `mae-transfer {name}` from a checkout."""

import sys

from mae_transfer.cli.main import call

if __name__ == "__main__":
    sys.exit(call("{name}"))
'''
        for script, name in scripts.items()
    }


def test_each_confined_library_is_named_only_in_its_place(package, tools):
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in package + tools
        for line, name in imports(source.tree)
        for library, places in ONLY_IN.items()
        if library in name.split(".") and not name.startswith("mae_transfer") and not source.path.startswith(places)
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_libraries_are_imported_inside_functions(package, tools):
    wrong = [
        f"{source.path} imports {name} on import"
        for source in package + tools
        for _, name in imports(at_import_time(source.tree))
        if name.split(".")[0] in OPTIONAL
    ]
    assert not wrong, "\n".join(wrong)


def test_every_library_that_is_imported_is_declared_in_setup_py(package, tools):
    declared = {
        normal(re.split(r"[^\w.-]", requirement)[0])
        for requirement in importlib.metadata.requires("mae_transfer") or []
    }
    distributions = importlib.metadata.packages_distributions()
    outside = {name.split(".")[0]: source.path for source in package + tools for _, name in imports(source.tree)}
    outside = {
        name: path
        for name, path in outside.items()
        if name not in sys.stdlib_module_names | NOT_ON_PYPI | {"mae_transfer"}
    }
    missing = {
        name: path
        for name, path in outside.items()
        if not declared & {normal(d) for d in distributions.get(name, [name])}
    }
    assert not missing


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()

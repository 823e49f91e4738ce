"""Small pieces, each documented: docstrings, described options, nothing left undone, no trace of a machine."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re

import mae_transfer
from mae_transfer.config import Part, Schema

UNDONE = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|NotImplemented(?:Error)?)\b")
MACHINE = re.compile(r"(?<![\w.~}>*-])/(?:home|root|work|tmp|mnt|Users|scratch|opt|var|srv)/\w|\b[A-Z]:\\\\?\w")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def test_no_function_passes_keyword_arguments_through(package, tools):
    takers = [(s, f, f.args.kwarg.arg) for s in package + tools for f in functions(s.tree) if f.args.kwarg]
    wrong = [
        f"{s.path}:{f.lineno} {f.name}(**{name})"
        for s, f, name in takers
        if any(n.id == name for n in ast.walk(f) if isinstance(n, ast.Name))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_public_function_and_class_has_a_docstring(package, tools):
    wrong = [
        f"{source.path}: the module"
        for source in package + tools
        if not ast.get_docstring(source.tree) and source.text.strip()
    ]
    for source in package:
        public = [
            node
            for node in source.tree.body
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_")
        ]
        wrong += [f"{source.path}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert not wrong, "\n".join(wrong)


def test_every_option_of_every_config_says_what_it_does():
    for module in pkgutil.walk_packages(mae_transfer.__path__, "mae_transfer."):
        importlib.import_module(module.name)
    schemas = [
        s
        for s in subclasses(Schema)
        if s.__module__.startswith("mae_transfer.") and s.__module__ != "mae_transfer.config"
    ]  # not the tests' own
    own = [
        (schema, name)
        for schema in schemas
        for name in schema.__annotations__
        if name in schema.model_fields and not (name == "name" and issubclass(schema, Part))  # each has the same
    ]
    assert not [
        f"{schema.__module__}.{schema.__name__}.{name}"
        for schema, name in own
        if not schema.model_fields[name].description
    ]


def subclasses(schema: type[Schema]) -> set[type[Schema]]:
    return {schema}.union(*(subclasses(below) for below in schema.__subclasses__()))


def test_nothing_is_left_undone(texts):
    assert not found(UNDONE, texts)


def test_no_file_knows_the_machine_that_it_was_written_on(texts):
    assert not found(MACHINE, texts)


def found(pattern: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    """Return 'path:line: text' of each match, leaving out this file, whose business the patterns are, and URLs."""
    lines = [
        (path, number, line) for path, text in texts.items() for number, line in enumerate(text.splitlines(), start=1)
    ]
    return [
        f"{path}:{number}: {line.strip()}"
        for path, number, line in lines
        if pattern.search(re.sub(r"https?://\S+", "", line)) and path not in __file__
    ]

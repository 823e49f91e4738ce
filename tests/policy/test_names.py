"""A public class name means one thing in the whole package, and so does the name of a test file."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

TWICE = {"Block", "Part"}
"""Names of earlier versions that still stand twice. Renaming removes a name from here; none is added."""


def test_public_class_names_are_unique(package):
    places = defaultdict(list)
    for source in package:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{source.path}:{node.lineno}")
    wrong = [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1 and name not in TWICE]
    assert not wrong, "give one of each a name of its own:\n" + "\n".join(wrong)


def test_names_of_test_files_are_unique():
    """Two of one name cannot be collected in one run of pytest."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]

"""A public class name means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict

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

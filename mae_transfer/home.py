"""The user's home folder in paths: "~/data", and "mae:~/mae.pth" for a reference to weights."""

from __future__ import annotations

import re
from pathlib import Path

HOME = re.compile(r"((?:[\w-]+:)?)(~(?:/.*)?)")  # ~/data, mae:~/mae.pth


def at_home(path: str) -> str:
    """Return a path, or a reference PREFIX:PATH, with ~ replaced by the home folder. Shells leave ~ alone after an = and in quotes."""
    found = HOME.fullmatch(path)
    return f"{found[1]}{Path(found[2]).expanduser()}" if found else path

"""Expansion of the home folder in paths ("~/data") and in references to weights ("mae:~/mae.pth")."""

from __future__ import annotations

import os
import re

HOME = re.compile(r"((?:[\w-]+:)?)(~[\w.-]*(?:/.*)?)")  # ~/data, ~ann/data, mae:~/mae.pth


def at_home(path: str) -> str:
    """Return a path or a reference PREFIX:PATH with ~ or ~user replaced by the home folder.

    Shells do not expand ~ after an = or in quotes. As in a shell, ~user does not change if there is no such user.
    """
    found = HOME.fullmatch(path)
    return f"{found[1]}{os.path.expanduser(found[2])}" if found else path  # noqa: PTH111

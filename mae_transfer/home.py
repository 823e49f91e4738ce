"""The user's home folder in paths: "~/data", and "mae:~/mae.pth" for a reference to weights."""

from __future__ import annotations

import os
import re

HOME = re.compile(r"((?:[\w-]+:)?)(~[\w.-]*(?:/.*)?)")  # ~/data, ~ann/data, mae:~/mae.pth


def at_home(path: str) -> str:
    """Return a path, or a reference PREFIX:PATH, with ~ or ~user replaced by that home folder. Shells leave ~ alone after an = and in quotes.

    As in a shell, ~user stays as it is where there is no such user.
    """
    found = HOME.fullmatch(path)
    return f"{found[1]}{os.path.expanduser(found[2])}" if found else path  # noqa: PTH111

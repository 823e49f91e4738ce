"""The folders that come with the package, configs/ and tools/: beside it in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """Return a folder that comes with the package: "configs" or "tools"."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def config(text: str) -> Path:
    """Return a config file: a path that exists, or one of this package's configs by name.

    "detect/mini", "detect/mini.py" and "configs/detect/mini.py" name the same one, from any folder.
    """
    given = Path(text)
    if given.exists():
        return given
    name = given.with_suffix(".py") if given.suffix != ".py" else given
    parts = name.parts[1:] if name.parts[:1] == ("configs",) else name.parts
    known = folder("configs").joinpath(*parts)
    return known if not given.is_absolute() and known.is_file() else given

"""A resolved config as text: every value with its dotted key (as in --set) and its documentation."""

from __future__ import annotations

import inspect
import pprint
import textwrap
from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mae_transfer.cli.parser import COLUMNS, end_with_pipe
from mae_transfer.config import Part, Schema, members

WORDS = textwrap.TextWrapper(width=COLUMNS, initial_indent="    ", subsequent_indent="    ")


def show(cfg: Schema, *, title: str) -> None:
    """Print a config with the documentation of each value."""
    end_with_pipe()
    print(shown(cfg, title=title))


def shown(cfg: Schema, *, title: str) -> str:
    """Return the values of a config with their documentation; a text that several values share is printed once."""
    printed: set[str] = set()
    return "\n".join([f"# {title}", *_fields(cfg, "", printed)])


def _fields(cfg: BaseModel, prefix: str, printed: set[str], *, leave_out: str = "") -> Iterator[str]:
    for name, field in type(cfg).model_fields.items():
        if name == leave_out:
            continue
        key, value = prefix + name, getattr(cfg, name)
        about = " ".join((field.description or "").split())
        if isinstance(value, Part):
            yield from _part(cfg, field, key, value, about, printed)
        elif isinstance(value, BaseModel):
            yield from _entry(f"{key}:", about, printed)
            yield from _fields(value, f"{key}.", printed)
        elif isinstance(value, Mapping) and any(isinstance(one, BaseModel) for one in value.values()):
            yield from _entry(f"{key}:", about, printed)
            for part, one in value.items():
                yield f"{key}[{part!r}]:"
                yield from _fields(one, f"{key}[{part!r}].", printed)
        else:
            yield from _entry(_assigned(key, value), about, printed)


def _part(cfg: BaseModel, field: FieldInfo, key: str, part: Part, about: str, printed: set[str]) -> Iterator[str]:
    """Yield the name of a part and each of its options."""
    summary = (inspect.getdoc(type(part)) or "").partition("\n\n")[0]
    about = f"{about} One of {', '.join(members(field.annotation))}. {part.name}: {' '.join(summary.split())}"
    yield from _entry(_assigned(f"{key}.name", part.name), about, printed)
    # A data set without a root has that of its group (data.root).
    root = {"root": getattr(cfg, "root", None)} if getattr(part, "root", "") is None else {}
    yield from _fields(part.model_copy(update=root), f"{key}.", printed, leave_out="name")


def _entry(line: str, about: str, printed: set[str]) -> Iterator[str]:
    yield line
    if about and about not in printed:
        printed.add(about)
        yield WORDS.fill(about[0].upper() + about[1:])


def _assigned(key: str, value: object) -> str:
    if isinstance(value, tuple):  # schemas as a config writes them
        value = tuple(one.model_dump(exclude_defaults=True) if isinstance(one, BaseModel) else one for one in value)
    line = f"{key} = {value!r}"
    if len(line) <= COLUMNS:
        return line
    return f"{key} =\n" + textwrap.indent(
        pprint.pformat(value, width=COLUMNS - 4, compact=True, sort_dicts=False), "    "
    )

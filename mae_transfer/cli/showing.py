"""A resolved config as text: every value with its dotted key (as in --set) and its documentation."""

from __future__ import annotations

import inspect
import pprint
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mae_transfer.cli.parser import COLUMNS, end_with_pipe
from mae_transfer.config import Part, Schema, Spec, members

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
        elif isinstance(value, Spec):
            yield from _spec(cfg, name, key, value, about, printed)
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


def _spec(cfg: BaseModel, name: str, key: str, spec: Spec, about: str, printed: set[str]) -> Iterator[str]:
    """Yield the name of a table's entry and each of its options."""
    assert isinstance(cfg, Schema)
    table = cfg.choices[name]
    entry = table[spec.name]
    summary = (inspect.getdoc(entry) or "").partition("\n\n")[0]
    yield from _entry(
        _assigned(f"{key}.name", spec.name),
        f"{about} One of {', '.join(table)}. {spec.name}: {' '.join(summary.split())}",
        printed,
    )
    documented = arguments(entry)
    for option in options(entry):
        # A required option such as `root` is filled from the config's field of the same name (data.root).
        default = getattr(cfg, option.name, None) if option.default is option.empty else option.default
        yield from _entry(
            _assigned(f"{key}.{option.name}", spec.options.get(option.name, default)),
            documented.get(option.name, ""),
            printed,
        )


def _entry(line: str, about: str, printed: set[str]) -> Iterator[str]:
    yield line
    if about and about not in printed:
        printed.add(about)
        yield WORDS.fill(about[0].upper() + about[1:])


def _assigned(key: str, value: object) -> str:
    line = f"{key} = {value!r}"
    if len(line) <= COLUMNS:
        return line
    return f"{key} =\n" + textwrap.indent(
        pprint.pformat(value, width=COLUMNS - 4, compact=True, sort_dicts=False), "    "
    )


def options(entry: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a table's entry that a config can set: the keyword-only ones."""
    return [one for one in inspect.signature(entry).parameters.values() if one.kind is one.KEYWORD_ONLY]


def arguments(entry: Callable[..., Any]) -> dict[str, str]:
    """Return argument -> text from the docstring of a function, or of a class and its bases."""
    owners = (
        [part for one in reversed(entry.__mro__) for part in (one, vars(one).get("__init__", one))]
        if inspect.isclass(entry)
        else [entry]
    )
    found: dict[str, str] = {}
    for owner in owners:
        section = re.search(r"^Args:\n((?: .*\n?|\n)+)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
        for names, text in re.findall(
            r"^    (\w+(?:, \w+)*): (.+(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE
        ):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found

"""A resolved config as text: every value with its documentation, by the dotted key that --set takes."""

from __future__ import annotations

import inspect
import pprint
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mae_transfer.cli.parser import COLUMNS
from mae_transfer.config import Schema, Spec

WORDS = textwrap.TextWrapper(width=COLUMNS, initial_indent="    ", subsequent_indent="    ")


def shown(cfg: Schema, *, title: str) -> str:
    """Return the values of a config with their documentation; what several values share is documented at the first of them."""
    told: set[str] = set()
    return "\n".join([f"# {title}", *_fields(cfg, "", told)])


def _fields(cfg: BaseModel, prefix: str, told: set[str]) -> Iterator[str]:
    for name, field in type(cfg).model_fields.items():
        key, value = prefix + name, getattr(cfg, name)
        about = " ".join((field.description or "").split())
        if isinstance(value, Spec):
            yield from _spec(cfg, name, key, value, about, told)
        elif isinstance(value, BaseModel):
            yield from _entry(f"{key}:", about, told)
            yield from _fields(value, f"{key}.", told)
        elif isinstance(value, Mapping) and any(isinstance(one, BaseModel) for one in value.values()):
            yield from _entry(f"{key}:", about, told)
            for part, one in value.items():
                yield f"{key}[{part!r}]:"
                yield from _fields(one, f"{key}[{part!r}].", told)
        else:
            yield from _entry(_assigned(key, value), about, told)


def _spec(cfg: BaseModel, name: str, key: str, spec: Spec, about: str, told: set[str]) -> Iterator[str]:
    """Yield the name of an entry of a table, and each of its options."""
    assert isinstance(cfg, Schema)
    table = cfg.choices[name]
    entry = table[spec.name]
    summary = (inspect.getdoc(entry) or "").partition("\n\n")[0]
    yield from _entry(
        _assigned(f"{key}.name", spec.name),
        f"{about} One of {', '.join(table)}. {spec.name}: {' '.join(summary.split())}",
        told,
    )
    documented = arguments(entry)
    for option in options(entry):
        default = (
            getattr(cfg, option.name, None) if option.default is option.empty else option.default
        )  # data.root fills in for a root
        yield from _entry(
            _assigned(f"{key}.{option.name}", spec.options.get(option.name, default)),
            documented.get(option.name, ""),
            told,
        )


def _entry(line: str, about: str, told: set[str]) -> Iterator[str]:
    yield line
    if about and about not in told:
        told.add(about)
        yield WORDS.fill(about[0].upper() + about[1:])


def _assigned(key: str, value: object) -> str:
    line = f"{key} = {value!r}"
    if len(line) <= COLUMNS:
        return line
    return f"{key} =\n" + textwrap.indent(
        pprint.pformat(value, width=COLUMNS - 4, compact=True, sort_dicts=False), "    "
    )


def options(entry: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return what a config may set of an entry of a table: its keyword-only parameters."""
    return [one for one in inspect.signature(entry).parameters.values() if one.kind is one.KEYWORD_ONLY]


def arguments(entry: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring of a function, or of a class and its bases, says of each argument."""
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

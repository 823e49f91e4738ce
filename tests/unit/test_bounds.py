"""Every number in a config has bounds, and a value outside of them is one line that names the key."""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import pytest
from pydantic.fields import FieldInfo

import mae_transfer
from mae_transfer.cli.parser import count
from mae_transfer.config import Part, Schema, validate

LEAST, MOST = (annotated_types.Ge, annotated_types.Gt), (annotated_types.Le, annotated_types.Lt)


def schemas() -> list[type[Schema]]:
    for module in pkgutil.walk_packages(mae_transfer.__path__, "mae_transfer."):
        if not module.name.startswith(("mae_transfer.bench", "mae_transfer.adapters", "mae_transfer.tasks.detectron2")):
            importlib.import_module(module.name)
    found: list[type[Schema]] = [Schema]
    for schema in found:
        found += [below for below in schema.__subclasses__() if below.__module__.startswith("mae_transfer")]
    return found


def unbounded(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield the int and float types within an annotation that have not both bounds."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [m for part in more for m in (part.metadata if isinstance(part, FieldInfo) else [part])]
        yield from unbounded(inner, (*metadata, *flat))
    elif annotation in (int, float):
        if not (any(isinstance(m, LEAST) for m in metadata) and any(isinstance(m, MOST) for m in metadata)):
            yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from unbounded(part, metadata if get_origin(annotation) in (Union, types.UnionType) else ())


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_number_of_a_schema_has_both_bounds(schema: type[Schema]) -> None:
    hints = get_type_hints(schema, include_extras=True)
    assert not [name for name in schema.model_fields if list(unbounded(hints[name]))], (
        "take a type of mae_transfer/bounds.py"
    )


PARTS = [schema for schema in schemas() if issubclass(schema, Part) and not schema.model_fields["name"].is_required()]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_an_option_of_a_part_that_makes_no_sense_is_refused_by_its_name(part: type[Part]) -> None:
    hints = get_type_hints(part)
    for option in part.model_fields:
        if {int, float} & set(flat(hints[option])):
            for bad in (math.nan, math.inf, -math.inf, -1, 1e300, 10**30, "seven", (math.nan, math.nan), (1e300, -1)):
                with pytest.raises(ValueError, match=rf"{option}(\.\d)? = "):
                    validate({"name": part.model_fields["name"].default, option: bad}, part, where="test")


def flat(annotation: Any) -> list[Any]:
    return [part for below in get_args(annotation) for part in flat(below)] or [annotation]


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "nan", "1e300", "1" + 30 * "0", ""])
def test_a_flag_that_counts_takes_a_whole_number_of_one_or_more(text: str) -> None:
    assert count("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="give a whole number of 1 or more"):
        count(text)

"""Loads a config file into a strict, typed schema.

Order: Python file (mmengine, one level of `_base_`) -> debug overlay -> `--set` overrides -> Schema. An unknown key is
an error that proposes the nearest known one. Options of execution only (workers, logging, device ...) are under `run`.
A pretraining is watched by its `monitor`, which does not influence it. The digest leaves both out (SILENT), so two runs
with the same digest compute the same numbers.
"""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import json
import logging
import os
import pprint
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from mae_transfer.disk import at_home

S = TypeVar("S", bound="Schema")
_LOG = logging.getLogger(__name__)
SILENT = {"run", "monitor"}
"""Top-level keys that do not change what a run computes. Digests, records and comparisons of configs leave them out."""
NEUTRAL = {"on_error": "raise", "max_unreadable": 100}
"""Keys that do not change the digest (handling of unreadable files), with the values used for it: their defaults."""

_NOT_LITERAL = (ValueError, TypeError, MemoryError, RecursionError)  # what ast.literal_eval raises


class Schema(BaseModel):
    """Base of every config: no unknown keys, no coercion, finite numbers (see bounds.py), immutable instances."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    debug: ClassVar[Mapping[str, Any]] = {}
    """Dotted overrides of `--debug`: two steps, on CPU, in seconds. "key?" applies only if the file sets that key."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that earlier versions lacked. A dump leaves them out at their defaults, so that digests stay."""

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        usual = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in usual}

    def digest(self) -> str:
        """Return the first 16 hex digits of the sha256 of all values except SILENT and the folders of data."""
        return _digest(self.recipe())

    def recipe_digest(self) -> str:
        """Return the digest without seed and weight file; runs that differ in nothing else share it."""
        silent = dict.fromkeys(SILENT, True)
        return _digest(self.model_dump(mode="json", exclude={**silent, "seed": True, "backbone": {"reference"}}))

    def recipe(self) -> dict[str, Any]:
        """Return the values that determine what a run computes, as JSON."""
        return self.model_dump(mode="json", exclude=SILENT)

    def source(self, header: str = "") -> str:
        """Return the resolved config as the text of a config file; it loads to an equal config."""
        lines = [
            f"{key} = {pprint.pformat(value, sort_dicts=False, width=120)}" for key, value in self.model_dump().items()
        ]
        return f'"""{header}"""\n' + "\n".join(lines) + "\n"

    def differences(self, other: Self) -> list[str]:
        """Return 'key: ours != theirs' for every value that differs, except SILENT and the folders of data."""
        ours, theirs = (flatten(_normalised(cfg.model_dump(exclude=SILENT))) for cfg in (self, other))
        keys = [key for key in ours | theirs if ours.get(key, "absent") != theirs.get(key, "absent")]
        return [f"{key}: {ours.get(key, 'absent')!r} != {theirs.get(key, 'absent')!r}" for key in keys]


class Part(Schema):
    """A part of a config that is chosen by its name: dict(name="block", ratio=0.6).

    Each choice is a subclass that narrows the name (`name: Literal["block"] = "block"`), and a field takes a union of
    them: `mask: Annotated[Random | Block, Field(discriminator="name")] = Random()`. A part is saved as it was given:
    its name and the options that were set.
    """

    name: str
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        part = handler(values)
        if isinstance(values, Mapping):
            part._given = {"name": part.name, **values}
        return part

    @model_serializer
    def _as_given(self) -> dict[str, Any]:
        return dict(self._given)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return the part with these options, validated and saved like given ones."""
        return validate({**self._given, **(update or {})}, type(self), where="options of a part")


def load(
    path: str | Path,
    schema: type[S],
    *,
    changes: Mapping[str, Any] = MappingProxyType({}),
    overrides: Sequence[str] = (),
    debug: bool = False,
) -> S:
    """Read a config file into `schema`.

    Args:
        path: a Python file that only assigns values; `_base_` may name one other file.
        schema: the type of the config.
        changes: dotted key -> value, applied to the file (a row of an ablation).
        overrides: "dotted.key=value", applied last; a value that is not a Python literal is a string.
        debug: apply `schema.debug` after `changes`. Overrides of data that it generates have no effect, with a warning.
    Raises:
        ValueError: names the file, the key and the remedy.
    """
    values = read(path)
    for key, value in changes.items():
        assign(values, key, copy.deepcopy(value))
    given: list[tuple[str, str]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r}: write it as key=value, for instance --set data.root=/data/imagenet")
        given.append((key.strip(), text))
    keys = [*flatten(values), *(key for key, _ in given)]
    replaced: dict[str, list[str]] = {}  # the part and its options that can still be set: generated data; no monitor
    for name, value in (schema.debug if debug else {}).items():
        key = name.removesuffix("?")
        if key == name or any(_is_in(set_key, key) for set_key in keys):
            assign(values, key, copy.deepcopy(value))  # later overrides must not change the class
            if key == "monitor" or (isinstance(value, dict) and value.get("name") == "shapes"):
                replaced[key] = [f"{key}.{option}" for option in value or () if option != "name"]
    for key, text in given:
        if any(_is_in(key, part) and key not in options for part, options in replaced.items()):
            _LOG.warning("--debug generates its images: --set %s=%s has no effect", key, text)
        else:
            if key.endswith(".root") and f"{key.removesuffix('root')}train" in replaced:
                _LOG.warning("--debug generates its images: those of --set %s=%s are not read", key, text)
            assign(values, key, literal(text))
    return validate(values, schema, where=str(path))


def _is_in(key: str, part: str) -> bool:
    """Return whether a dotted key is a part of a config or lies in it."""
    return key == part or key.startswith(f"{part}.")


def read(path: str | Path) -> dict[str, Any]:
    """Return the values of a config file and its base, before validation; ValueError if it cannot be read."""
    from mmengine.config import Config  # a slow import, so not at module level

    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1, cutoff=0.8)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "--list shows the provided ones"
        raise ValueError(f"config file {str(path)!r} does not exist; {hint}")
    try:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
                    raise ValueError(f"line {node.lineno}: key {twice[0]!r} occurs twice in one dict; remove one")
        values: dict[str, Any] = Config.fromfile(path, lazy_import=False).to_dict()
    except Exception as error:  # the Python code of the file can raise anything
        raise ValueError(f"config file {str(path)!r} cannot be read: {type(error).__name__}: {error}") from error
    return values


def load_saved(path: Path, schema: type[S]) -> S:
    """Return the config that a run wrote into its work dir. The file is never executed: it may come from anyone."""
    return validate(read_saved(path), schema, where=str(path))


def read_saved(path: Path) -> dict[str, Any]:
    """Return the values of a config that `Schema.source` wrote, before validation.

    Raises:
        ValueError: a line is neither a docstring nor `name = literal`, or the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the work dir of a run")
    try:
        lines = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, *_NOT_LITERAL) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore the file that the run wrote") from error
    values: dict[str, Any] = {}
    for line in lines:
        try:
            values |= _assigned(line)
        except _NOT_LITERAL:
            raise ValueError(
                f"{path}, line {line.lineno}: the config of a work dir is not executed, so it holds `name = literal` "
                "only: write the value as a literal"
            ) from None
    return values


def _assigned(line: ast.stmt) -> dict[str, Any]:
    match line:
        case ast.Expr(ast.Constant(str())):
            return {}
        case ast.Assign([ast.Name(name)], value):
            return {name: ast.literal_eval(value)}
    raise ValueError(ast.unparse(line))


def validate(values: Mapping[str, Any], schema: type[S], *, where: str) -> S:
    """Return an instance of `schema`, or raise one ValueError with a line per defect."""
    try:
        return schema.model_validate(_at_home(dict(values)))
    except ValidationError as error:
        defects: dict[str, list[str]] = {}
        found = error.errors()
        for defect in found:
            if _is_explained(dict(defect), [other["loc"] for other in found], values):
                continue
            subject, words = _explain(dict(defect), schema, values)
            defects.setdefault(subject, []).append(words)
        lines = (subject + "; or ".join(dict.fromkeys(words)) for subject, words in defects.items())
        raise ValueError(f"{where}: " + "\n  ".join(lines)) from None


def _at_home(value: Any) -> Any:
    """Replace ~ by the user's home folder in all strings of a config."""
    if isinstance(value, Mapping):
        return {key: _at_home(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_at_home, value))
    return at_home(value) if isinstance(value, str) else value


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set values["a"]["b"] for the key "a.b"; missing levels are created."""
    *parents, leaf = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"key {key!r}: {'.'.join(parents[:depth])!r} is a value, not a group of keys")
    values[leaf] = value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_normalised(values), sort_keys=True).encode()).hexdigest()[:16]


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with each `root` reduced to the folder's name and the keys of NEUTRAL at their defaults.

    The same data may be in another place on another machine, or in a pack, NAME.zip.
    """
    same = {key: NEUTRAL.get(key, value) for key, value in values.items()}
    if isinstance(root := same.get("root"), str):
        same["root"] = set_name(root)
    return {key: _normalised(value) if isinstance(value, dict) else value for key, value in same.items()}


def set_name(root: str | Path) -> str:
    """Return the name of a data set: of its folder, also for "." and "..", or of its pack without ".zip"."""
    return Path(os.path.abspath(root)).name.removesuffix(".zip")  # noqa: PTH100 - Path.absolute() keeps ".."


def literal(text: str) -> Any:
    """Return the Python literal that a text spells, or the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def _is_explained(defect: dict[str, Any], places: Sequence[tuple[Any, ...]], values: Mapping[str, Any]) -> bool:
    """Return whether a dict "should be a number" only because of another defect, of a value inside it.

    places: where all defects are.
    """
    place = defect["loc"][:-1]
    inside = any(len(other) > len(place) + 1 and other[: len(place)] == place for other in places)
    is_choice = _key(place, values) == _key(defect["loc"], values)  # one of several types of the same key
    return inside and is_choice and isinstance(defect["input"], Mapping) and defect["type"].endswith("_type")


def _explain(defect: dict[str, Any], schema: type[Schema], values: Mapping[str, Any]) -> tuple[str, str]:
    """Turn one pydantic error into a line that names the key and the remedy.

    The line has two parts; several errors of one key differ in the second part only.
    """
    kind, place = defect["type"], defect["loc"]
    key = _key(place, values)
    if kind == "extra_forbidden":
        parent = _value_at(values, key.split(".")[:-1])
        choice = f" of {parent['name']!r}" if isinstance(parent, Mapping) and "name" in parent else ""
        return f"unknown key {key!r}{choice}; ", nearest(str(place[-1]), _fields_at(schema, place[:-1]))
    if kind in ("missing", "union_tag_not_found"):
        parts = (_key(place[:-1], values), str(place[-1])) if kind == "missing" else (key, "name")
        absent = ".".join(filter(None, parts))
        return f"key {absent!r} ", "is required and missing"
    if kind == "union_tag_invalid":
        tag, known = defect["ctx"]["tag"], re.findall("'(.*?)'", defect["ctx"]["expected_tags"])
        return f"{key}: ", f"unknown name {tag!r}; {nearest(tag, known)}"
    if kind == "model_attributes_type":
        return f"{key} = {defect['input']!r}: ", "write it as dict(name=...)"
    if kind == "value_error":
        return f"{key}: " if key else "", str(defect["ctx"]["error"])
    return f"{key} = {defect['input']!r}: ", defect["msg"]


def _key(location: Sequence[str | int], values: Any) -> str:
    """Return the dotted key of pydantic's location, without the names that pydantic inserts for members of a union."""
    parts = []
    for part in location:
        inside = (
            part in values
            if isinstance(values, Mapping)
            else isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)
        )
        if inside:
            parts.append(str(part))
            values = values[part]
    return ".".join(parts)


def _value_at(values: Any, path: Sequence[str]) -> Any:
    """Return the value at a dotted path; None if there is none."""
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _fields_at(schema: type[Schema], path: Sequence[Any]) -> list[str]:
    """Return the field names of the schema nested at `path`; unions and dicts of schemas are followed."""
    found: list[Any] = [schema]
    for part in path:
        found = [inner for annotation in found for inner in _below(annotation, part)]
    return [name for s in found for name in getattr(s, "model_fields", ())]


def _below(annotation: Any, part: Any) -> list[Any]:
    """Return the types that a value of the annotated type may have at its field or key `part`, or as that choice."""
    fields = getattr(annotation, "model_fields", {})
    if get_origin(annotation) is dict:
        return alternatives(get_args(annotation)[1])
    if part in fields:
        return alternatives(fields[part].annotation)
    return [annotation] if "name" in fields and fields["name"].default == part else []


def alternatives(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without their constraints."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for inner in get_args(annotation) for one in alternatives(inner)]
    return [annotation]


def members(union: Any) -> dict[str, type[Any]]:
    """Return the choices of a union of parts by their name."""
    return {part.model_fields["name"].default: part for part in alternatives(union) if part is not types.NoneType}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a proposal for a misspelled name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(names)) or 'none'}"

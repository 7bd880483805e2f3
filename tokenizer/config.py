"""Strict conversion of YAML to frozen dataclasses and back, so that a typo is an error.

Each config is a dataclass defined next to its owner, and validates itself; this file only fills it
in. `a.b=c` overrides from the command line are applied after the file and before validation.
"""

import copy
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml

from tokenizer.errors import UserError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML loader in which `1e-3` is a number and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML dumper with the same syntax of numbers, so that the text '1e-3' is written in quotes."""


# YAML 1.1 requires a dot and a signed exponent in a float; users write 1e-3 and 1.5e6.
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|[-+]?\.\d[\d_]*[eE][-+]?\d+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def build(cls: type[T], table: Mapping[str, object], where: str = "") -> T:
    """Build the dataclass `cls` from a table; `where` is the dotted name of the table itself.

    Raises UserError for an unknown, missing or wrongly typed setting, and for any ValueError of
    `__post_init__`.
    """
    assert dataclasses.is_dataclass(cls), f"{cls} is not a dataclass"
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in table:
        if name not in fields:
            raise UserError(_unknown(name, fields, where))
    kinds = typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(kinds[name], table[name], _join(where, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"missing setting {_join(where, name)!r}")
    try:
        return cast("T", cls(**values))
    except ValueError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def read(path: Path | str) -> dict[str, object]:
    """Read a YAML file of settings. Raises a one-line UserError if it is not valid."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the settings {str(path)!r}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or an invalid path
        raise UserError(f"cannot read the settings {str(path)!r}: {error}") from error
    content = _parse(text, f"the settings {str(path)!r}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the settings {str(path)!r} must be 'name: value' lines")
    for name in cast("dict[object, object]", content):
        if not isinstance(name, str):
            raise UserError(f"the settings {str(path)!r} have a name that is no text: {name!r}")
    return cast("dict[str, object]", content)


def override(table: Mapping[str, object], changes: Iterable[str]) -> dict[str, object]:
    """Return a copy of `table` with each change `a.b=c` applied; `c` is parsed as YAML.

    Raises UserError for a malformed change, or a change inside a plain value.
    """
    result = copy.deepcopy(dict(table))
    for change in changes:
        name, equals, text = change.partition("=")
        *path, last = name.strip().split(".")
        if not equals or not all((*path, last)):
            raise UserError(f"cannot read the setting {change!r}; write it as name=value")
        inner = result
        for depth, part in enumerate(path, 1):
            if inner.get(part) is None:
                inner[part] = {}
            if not isinstance(inner[part], dict):
                whole = ".".join(path[:depth])
                raise UserError(f"cannot set {name!r}: {whole!r} is a plain value")
            inner = cast("dict[str, object]", inner[part])
        inner[last] = _parse(text, f"the value of {name!r}")
    return result


def load(cls: type[T], path: Path | str, overrides: Iterable[str] = ()) -> T:
    """Read a YAML file, apply overrides, and build `cls` from the result."""
    return build(cls, override(read(path), overrides))


def table_of(config: object) -> dict[str, object]:
    """Return a dataclass as plain dicts, lists and scalars; `build` is its inverse."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    fields = [field for field in dataclasses.fields(config) if field.init]
    return {field.name: _plain(getattr(config, field.name)) for field in fields}


def dump(config: object) -> str:
    """Return a dataclass as YAML, in the order of its fields."""
    return yaml.dump(table_of(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return table_of(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[str, object]", value).items()}
    return value


def _parse(text: str, what: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{what} cannot be read as YAML: {problem}{place}") from error


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _unknown(name: object, known: Iterable[str], where: str) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(known)}"
    return f"unknown setting {_join(where, name)!r}; {hint}"


def _wrong(where: str, value: object, wanted: str) -> UserError:
    return UserError(f"setting {where!r} is {value!r}; it must be {wanted}")


def _value(kind: Any, value: object, where: str) -> object:
    """Return `value` as the annotated type `kind`, or raise UserError with the setting's name."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, where)
    if origin is Literal:
        for choice in get_args(kind):
            if type(choice) is type(value) and choice == value:
                return value
        raise _wrong(where, value, "one of " + ", ".join(map(str, get_args(kind))))
    if origin is tuple:
        return _items(get_args(kind), value, where)
    if origin is dict:
        inner = _mapping(value, where)
        return {str(key): _value(get_args(kind)[1], item, _join(where, key)) for key, item in inner}
    if dataclasses.is_dataclass(kind):
        return build(cast("type[object]", kind), dict(_mapping(value, where)), where)
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: object, where: str) -> object:
    if kind is float and type(value) in (int, float):
        return _finite(cast("float", value), where)
    if type(value) is kind:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    assert kind in names, f"{where}: settings cannot hold {kind}"
    hint = " (write it in quotes)" if kind is str and isinstance(value, int | float) else ""
    raise _wrong(where, value, names[kind] + hint)


def _finite(value: float, where: str) -> float:
    try:
        if math.isfinite(number := float(value)):
            return number
    except OverflowError:
        pass
    raise _wrong(where, value, "a finite number")


def _one_of(kinds: Sequence[Any], value: object, where: str) -> object:
    if value is None and types.NoneType in kinds:
        return None
    real = [kind for kind in kinds if kind is not types.NoneType]
    for kind in real[:-1]:
        try:
            return _value(kind, value, where)
        except UserError:
            continue
    return _value(real[-1], value, where)


def _items(kinds: Sequence[Any], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, value, "a list")
    items = list(cast("Sequence[object]", value))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise _wrong(where, value, f"a list of {len(kinds)}")
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple(_value(kind, item, _join(where, number)) for number, (kind, item) in pairs)


def _mapping(value: object, where: str) -> Iterable[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "a table of settings")
    return cast("Mapping[str, object]", value).items()

"""Typed settings from TOML: dataclasses filled from plain values, with every mistake named."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SettingsT = TypeVar("SettingsT")


def build(cls: type[SettingsT], values: Mapping[str, Any], where: str = "") -> SettingsT:
    """The dataclass `cls` from plain values; tables become the dataclasses that it nests.

    Args:
        cls: a dataclass with annotated fields.
        values: as read from TOML or JSON; lists become tuples.
        where: dotted name of `values`, for messages.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type or is refused by
            the dataclass itself; the message has its dotted name.
    """
    prefix = f"{where}." if where else ""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"unknown setting {', '.join(prefix + name for name in unknown)}; known "
            f"{'in ' + where if where else 'at the top'} are {', '.join(known)}"
        )
    types = get_type_hints(cls)
    arguments = {
        name: _convert(types[name], value, prefix + name) for name, value in values.items()
    }
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is MISSING:
            raise ValueError(f"{prefix}{name} is not set, and has no default")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `kind` wants it."""
    if get_origin(kind) in (Union, UnionType) and isinstance(value, Mapping):
        kind = next((a for a in get_args(kind) if is_dataclass(a)), kind)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return build(kind, value, name)
    if isinstance(value, list):
        value = tuple(value)
    if not _fits(kind, value):
        raise ValueError(f"{name} must be {_describe(kind)}, got {value!r}")
    return float(value) if kind is float else value


def _fits(kind: Any, value: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(arguments[0], item) for item in value)
        return len(value) == len(arguments) and all(map(_fits, arguments, value))
    if isinstance(value, bool):  # which Python counts as an integer
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_describe(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(kind, "a table of settings")


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`values` with `a.b=value` assignments applied, each value as TOML or else as a string.

    Raises ValueError if an assignment has no `=` or goes through something that is no table.
    """
    result = _copy(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set needs NAME=VALUE, got {assignment!r}")
        *tables, last = name.strip().split(".")
        inner = result
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set {name}: {table} is a value, not a table of settings")
        inner[last] = _parse(text.strip())
    return result


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _parse(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML says. Raises ValueError saying what is wrong, and where."""
    return tomllib.loads(text)

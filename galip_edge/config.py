"""Typed configurations: dataclasses built from plain values, with every mistake named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from galip_edge.errors import ConfigError
from galip_edge.extensions import config_folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ConfigT = TypeVar("ConfigT")


def read_config(
    config: str,
    assignments: Iterable[str],
    build_from: Callable[[Mapping[str, Any]], ConfigT],
    subfolder: str = "",
) -> ConfigT:
    """Read a TOML file, or a configuration in the package by name.

    Args:
        config: path of a TOML file, or such a name.
        assignments: `a.b=value`, as given to `--set`; they override the file.
        build_from: builds the configuration from plain values.
        subfolder: of the configurations in the package.

    Raises:
        ConfigError: the file is missing, or a setting is unknown, missing or invalid.
    """
    known = named_configs(subfolder)
    path = Path(config)
    if not path.is_file():
        path = known.get(config, path)
    try:
        return build_from(override(parse_toml(path.read_text(encoding="utf-8")), assignments))
    except OSError as error:
        raise ConfigError(
            f"cannot read {config} ({error.strerror}); pass a TOML file or one of "
            f"{', '.join(known)}"
        ) from error
    except ValueError as error:  # includes UTF-8 decoding errors
        raise ConfigError(f"{config}: {error}") from error


def named_configs(subfolder: str = "") -> dict[str, Path]:
    """Configurations in the package by name, in alphabetical order."""
    files = [path for folder in config_folders(subfolder) for path in folder.glob("*.toml")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def build(cls: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Build the dataclass `cls` from plain values; tables become nested dataclasses.

    A dataclass may have `ALIASES`, former names of its settings, and a class method
    `class_for(values)` that chooses a subclass.

    Args:
        cls: dataclass with annotated fields.
        values: as read from TOML or JSON; lists become tuples.
        where: dotted name of `values`, for messages.

    Raises:
        ValueError: a key is unknown or missing, or a value is of the wrong type or rejected by
            the dataclass itself; the message has its dotted name.
    """
    if class_for := getattr(cls, "class_for", None):
        cls = class_for(values)
    values = rename(values, getattr(cls, "ALIASES", {}))
    prefix = f"{where}." if where else ""
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
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


def rename(values: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """`values` with former names replaced; the later of two values wins, tables are merged."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name, before = aliases.get(key, key), result.get(aliases.get(key, key))
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**before, **value}
        result[name] = value
    return result


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as the type annotation `kind` requires."""
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
        return f"a list of {_describe(arguments[0]).split()[-1]}s"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(kind, "a table of settings")


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=value` assignments; each value is parsed as TOML, or else taken as a string.

    An empty value removes the setting, which restores its default.

    Raises ValueError if an assignment has no `=`, or its name passes through a plain value.
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
        if text.strip():
            inner[last] = _parse(text.strip())
        else:
            inner.pop(last, None)
    return result


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _parse(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError with the position of the mistake."""
    return tomllib.loads(text)


def check_integers(config: object, least: int, *names: str) -> None:
    """Raise ValueError unless each setting is an integer of at least `least`, or None."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError unless each setting is above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)!r}")


def check_not_negative(config: object, *names: str) -> None:
    """Raise ValueError unless each setting is 0 or more."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)!r}")


def check_fractions(config: object, *names: str) -> None:
    """Raise ValueError unless each setting, or each of its values, is in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not all(0 <= v < 1 for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")

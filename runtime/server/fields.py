"""Parameters of requests: what they may be, said once, for reading and for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.errors import PromptError
from runtime.prompts import MAX_CHARACTERS, checked_prompt

# The default of a parameter that must be given.
REQUIRED: Any = object()


class BadRequestError(Exception):
    """A request that cannot be met.

    Args:
        message: what is wrong, and what would be right.
        parameter: which one is wrong, if it is one.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class Field(Protocol):
    """Of a parameter, all but its name and default."""

    def read(self, value: Any, name: str) -> Any:
        """The value, if it is a valid one; else raises a BadRequestError that has `name`."""

    def schema(self) -> dict[str, Any]:
        """The same as JSON schema."""


@dataclass(frozen=True)
class Prompt:
    """What a picture shall show."""

    def read(self, value: Any, name: str) -> str:
        """See `Field`."""
        if not isinstance(value, str):
            raise BadRequestError(f"{name} must be a text", name)
        try:
            return checked_prompt(value)
        except PromptError as error:
            raise BadRequestError(str(error).encode("utf-8", "replace").decode(), name) from error

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}


@dataclass(frozen=True)
class Integer:
    """From `least` to `most`."""

    least: int
    most: int

    def read(self, value: Any, name: str) -> int:
        """See `Field`."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        if type(value) is not int or not self.least <= value <= self.most:
            raise BadRequestError(
                f"{name} must be an integer from {self.least} to {self.most}", name
            )
        return value

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Share:
    """A number from 0 to 1."""

    def read(self, value: Any, name: str) -> float:
        """See `Field`."""
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise BadRequestError(f"{name} must be a number from 0 to 1", name)
        return float(value)

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "number", "minimum": 0, "maximum": 1}


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def read(self, value: Any, name: str) -> str:
        """See `Field`."""
        if value not in self.words:
            raise BadRequestError(f"{name} must be one of {', '.join(self.words)}", name)
        return value

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True)
class Ignored:
    """Whatever it is."""

    def read(self, value: Any, name: str) -> Any:
        """See `Field`."""
        return value

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {}


@dataclass(frozen=True)
class Record:
    """A JSON object of these parameters, each with its default, and no others.

    null stands for a default.
    """

    fields: Mapping[str, tuple[Field, Any]]

    def read(self, value: Any, name: str = "") -> dict[str, Any]:
        """See `Field`; all parameters."""
        if not isinstance(value, dict):
            raise BadRequestError(f"{name or 'the body'} must be a JSON object", name or None)
        within = f"{name}." if name else ""
        if unknown := sorted(set(map(str, value)) - set(self.fields)):
            called = within + unknown[0][:40]
            raise BadRequestError(f"there is no parameter {called!r}", called)
        found = {}
        for key, (field, default) in self.fields.items():
            given = value.get(key)
            use_default = given is None and default is not REQUIRED
            found[key] = default if use_default else field.read(given, within + key)
        return found

    def schema(self) -> dict[str, Any]:
        """See `Field`."""

        def described(field: Field, default: Any) -> dict[str, Any]:
            kind = field.schema()
            return kind if default is REQUIRED or not kind else {"anyOf": [kind, {"type": "null"}]}

        return {
            "type": "object",
            "properties": {key: described(*pair) for key, pair in self.fields.items()},
            "required": [key for key, (_, default) in self.fields.items() if default is REQUIRED],
            "additionalProperties": False,
        }

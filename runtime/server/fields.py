"""Parameters of requests: their types, written once for reading and for the OpenAPI document.

By hand and not by msgspec or pydantic: clients send numbers as texts, empty texts for defaults and
-1 for a random seed, which strict libraries refuse and lenient ones turn into other errors than the
sentences that OpenAI's clients show. Ranges depend on the model and the server's options, and the
base install has no other use for a 2 MB dependency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.errors import PromptError
from runtime.prompts import MAX_CHARACTERS, checked_prompt

# Default of a required parameter.
REQUIRED: Any = object()

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")


class BadRequestError(Exception):
    """An invalid request.

    Args:
        message: what is wrong, and what would be right.
        parameter: name of the wrong parameter, if it is one.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class Field(Protocol):
    """Type of a parameter."""

    def read(self, value: Any, name: str) -> Any:
        """Validated value; raises a BadRequestError for parameter `name`."""

    def schema(self) -> dict[str, Any]:
        """JSON schema."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that the model accepts."""

    def read(self, value: Any, name: str) -> str:
        """See `Field`."""
        if not isinstance(value, str):
            raise BadRequestError(f"{name} must be a string", name)
        try:
            return checked_prompt(value)
        except PromptError as error:
            raise BadRequestError(str(error), name) from error

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}


@dataclass(frozen=True)
class Text:
    """Any text of at most `most` characters."""

    most: int = MAX_CHARACTERS

    def read(self, value: Any, name: str) -> str:
        """See `Field`."""
        if not isinstance(value, str) or len(value) > self.most:
            raise BadRequestError(
                f"{name} must be a string of at most {self.most:,} characters", name
            )
        return value

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "maxLength": self.most}


def _number(value: Any) -> Any:
    """A number that was sent as a text; anything else unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])
    return float(text) if _NUMBER.fullmatch(text) else value


@dataclass(frozen=True)
class Integer:
    """An integer from `least` to `most`, also as a text."""

    least: int
    most: int

    def read(self, value: Any, name: str) -> int:
        """See `Field`."""
        value = _number(value)
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
class Number:
    """A number from `least` to `most`, also as a text."""

    least: float = 0
    most: float = 1

    def read(self, value: Any, name: str) -> float:
        """See `Field`."""
        value = _number(value)
        if type(value) not in (int, float) or not self.least <= value <= self.most:
            raise BadRequestError(
                f"{name} must be a number from {self.least:g} to {self.most:g}", name
            )
        return float(value)

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Boolean:
    """true or false, also as a text or as 1 or 0."""

    def read(self, value: Any, name: str) -> bool:
        """See `Field`."""
        word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
        if word not in ("true", "false", "1", "0"):
            raise BadRequestError(f"{name} must be true or false", name)
        return word in ("true", "1")

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice:
    """One of some words.

    Attributes:
        words: those accepted, as they are listed.
        synonyms: further spellings, and the words they mean.
    """

    words: tuple[str, ...]
    synonyms: tuple[tuple[str, str], ...] = ()

    def read(self, value: Any, name: str) -> str:
        """See `Field`."""
        word = dict(self.synonyms).get(value, value) if isinstance(value, str) else value
        if word not in self.words:
            raise BadRequestError(f"{name} must be one of {', '.join(self.words)}", name)
        return word

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, as `WIDTHxHEIGHT`; `auto` is the model's own.

    Attributes:
        most: largest width and height.
    """

    most: int

    def read(self, value: Any, name: str) -> tuple[int, int] | None:
        """See `Field`; None for the model's own size."""
        if value == "auto":
            return None
        found = re.fullmatch(r"\s*([0-9]{1,5})\s*[xX×*]\s*([0-9]{1,5})\s*", str(value))
        if isinstance(value, str) and found:
            width, height = int(found[1]), int(found[2])
            if 1 <= width <= self.most and 1 <= height <= self.most:
                return width, height
        raise BadRequestError(
            f"{name} must be auto or WIDTHxHEIGHT with at most {self.most} pixels each", name
        )

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"type": "string", "pattern": "^(auto|[0-9]{1,4}x[0-9]{1,4})$"}


@dataclass(frozen=True)
class Ignored:
    """Anything; without effect.

    Attributes:
        warn: whether a client would expect an effect.
    """

    warn: bool = False

    def read(self, value: Any, name: str) -> Any:
        """See `Field`."""
        return value

    def schema(self) -> dict[str, Any]:
        """See `Field`."""
        return {"description": "Accepted, without effect."}


@dataclass(frozen=True)
class Record:
    """A JSON object of parameters, each with its type and default.

    null stands for a default, and so does an empty text for all but prompts.

    Attributes:
        fields: type and default by name.
        others: whether parameters of other names are ignored; else they are refused.
    """

    fields: Mapping[str, tuple[Field, Any]]
    others: bool = False

    def read(self, value: Any, name: str = "") -> dict[str, Any]:
        """See `Field`; all parameters."""
        if not isinstance(value, dict):
            raise BadRequestError(f"{name or 'the body'} must be a JSON object", name or None)
        within = f"{name}." if name else ""
        unknown = sorted(set(map(str, value)) - set(self.fields))
        if unknown and not self.others:
            called = within + unknown[0][:40]
            raise BadRequestError(f"unknown parameter {called!r}", called)
        found = {}
        for key, (field, default) in self.fields.items():
            given = value.get(key)
            is_empty = given is None or (given == "" and not isinstance(field, Prompt))
            use_default = is_empty and default is not REQUIRED
            found[key] = default if use_default else field.read(given, within + key)
        return found

    def schema(self) -> dict[str, Any]:
        """See `Field`."""

        def described(field: Field, default: Any) -> dict[str, Any]:
            kind = field.schema()
            if default is REQUIRED or isinstance(field, Ignored):
                return kind
            return {"anyOf": [kind, {"type": "null"}]}

        return {
            "type": "object",
            "properties": {key: described(*pair) for key, pair in self.fields.items()},
            "required": [key for key, (_, default) in self.fields.items() if default is REQUIRED],
            "additionalProperties": self.others,
        }

"""Requests: types of their parameters, parsing, and the form of errors.

Each parameter is declared once, for validation and for the OpenAPI document. By hand and not by
msgspec or pydantic: clients send numbers as texts, empty texts for defaults and -1 for a random
seed, which strict libraries reject, and lenient ones turn into other errors than the sentences that
OpenAI's clients show. Ranges depend on the model and the server's options, and the base install has
no other use for a 2 MB dependency.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse

from runtime.errors import PromptError
from runtime.images import FITS, ImageFormat
from runtime.latent import Interpolation, Keyframe
from runtime.noise import MAX_SEED
from runtime.prompts import MAX_CHARACTERS, checked_prompt

# Default of a required parameter.
REQUIRED: Any = object()

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")


class BadRequestError(Exception):
    """An invalid request.

    Args:
        message: what is wrong, and what is valid.
        parameter: name of the invalid parameter, if any.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class Field(Protocol):
    """Type of a parameter."""

    def read(self, value: Any, name: str) -> Any:
        """Validate and convert a value. Raises BadRequestError for parameter `name`."""

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""


@dataclass(frozen=True)
class Prompt:
    """A valid prompt."""

    def read(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise BadRequestError(f"{name} must be a string", name)
        try:
            return checked_prompt(value)
        except PromptError as error:
            raise BadRequestError(str(error), name) from error

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}


@dataclass(frozen=True)
class Text:
    """A text of at most `most` characters."""

    most: int = MAX_CHARACTERS

    def read(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or len(value) > self.most:
            raise BadRequestError(
                f"{name} must be a string of at most {self.most:,} characters", name
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.most}


def _number(value: Any) -> Any:
    """Convert a number sent as text; other values unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])
    return float(text) if _NUMBER.fullmatch(text) else value


@dataclass(frozen=True)
class Integer:
    """An integer from `least` to `most`, also as text."""

    least: int
    most: int

    def read(self, value: Any, name: str) -> int:
        value = _number(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        if type(value) is not int or not self.least <= value <= self.most:
            raise BadRequestError(
                f"{name} must be an integer from {self.least} to {self.most}", name
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`, also as text."""

    least: float = 0
    most: float = 1

    def read(self, value: Any, name: str) -> float:
        value = _number(value)
        if type(value) not in (int, float) or not self.least <= value <= self.most:
            raise BadRequestError(
                f"{name} must be a number from {self.least:g} to {self.most:g}", name
            )
        return float(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Boolean:
    """true or false, also as text, 1 or 0."""

    def read(self, value: Any, name: str) -> bool:
        word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
        if word not in ("true", "false", "1", "0"):
            raise BadRequestError(f"{name} must be true or false", name)
        return word in ("true", "1")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice:
    """One of several words.

    Attributes:
        words: accepted words, in the order of the documentation.
        synonyms: further spellings, with their words.
    """

    words: tuple[str, ...]
    synonyms: tuple[tuple[str, str], ...] = ()

    def read(self, value: Any, name: str) -> str:
        word = dict(self.synonyms).get(value, value) if isinstance(value, str) else value
        if word not in self.words:
            raise BadRequestError(f"{name} must be one of {', '.join(self.words)}", name)
        return word

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, as `WIDTHxHEIGHT`; `auto` is the model's own.

    Attributes:
        most: largest width and height.
    """

    most: int

    def read(self, value: Any, name: str) -> tuple[int, int] | None:
        """Width and height, or None for the model's own size."""
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
        return {"type": "string", "pattern": "^(auto|[0-9]{1,4}x[0-9]{1,4})$"}


@dataclass(frozen=True)
class Ignored:
    """A value without effect.

    Attributes:
        warn: whether a client would expect an effect.
    """

    warn: bool = False

    def read(self, value: Any, name: str) -> Any:
        return value

    def schema(self) -> dict[str, Any]:
        return {"description": "Accepted, without effect."}


@dataclass(frozen=True)
class Record:
    """A JSON object of parameters, each with its type and default.

    null stands for a default, and so does an empty text for all but prompts.

    Attributes:
        fields: type and default by name.
        ignore_unknown: ignore parameters of other names instead of rejecting them.
    """

    fields: Mapping[str, tuple[Field, Any]]
    ignore_unknown: bool = False

    def read(self, value: Any, name: str = "") -> dict[str, Any]:
        """Return all parameters, with defaults for missing ones."""
        if not isinstance(value, dict):
            raise BadRequestError(f"{name or 'the body'} must be a JSON object", name or None)
        within = f"{name}." if name else ""
        unknown = sorted(set(map(str, value)) - set(self.fields))
        if unknown and not self.ignore_unknown:
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

        def described(field: Field, default: Any) -> dict[str, Any]:
            kind = field.schema()
            if default is REQUIRED or isinstance(field, Ignored):
                return kind
            return {"anyOf": [kind, {"type": "null"}]}

        return {
            "type": "object",
            "properties": {key: described(*pair) for key, pair in self.fields.items()},
            "required": [key for key, (_, default) in self.fields.items() if default is REQUIRED],
            "additionalProperties": self.ignore_unknown,
        }


# Largest width and height of an image, in pixels.
MAX_SIDE = 2048

# Any index is valid; numbers in requests are bounded nevertheless.
_MAX_INDEX = 2**31 - 1

# OpenAI's parameters without meaning for this model.
_IGNORED = (
    "background",
    "complexity",
    "moderation",
    "prompt_rewriter",
    "quality",
    "safety_identifier",
    "style",
    "user",
)

# Parameters of diffusion models, which generic clients send to any image server.
_DIFFUSION = (
    "cfg_scale",
    "guidance_scale",
    "negative_prompt",
    "num_inference_steps",
    "sampler_name",
    "scheduler",
    "steps",
)

_PROMPT: dict[str, Any] = {"prompt": (Prompt(), REQUIRED)}
_KEYFRAME = Record(
    _PROMPT | {"seed": (Integer(0, MAX_SEED), 0), "index": (Integer(0, _MAX_INDEX), 0)}
)

# An interpolation between two keyframes.
INTERPOLATION = Record(
    {
        "model": (Text(), None),
        "start": (_KEYFRAME, REQUIRED),
        "end": (_KEYFRAME, None),
        "sentence_share": (Number(), 0.0),
        "noise_share": (Number(), 0.0),
        "psi": (Number(), 1.0),
    }
)


def generation(most: int) -> Record:
    """Parameters of OpenAI's image generations, and our own: seed, psi and fit.

    Args:
        most: images of one request.
    """
    formats = Choice(("png", "jpeg", "webp"), synonyms=(("jpg", "jpeg"),))
    return Record(
        _PROMPT
        | {
            "model": (Text(), None),
            "n": (Integer(1, most), 1),
            "size": (Size(MAX_SIDE), None),
            "width": (Integer(1, MAX_SIDE), None),
            "height": (Integer(1, MAX_SIDE), None),
            "response_format": (Choice(("url", "b64_json")), None),
            "output_format": (formats, "png"),
            "output_compression": (Integer(0, 100), None),
            "stream": (Boolean(), False),
            "partial_images": (Integer(0, 3), 0),
            "seed": (Integer(-1, MAX_SEED), -1),
            "psi": (Number(), 1.0),
            "fit": (Choice(FITS), "crop"),
            **{name: (Ignored(), None) for name in _IGNORED},
            **{name: (Ignored(warn=True), None) for name in _DIFFUSION},
        }
    )


@dataclass(frozen=True)
class Delivery:
    """How an image is delivered.

    Attributes:
        size: width and height in pixels; None for the model's own.
        fit: see `runtime.images.resized`.
        image_format: of the file.
    """

    size: tuple[int, int] | None = None
    fit: str = "crop"
    image_format: ImageFormat = ImageFormat("png")  # noqa: RUF009 - immutable


@dataclass(frozen=True)
class Generation:
    """A valid request for images of a prompt.

    Attributes:
        model: requested name.
        blends: one for each image.
        seed: of the noise; random by default.
        delivery: size and format.
        as_url: respond with URLs instead of files.
        stream: respond with server-sent events.
        warnings: about parameters without effect.
    """

    model: str | None
    blends: list[Interpolation]
    seed: int
    delivery: Delivery
    as_url: bool
    stream: bool
    warnings: list[str]


def parse_generation(body: Any, most: int) -> Generation:
    """Parse a request for images of a prompt; see `generation`.

    Raises:
        BadRequestError: it is invalid.
    """
    record = generation(most)
    found = record.read(body)
    seed = random_seed() if found["seed"] == -1 else found["seed"]
    blends = [
        Interpolation(Keyframe(found["prompt"], seed, index), psi=found["psi"])
        for index in range(found["n"])
    ]
    return Generation(
        found["model"],
        blends,
        seed,
        Delivery(_size(found), found["fit"], _image_format(found)),
        as_url=not found["stream"] and _answers_with_url(found),
        stream=found["stream"],
        warnings=ineffective(record, found),
    )


def random_seed() -> int:
    """A seed of 32 bits, exact in every client."""
    return secrets.randbelow(2**32)


def ineffective(record: Record, found: dict[str, Any]) -> list[str]:
    """Warning about parameters without the effect that a client expects."""
    names = [
        name
        for name, (field, _) in record.fields.items()
        if isinstance(field, Ignored) and field.warn and found[name] not in (None, "")
    ]
    return [f"without effect on this model: {', '.join(names)}"] if names else []


def _size(found: dict[str, Any]) -> tuple[int, int] | None:
    """Size from `size`, or from `width` and `height`, as some clients send."""
    width, height = found["width"], found["height"]
    if found["size"] is None and (width or height):
        return width or height, height or width
    size: tuple[int, int] | None = found["size"]
    return size


def _answers_with_url(found: dict[str, Any]) -> bool:
    if found["response_format"]:
        return found["response_format"] == "url"
    # As with OpenAI's models: DALL-E returns URLs, GPT Image returns files.
    return not (found["model"] or "").lower().startswith(("gpt-image", "chatgpt-image"))


def _image_format(found: dict[str, Any]) -> ImageFormat:
    quality = found["output_compression"]
    if quality is None:
        return ImageFormat(found["output_format"])
    return ImageFormat(found["output_format"], max(1, quality))


def parse_interpolation(body: Any) -> tuple[str | None, Interpolation]:
    """Parse model name and interpolation; see `INTERPOLATION`.

    Raises:
        BadRequestError: it is invalid.
    """
    found = INTERPOLATION.read(body)
    model, end = found.pop("model"), found.pop("end")
    return model, Interpolation(Keyframe(**found.pop("start")), end and Keyframe(**end), **found)


class ServiceError(Exception):
    """A request that cannot be fulfilled.

    Args:
        status: of the response.
        message: for users.
        code: for programs.
        parameter: name of the invalid parameter, if any.
    """

    def __init__(self, status: int, message: str, code: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.parameter = status, code, parameter


def error_body(
    status: int, message: str, code: str, parameter: str | None = None
) -> dict[str, Any]:
    """JSON of an error. Clients of A1111's API show `detail`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = _encodable(message)
    parameter = None if parameter is None else _encodable(parameter)
    error = {"message": message, "type": kind, "param": parameter, "code": code}
    return {"error": error, "detail": message}


def _encodable(text: str) -> str:
    """`text` without lone surrogates, which a request's JSON may contain and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(
    status: int,
    message: str,
    code: str,
    parameter: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Response with an error in OpenAI's format."""
    return JSONResponse(error_body(status, message, code, parameter), status, headers=headers)


async def service_error(_: Request, error: Any) -> JSONResponse:
    """Handler of ServiceError."""
    return error_response(error.status, str(error), error.code, error.parameter)


async def bad_request(_: Request, error: Any) -> JSONResponse:
    """Handler of BadRequestError."""
    return error_response(400, str(error), "invalid_request_error", error.parameter)


async def not_found(request: Request, error: Any) -> JSONResponse:
    """Handler of 404 and 405."""
    if error.status_code == 405:
        message = f"{request.method} is not allowed here"
        return error_response(405, message, "not_allowed", headers=dict(error.headers or {}))
    return error_response(404, "not found", "not_found")

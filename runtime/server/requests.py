"""What may be asked of `/v1/images/generations`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from runtime.errors import PromptError
from runtime.noise import MAX_SEED
from runtime.prompts import MAX_CHARACTERS, checked_prompt

FORMATS = ("url", "b64_json")

# Settings of OpenAI's that change nothing here, and are accepted.
IGNORED = ("model", "quality", "style", "user", "background", "moderation", "output_format")


class BadRequestError(Exception):
    """A request that cannot be met.

    Args:
        message: what is wrong, and what would be right.
        parameter: which one is wrong, if it is one.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True)
class ImagesRequest:
    """A valid request.

    Attributes:
        prompt: what the pictures shall show.
        n: how many.
        seed: of their noise; drawn by chance if none was given.
        response_format: one of `FORMATS`.
    """

    prompt: str
    n: int
    seed: int
    response_format: str


def parse(body: Any, side: int, most: int) -> ImagesRequest:
    """A request from its JSON.

    Args:
        body: the parsed JSON.
        side: of the model's pictures, in pixels.
        most: pictures that a request may ask for.

    Raises:
        BadRequestError: it is none.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    known = {"prompt", "n", "seed", "size", "response_format", *IGNORED}
    if unknown := sorted(set(map(str, body)) - known):
        raise BadRequestError(f"there is no parameter {unknown[0][:40]!r}", unknown[0][:40])
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise BadRequestError("prompt must be a text", "prompt")
    try:
        checked_prompt(prompt)
    except PromptError as error:
        raise BadRequestError(str(error).encode("utf-8", "replace").decode(), "prompt") from error
    size = _default(body, "size", "auto")
    if size not in ("auto", f"{side}x{side}"):
        raise BadRequestError(f"size must be {side}x{side} or auto", "size")
    kind = _default(body, "response_format", "url")
    if kind not in FORMATS:
        raise BadRequestError(
            f"response_format must be one of {', '.join(FORMATS)}", "response_format"
        )
    n = _integer(body, "n", 1, 1, most)
    seed = _integer(body, "seed", secrets.randbelow(2**32), 0, MAX_SEED)
    return ImagesRequest(prompt, n, seed, kind)


def _default(body: dict[str, Any], name: str, default: str) -> Any:
    value = body.get(name)
    return default if value is None else value


def _integer(body: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequestError(f"{name} must be an integer from {least} to {most}", name)
    return value


def schema(side: int, most: int) -> dict[str, Any]:
    """The same as JSON schema, for the OpenAPI document."""

    def nullable(**kind: Any) -> dict[str, Any]:
        return {"anyOf": [kind, {"type": "null"}]}

    sizes = ["auto", f"{side}x{side}"]
    properties: dict[str, Any] = {
        "prompt": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS},
        "n": nullable(type="integer", minimum=1, maximum=most),
        "seed": nullable(type="integer", minimum=0, maximum=MAX_SEED),
        "size": nullable(type="string", enum=sizes),
        "response_format": nullable(type="string", enum=list(FORMATS)),
        **{name: {} for name in IGNORED},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "additionalProperties": False,
    }

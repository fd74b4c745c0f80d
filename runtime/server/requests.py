"""Requests for images: OpenAI's, and our own for interpolations."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from runtime.images import FITS, ImageFormat
from runtime.latent import Interpolation, Keyframe
from runtime.noise import MAX_SEED
from runtime.server.fields import (
    REQUIRED,
    Boolean,
    Choice,
    Ignored,
    Integer,
    Number,
    Prompt,
    Record,
    Size,
    Text,
)

# Largest width and height of an image, in pixels.
MAX_SIDE = 2048

# An index costs nothing, but a request is no place for unbounded numbers.
_MAX_INDEX = 2**31 - 1

# OpenAI's parameters that have no meaning for this model.
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

# Parameters of diffusion models, which generic clients send to any server of images.
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

# An image between two.
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
    """Images of a prompt, as OpenAI's clients ask for them; seed, psi and fit are our own.

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
        model: name that the client gave.
        blends: what each image is made from.
        seed: of their noise; random if none was given.
        delivery: see there.
        as_url: whether to answer with URLs instead of files.
        stream: whether to answer with server-sent events.
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
    """A request from its JSON; see `generation`.

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
    """A seed of 32 bits, which every client can hold."""
    return secrets.randbelow(2**32)


def ineffective(record: Record, found: dict[str, Any]) -> list[str]:
    """A warning about given parameters from which a client would expect an effect."""
    names = [
        name
        for name, (field, _) in record.fields.items()
        if isinstance(field, Ignored) and field.warn and found[name] not in (None, "")
    ]
    return [f"without effect on this model: {', '.join(names)}"] if names else []


def _size(found: dict[str, Any]) -> tuple[int, int] | None:
    """`size`, or `width` and `height`, as clients of other hosts send them."""
    width, height = found["width"], found["height"]
    if found["size"] is None and (width or height):
        return width or height, height or width
    size: tuple[int, int] | None = found["size"]
    return size


def _answers_with_url(found: dict[str, Any]) -> bool:
    if found["response_format"]:
        return found["response_format"] == "url"
    # As OpenAI's own models do: DALL-E answers with URLs, GPT Image with files.
    return not (found["model"] or "").lower().startswith(("gpt-image", "chatgpt-image"))


def _image_format(found: dict[str, Any]) -> ImageFormat:
    quality = found["output_compression"]
    if quality is None:
        return ImageFormat(found["output_format"])
    return ImageFormat(found["output_format"], max(1, quality))


def parse_interpolation(body: Any) -> tuple[str | None, Interpolation]:
    """Name of the model and an image between two from their JSON; see `INTERPOLATION`.

    Raises:
        BadRequestError: it is invalid.
    """
    found = INTERPOLATION.read(body)
    model, end = found.pop("model"), found.pop("end")
    return model, Interpolation(Keyframe(**found.pop("start")), end and Keyframe(**end), **found)

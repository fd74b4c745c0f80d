"""What may be asked of the server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from runtime.keyframes import Blend, Keyframe
from runtime.noise import MAX_SEED
from runtime.server.fields import REQUIRED, Choice, Ignored, Integer, Prompt, Record, Share

# Settings of OpenAI's that change nothing here, and are accepted.
_IGNORED = ("model", "quality", "style", "user", "background", "moderation", "output_format")

# An index costs nothing, but a request is no place for numbers without end.
_MAX_INDEX = 2**31 - 1

_PROMPT: dict[str, Any] = {"prompt": (Prompt(), REQUIRED)}
_KEYFRAME = Record(
    _PROMPT | {"seed": (Integer(0, MAX_SEED), 0), "index": (Integer(0, _MAX_INDEX), 0)}
)

# A picture between two.
INTERPOLATION = Record(
    {
        "start": (_KEYFRAME, REQUIRED),
        "end": (_KEYFRAME, None),
        "sentence_share": (Share(), 0.0),
        "noise_share": (Share(), 0.0),
        "psi": (Share(), 1.0),
    }
)


def generation(side: int, most: int) -> Record:
    """Pictures of a prompt, as OpenAI's clients ask for them; seed and psi are our own.

    Args:
        side: of the model's pictures, in pixels.
        most: pictures that a request may ask for.
    """
    return Record(
        _PROMPT
        | {
            "n": (Integer(1, most), 1),
            "seed": (Integer(0, MAX_SEED), None),
            "psi": (Share(), 1.0),
            "size": (Choice(("auto", f"{side}x{side}")), "auto"),
            "response_format": (Choice(("url", "b64_json")), "url"),
            **{name: (Ignored(), None) for name in _IGNORED},
        }
    )


@dataclass(frozen=True)
class Generation:
    """A valid request for pictures of a prompt.

    Attributes:
        blends: what each is made from.
        seed: of their noise; drawn by chance if none was given.
        as_url: whether their addresses are wanted, and not they.
    """

    blends: list[Blend]
    seed: int
    as_url: bool


def parse_generation(body: Any, side: int, most: int) -> Generation:
    """A request from its JSON; see `generation`.

    Raises:
        BadRequestError: it is none.
    """
    found = generation(side, most).read(body)
    seed = secrets.randbelow(2**32) if found["seed"] is None else found["seed"]
    blends = [
        Blend(Keyframe(found["prompt"], seed, index), psi=found["psi"])
        for index in range(found["n"])
    ]
    return Generation(blends, seed, found["response_format"] == "url")


def parse_interpolation(body: Any) -> Blend:
    """A picture between two from its JSON; see `INTERPOLATION`.

    Raises:
        BadRequestError: it is none.
    """
    found = INTERPOLATION.read(body)
    end = found.pop("end")
    return Blend(Keyframe(**found.pop("start")), end and Keyframe(**end), **found)

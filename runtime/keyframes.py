"""What a picture is made from."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType

from runtime.checks import checked_integer, checked_share
from runtime.noise import MAX_SEED


@dataclass(frozen=True)
class Keyframe:
    """A picture that `generate` makes.

    Attributes:
        prompt: what it shows.
        seed: of its noise.
        index: which image of the prompt.
    """

    prompt: str
    seed: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be text, got {self.prompt!r}")
        checked_integer(self.seed, "seed", 0, MAX_SEED)
        checked_integer(self.index, "index", 0)


@dataclass(frozen=True)
class Blend:
    """A picture between two, or one of them.

    Attributes:
        start: where both shares are 0.
        end: where both shares are 1; None stays at the start.
        sentence_share: of the way from the start's sentence embedding to the end's, in [0,1].
        noise_share: of the way from the start's noise to the end's, in [0,1].
        psi: truncation in [0,1], see `runtime.noise.truncated`.
    """

    start: Keyframe
    end: Keyframe | None = None
    sentence_share: float = 0.0
    noise_share: float = 0.0
    psi: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not isinstance(getattr(self, name), (Keyframe, NoneType)):
                raise ValueError(f"{name} must be a Keyframe, got {getattr(self, name)!r}")
        for name in ("sentence_share", "noise_share", "psi"):
            checked_share(getattr(self, name), name)

"""What a picture is made from."""

from __future__ import annotations

from dataclasses import dataclass


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
        for name in ("sentence_share", "noise_share", "psi"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

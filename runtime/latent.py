"""The latent space: keyframes, interpolations between them, and grids.

An image is computed from noise and a sentence embedding; an interpolation moves both. Noise drawn
from N(0,1) in many dimensions lies near a sphere, so the path is an arc (slerp): a straight line
would leave the sphere. The paper shows such interpolations (Tao et al. 2023,
https://arxiv.org/abs/2301.12959).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from runtime.arrays import Floats, Images
from runtime.checks import checked_integer, checked_share
from runtime.noise import MAX_SEED, draw_noise, truncate

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

# Noise (noise_dim,) and sentence embedding (embedding_dim,) of an image.
Latent: TypeAlias = tuple[Floats, Floats]


@dataclass(frozen=True)
class Keyframe:
    """Prompt, seed and index of an image, as `Pipeline.generate` creates it.

    Raises ValueError if the seed or the index is out of range.
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
class Interpolation:
    """A keyframe, or a point between two.

    Attributes:
        start: result where both shares are 0.
        end: result where both shares are 1; None for `start` alone.
        sentence_share: position between the two sentence embeddings, in [0,1].
        noise_share: position between the two noise vectors, in [0,1].
        psi: truncation in [0,1], see `runtime.noise.truncate`.
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


def slerp(start: Floats, end: Floats, share: float) -> Floats:
    """Spherical interpolation of direction, linear interpolation of length.

    Args:
        start, end: vectors of equal length.
        share: from 0, which returns `start` exactly, to 1, which returns `end`.

    Raises:
        ValueError: the shapes differ, or share is not a finite number.
    """
    if start.ndim != 1 or start.shape != end.shape:
        raise ValueError(f"slerp needs two vectors of one length, got {start.shape}, {end.shape}")
    if not isinstance(share, (int, float, np.number)) or not np.isfinite(share):
        raise ValueError(f"share must be a number, got {share!r}")
    if share <= 0 or share >= 1:
        return start if share <= 0 else end
    a, b = start.astype(np.float64), end.astype(np.float64)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    both = lengths[0] * lengths[1]
    angle = np.arccos(np.clip(a @ b / both, -1, 1)) if both else 0.0
    if np.sin(angle) < 1e-6:  # no unique arc: a zero vector, equal or opposite directions
        return ((1 - share) * a + share * b).astype(np.float32)
    direction = (
        np.sin((1 - share) * angle) * a / lengths[0] + np.sin(share * angle) * b / lengths[1]
    )
    length = (1 - share) * lengths[0] + share * lengths[1]
    return (direction / np.sin(angle) * length).astype(np.float32)


def slerp_latents(start: Latent, end: Latent, share: float) -> Latent:
    """`slerp` of noise and of sentence embedding."""
    return slerp(start[0], end[0], share), slerp(start[1], end[1], share)


def keyframe_latent(pipeline: Pipeline, keyframe: Keyframe, psi: float = 1.0) -> Latent:
    """Latent of a keyframe.

    Args:
        pipeline: encodes the prompt.
        keyframe: to look up.
        psi: truncation, see `runtime.noise.truncate`.

    Raises:
        PromptError: the prompt is empty, too long or not valid text.
        ValueError: psi is out of range.
    """
    sentence = pipeline.encode([keyframe.prompt])[0]
    size = pipeline.manifest.noise_dim
    noise = draw_noise(keyframe.seed, keyframe.prompt, keyframe.index, size)
    return truncate(noise, psi), sentence


def interpolation_latent(pipeline: Pipeline, interpolation: Interpolation) -> Latent:
    """Latent of an interpolation.

    Raises PromptError if a prompt is empty, too long or not valid text.
    """
    start = keyframe_latent(pipeline, interpolation.start, interpolation.psi)
    if interpolation.end is None:
        return start
    end = keyframe_latent(pipeline, interpolation.end, interpolation.psi)
    noise = slerp(start[0], end[0], interpolation.noise_share)
    return noise, slerp(start[1], end[1], interpolation.sentence_share)


def interpolation_path(
    keyframes: Sequence[Keyframe], steps: int, loop: bool = False, psi: float = 1.0
) -> list[Interpolation]:
    """Interpolations through all keyframes, in order, keyframes included.

    Args:
        keyframes: at least two.
        steps: from each keyframe to the next, with `steps` - 1 images between them.
        loop: return to the first keyframe, without repeating it.
        psi: truncation, see `runtime.noise.truncate`.

    Raises:
        ValueError: there are fewer than two keyframes, or steps is below 1.
    """
    keyframes = _checked_keyframes(keyframes)
    if len(keyframes) < 2:
        raise ValueError(f"an interpolation needs at least two keyframes, got {len(keyframes)}")
    steps = checked_integer(steps, "steps", 1)
    ends = [*keyframes[1:], keyframes[0]] if loop else keyframes[1:]
    path = []
    for start, end in zip(keyframes, ends):
        path.append(Interpolation(start, psi=psi))
        path += [Interpolation(start, end, i / steps, i / steps, psi) for i in range(1, steps)]
    return path if loop else [*path, Interpolation(keyframes[-1], psi=psi)]


def _checked_keyframes(keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    found = list(keyframes) if isinstance(keyframes, Iterable) else [keyframes]
    for keyframe in found:
        if not isinstance(keyframe, Keyframe):
            raise ValueError(f"keyframes must be Keyframe objects, got {keyframe!r}")
    return found


def interpolate(
    pipeline: Pipeline,
    keyframes: Sequence[Keyframe],
    steps: int,
    loop: bool = False,
    psi: float = 1.0,
) -> Iterator[Images]:
    """Images (H,W,3) of the `interpolation_path` through all keyframes.

    Images of the keyframes equal those of `Pipeline.generate` with the same psi, to the bit.

    Raises:
        ValueError: there are fewer than two keyframes, or steps is below 1.
        PromptError: a prompt is empty, too long or not valid text.
    """
    yield from generate_interpolations(pipeline, interpolation_path(keyframes, steps, loop, psi))


def generate_interpolations(
    pipeline: Pipeline, interpolations: Sequence[Interpolation]
) -> Iterator[Images]:
    """The image (H,W,3) of each interpolation, in order.

    Raises PromptError before the first one if a prompt is empty, too long or not valid text.
    """
    latents = [interpolation_latent(pipeline, each) for each in interpolations]
    yield from pipeline.synthesize_each(latents, len(latents))


def latent_grid(
    pipeline: Pipeline,
    corners: Sequence[Keyframe],
    rows: int,
    columns: int,
    psi: float = 1.0,
) -> Iterator[Images]:
    """Images (H,W,3) of a grid between four keyframes, row by row.

    Args:
        pipeline: generates the images.
        corners: top left, top right, bottom left, bottom right.
        rows, columns: size of the grid, at least 2 each.
        psi: truncation, see `runtime.noise.truncate`.

    Raises:
        ValueError: the number of corners is not four, or the grid is too small.
        PromptError: a prompt is empty, too long or not valid text.
    """
    corners = _checked_keyframes(corners)
    rows = checked_integer(rows, "rows", 0)
    columns = checked_integer(columns, "columns", 0)
    if len(corners) != 4 or min(rows, columns) < 2:
        raise ValueError(
            f"a grid needs four corners and at least 2 x 2 images, got {len(corners)} corners and "
            f"{rows} x {columns}"
        )
    latents = [keyframe_latent(pipeline, corner, psi) for corner in corners]
    grid = []
    for row in range(rows):
        down = row / (rows - 1)
        left, right = (slerp_latents(latents[i], latents[i + 2], down) for i in range(2))
        grid += [slerp_latents(left, right, column / (columns - 1)) for column in range(columns)]
    yield from pipeline.synthesize_each(grid, len(grid))

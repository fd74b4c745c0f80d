"""Moving through the latent space: pictures between pictures.

A picture comes from noise and a sentence embedding, so whatever lies between two of them lies
between their noises and their sentences. Noise is drawn from N(0,1) in many dimensions, where
nearly all of it lies near a sphere; a straight line between two points would leave it, an arc does
not. The paper shows such interpolations (Tao et al. 2023, https://arxiv.org/abs/2301.12959).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from runtime.checks import checked_integer
from runtime.keyframes import Blend, Keyframe
from runtime.noise import draw_noise, truncated
from runtime.pipeline import Floats, Images, Pipeline

# Noise and sentence embedding of a picture.
Latent = tuple[Floats, Floats]


def slerp(start: Floats, end: Floats, share: float) -> Floats:
    """On the arc from `start` to `end`, with the length changing evenly.

    Args:
        start, end: vectors of one length.
        share: of the way, from 0, where it is `start` to the bit, to 1, where it is `end`.

    Raises:
        ValueError: the vectors have other shapes, or share is no number.
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
    if np.sin(angle) < 1e-6:  # no arc from nothing, in one direction, or between opposite ones
        return ((1 - share) * a + share * b).astype(np.float32)
    direction = (
        np.sin((1 - share) * angle) * a / lengths[0] + np.sin(share * angle) * b / lengths[1]
    )
    length = (1 - share) * lengths[0] + share * lengths[1]
    return (direction / np.sin(angle) * length).astype(np.float32)


def latent_of(pipeline: Pipeline, keyframe: Keyframe, psi: float = 1.0) -> Latent:
    """What `generate` makes its picture from.

    Args:
        pipeline: of the model.
        keyframe: see there.
        psi: see `truncated`.

    Raises:
        PromptError: its prompt is empty, too long or no valid text.
        ValueError: psi or the seed is out of range.
    """
    sentence = pipeline.encode([keyframe.prompt])[0]
    size = pipeline.manifest.noise_dim
    noise = draw_noise(keyframe.seed, keyframe.prompt, keyframe.index, size)
    return truncated(noise, psi), sentence


def blended(pipeline: Pipeline, blend: Blend) -> Latent:
    """What the picture of a blend is made from.

    Raises:
        PromptError: a prompt is empty, too long or no valid text.
        ValueError: a seed is out of range.
    """
    start = latent_of(pipeline, blend.start, blend.psi)
    if blend.end is None:
        return start
    end = latent_of(pipeline, blend.end, blend.psi)
    noise = slerp(start[0], end[0], blend.noise_share)
    return noise, slerp(start[1], end[1], blend.sentence_share)


def between(start: Latent, end: Latent, share: float) -> Latent:
    """`share` of the way from one latent to another."""
    return slerp(start[0], end[0], share), slerp(start[1], end[1], share)


def way(
    keyframes: Sequence[Keyframe], steps: int, loop: bool = False, psi: float = 1.0
) -> list[Blend]:
    """What lies on the way through all keyframes, in order, the keyframes themselves included.

    Args:
        keyframes: at least two.
        steps: from each keyframe to the next; there are `steps` - 1 pictures between them.
        loop: whether the way leads back to the first keyframe, which is not repeated at its end.
        psi: see `truncated`.

    Raises:
        ValueError: there are fewer than two keyframes, or steps is below 1.
    """
    keyframes = _checked_keyframes(keyframes)
    if len(keyframes) < 2:
        raise ValueError(f"an interpolation needs at least two keyframes, got {len(keyframes)}")
    steps = checked_integer(steps, "steps", 1)
    ends = [*keyframes[1:], keyframes[0]] if loop else keyframes[1:]
    found = []
    for start, end in zip(keyframes, ends):
        found.append(Blend(start, psi=psi))
        found += [Blend(start, end, i / steps, i / steps, psi) for i in range(1, steps)]
    return found if loop else [*found, Blend(keyframes[-1], psi=psi)]


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
    """Pictures (H,W,3) on the `way` through all keyframes, in order.

    The keyframes themselves are the pictures of `generate`, to the bit, if psi is 1.

    Args:
        pipeline: of the model.
        keyframes, steps, loop, psi: see `way`.

    Raises:
        ValueError: there are fewer than two keyframes, or steps is below 1.
        PromptError: a prompt is empty, too long or no valid text.
    """
    yield from pictures(pipeline, way(keyframes, steps, loop, psi))


def pictures(pipeline: Pipeline, blends: Sequence[Blend]) -> Iterator[Images]:
    """The picture (H,W,3) of each blend, in order.

    Raises a PromptError before the first one if a prompt is empty, too long or no valid text.
    """
    latents = [blended(pipeline, blend) for blend in blends]
    yield from pipeline.synthesize_each(latents, len(latents))


def style_grid(
    pipeline: Pipeline,
    corners: Sequence[Keyframe],
    rows: int,
    columns: int,
    psi: float = 1.0,
) -> Iterator[Images]:
    """Pictures (H,W,3) between four, row by row.

    Args:
        pipeline: of the model.
        corners: top left, top right, bottom left and bottom right.
        rows, columns: of the grid, at least 2 each.
        psi: see `truncated`.

    Raises:
        ValueError: there are not four corners, or the grid is too small.
        PromptError: a prompt is empty, too long or no valid text.
    """
    corners = _checked_keyframes(corners)
    rows = checked_integer(rows, "rows", 0)
    columns = checked_integer(columns, "columns", 0)
    if len(corners) != 4 or min(rows, columns) < 2:
        raise ValueError(
            f"a grid needs four corners and at least 2 x 2 pictures, got {len(corners)} corners "
            f"and {rows} x {columns}"
        )
    latents = [latent_of(pipeline, corner, psi) for corner in corners]
    grid = []
    for row in range(rows):
        down = row / (rows - 1)
        left, right = (between(latents[i], latents[i + 2], down) for i in range(2))
        grid += [between(left, right, column / (columns - 1)) for column in range(columns)]
    yield from pipeline.synthesize_each(grid, len(grid))

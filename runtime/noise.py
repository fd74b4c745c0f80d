"""Noise of an image: a function of seed, prompt and index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from runtime.arrays import Floats
from runtime.checks import checked_integer, checked_share

MAX_SEED = 2**63 - 1


def draw_noise(seed: int, prompt: str, index: int, size: int) -> Floats:
    """Noise of image `index` of `prompt`, from N(0,1).

    It depends on the arguments alone, never on batch size, threads, order or resume point: a
    counter-based generator (Philox) is keyed with their hash, and its integers, whose stream
    numpy guarantees, are turned into normal values by Box and Muller's transform in float64.
    numpy's own `standard_normal` may change between versions.

    Args:
        seed: 0 to 2**63 - 1.
        prompt: the text as the user wrote it; an empty one gives the noise that depends on seed
            and index alone.
        index: which image of the prompt, from 0.
        size: length of the noise vector.

    Returns:
        (size,) float32.

    Raises:
        ValueError: seed or index is out of range.
    """
    return draw_noise_rows(seed, prompt, [index], size)[0]


def draw_noise_rows(seed: int, prompt: str, indices: Iterable[int], size: int) -> Floats:
    """Noise of several images of `prompt`, (len(indices),size): each row as `draw_noise` gives it.

    Raises ValueError as `draw_noise` does.
    """
    seed = checked_integer(seed, "seed", 0, MAX_SEED)
    size = checked_integer(size, "size", 0)
    text = prompt.encode("utf-8", "surrogatepass")
    length = 2 * -(-size // 2)
    integers = np.stack([_integers(seed, text, index, length) for index in indices])
    # 53 bits each, in (0, 1]: the logarithm of zero is not finite.
    uniform = ((integers >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    radius = np.sqrt(-2 * np.log(uniform[:, 0::2]))
    angle = 2 * np.pi * uniform[:, 1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return normal.reshape(len(integers), length)[:, :size].astype(np.float32)


def _integers(seed: int, text: bytes, index: int, count: int) -> npt.NDArray[np.uint64]:
    index = checked_integer(index, "index", 0)
    digest = hashlib.sha256(b"%d/%d/" % (seed, index) + text).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def truncate(noise: Floats, psi: float) -> Floats:
    """Truncation trick: noise scaled toward its mean, for more typical, less diverse images.

    Args:
        noise: of `draw_noise`.
        psi: factor in [0,1]; 1 returns the noise itself.

    Raises:
        ValueError: psi is out of range.
    """
    psi = checked_share(psi, "psi")
    return noise if psi == 1 else noise * np.float32(psi)

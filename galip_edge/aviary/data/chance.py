"""Random choices that captions leave open, as a noise vector like the generator's.

The same entries determine the same property in every scene, and the image is a mostly continuous
function of them. So a generator can be trained with the noise of each image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from galip_edge.aviary.data.attributes import ATTRIBUTES, PERCHES
from runtime.arrays import Floats

Noise = Floats

# Number of entries by property. Attributes have one for each value, and the largest wins; a perch
# has as many as the values of one pose.
ENTRIES: dict[str, int] = {
    **{name: len(values) for name, values in ATTRIBUTES.items()},
    "perch": max(map(len, PERCHES.values())),
    # Drawing; layout applies to wide scenes: direction, composition, and stance.
    "bird": 10,
    "place": 2,
    "floor": 16,
    "scenery": 22,
    "layout": 6,
}
NOISE_DIM = sum(ENTRIES.values())

_STARTS = dict(zip(ENTRIES, np.cumsum([0, *ENTRIES.values()]).tolist()))
_NORMAL = NormalDist()


def entries(noise: Noise, name: str) -> list[float]:
    """Entries of the noise (NOISE_DIM,) that determine `name`. Raises ValueError."""
    if noise.shape != (NOISE_DIM,):
        raise ValueError(f"the aviary's noise has {NOISE_DIM} entries, got shape {noise.shape}")
    start = _STARTS[name]
    return noise[start : start + ENTRIES[name]].tolist()


def rows_of_entries(noises: Noise, name: str) -> Noise:
    """The same of many noise vectors (N,NOISE_DIM): (N,entries)."""
    return noises[:, _STARTS[name] : _STARTS[name] + ENTRIES[name]]


def redraw_entries(noise: Noise, name: str, rng: np.random.Generator) -> None:
    """Draw the entries of the noise (NOISE_DIM,) that determine `name` anew, in place."""
    start = _STARTS[name]
    noise[start : start + ENTRIES[name]] = rng.standard_normal(ENTRIES[name], dtype=np.float32)


def choose(
    noise: Noise, name: str, values: Sequence[str], bonus: Mapping[str, float] | None = None
) -> str:
    """The value whose entry is largest, after adding its `bonus`."""
    scores = [
        entry + (bonus or {}).get(value, 0.0) for entry, value in zip(entries(noise, name), values)
    ]
    return values[int(np.argmax(scores))]


class Chances:
    """Numbers of given distributions, from successive entries of `names`.

    More numbers than ENTRIES has raise StopIteration.

    Args:
        noise: (NOISE_DIM,).
        names: of ENTRIES.
        variety: 1 for the whole distribution. With smaller values, numbers stay near one of its
            members, the same in every image, so a generator has less to learn.
        usual: seed of that member.
    """

    def __init__(self, noise: Noise, *names: str, variety: float = 1.0, usual: int = 0) -> None:
        own = [entry for name in names for entry in entries(noise, name)]
        member = np.random.default_rng(usual).standard_normal(len(own)).tolist()
        stays = math.sqrt(1 - variety**2)
        self._uniform = (_NORMAL.cdf(variety * a + stays * b) for a, b in zip(own, member))

    def uniform(self, low: float, high: float) -> float:
        """Uniform between `low` and `high`."""
        return low + (high - low) * next(self._uniform)

    def normal(self, mean: float, deviation: float) -> float:
        """Normal, truncated at three deviations."""
        share = min(max(next(self._uniform), 0.00135), 0.99865)
        return mean + deviation * _NORMAL.inv_cdf(share)


def scattered(count: int, seed: int) -> list[tuple[float, float]]:
    """Points (x, y) in the unit square, the same in every image, for details such as stars."""
    points: list[tuple[float, float]] = np.random.default_rng(seed).random((count, 2)).tolist()
    return points

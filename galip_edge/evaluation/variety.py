"""Figures of the aviary that a model cannot please by being narrow.

They are taken from what the attribute classifier finds: whether all that captions leave open takes
every value, whether images of one caption differ in layout as real ones do, and how many images are
mixtures of two values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from galip_edge.data.aviary import ATTRIBUTES, Caption
from galip_edge.evaluation.attributes import FACING

Probabilities = Mapping[str, npt.NDArray[np.float32]]

# An image whose body or background has no value that is more probable is a mixture.
_CLEAR = 0.8

# What a layout consists of, next to the place.
_CHOICES = ("facing", "species", "pose", "body", "background")


def mixed_share(found: Probabilities) -> float:
    """Share of images with a top probability of body or background below 0.8.

    Args:
        found: probabilities (N,values) by attribute.
    """
    clear = [found[name].max(axis=1) >= _CLEAR for name in ("body", "background")]
    return float(1 - np.mean(clear[0] & clear[1]))


def unstated_shares(
    found: Probabilities, captions: Sequence[Caption]
) -> dict[str, dict[str, float]]:
    """How often each value is found in images whose captions leave the attribute open.

    Args:
        found: probabilities (N,values) by attribute; `facing` counts in all images.
        captions: of the images, N.

    Returns:
        Shares by attribute and value; without an attribute that every caption states.
    """
    result = {}
    for name, values in {**ATTRIBUTES, "facing": FACING}.items():
        rows = [i for i, caption in enumerate(captions) if name not in caption.states]
        if name in found and rows:
            chosen = found[name][rows].argmax(axis=1)
            result[name] = {v: float(np.mean(chosen == k)) for k, v in enumerate(values)}
    return result


def layout_diversity(
    groups: Sequence[Probabilities], captions: Sequence[Caption]
) -> dict[str, float]:
    """How different the layouts of images of one caption are, mean over captions and pairs.

    Args:
        groups: of each caption, what is found in its images (K,values), and `place` (K,2).
        captions: one for each group; what it states is not compared.

    Returns:
        For facing, species, pose, body and background the share of pairs that differ; for `place`
        the distance in widths of the image.
    """
    apart: dict[str, list[float]] = {}
    for found, caption in zip(groups, captions, strict=True):
        for name in _CHOICES:
            if name in found and name not in caption.states:
                chosen = found[name].argmax(axis=1)
                differ = [a != b for a, b in combinations(chosen.tolist(), 2)]
                apart.setdefault(name, []).append(float(np.mean(differ)))
        if "place" in found:
            gaps = [np.linalg.norm(a - b) for a, b in combinations(found["place"], 2)]
            apart.setdefault("place", []).append(float(np.mean(gaps)))
    return {name: float(np.mean(values)) for name, values in apart.items()}

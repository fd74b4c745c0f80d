"""Precision, recall, density and coverage, from nearest neighbors of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ManifoldMetrics:
    """Overlap of two sets of features.

    Attributes:
        precision: share of generated features within the real manifold, in [0,1].
        recall: share of real features within the generated manifold, in [0,1].
        density: mean number of real balls that contain a generated feature, divided by
            `neighbours`; 1 on average for two sets from one distribution.
        coverage: share of real balls that contain a generated feature, in [0,1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    real: npt.ArrayLike, generated: npt.ArrayLike, neighbours: int = 3, chunk: int = 512
) -> ManifoldMetrics:
    """Metrics of Kynkaanniemi et al. 2019 (section 2) and Naeem et al. 2020 (section 3).

    The manifold of a set is the union of balls around its features, each with the distance to the
    k-th nearest neighbor in the same set as its radius.

    Args:
        real, generated: features (N,D) and (M,D), more than `neighbours` each.
        neighbours: k; 3 as in the first paper.
        chunk: rows at once, to limit memory.

    Raises:
        ValueError: the features have other shapes.
    """
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) <= neighbours:
        raise ValueError(
            f"need two sets of more than {neighbours} features (N,D), got {x.shape}, {y.shape}"
        )
    real_radius = _radii(x, neighbours, chunk)
    generated_radius = _radii(y, neighbours, chunk)
    in_real, covered, recalled = [], [], []
    for rows, distance in _distances(x, y, chunk):  # (rows,M)
        inside = distance <= real_radius[rows, None]
        in_real.append(inside.sum(axis=0))
        covered.append(inside.any(axis=1))
        recalled.append((distance <= generated_radius[None, :]).any(axis=1))
    balls = np.sum(in_real, axis=0)
    return ManifoldMetrics(
        precision=float((balls > 0).mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=float(balls.mean() / neighbours),
        coverage=float(np.concatenate(covered).mean()),
    )


def _radii(features: Doubles, neighbours: int, chunk: int) -> Doubles:
    """Squared distance of each feature to its k-th nearest neighbor, excluding itself."""
    radii = []
    for rows, distance in _distances(features, features, chunk):
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = -1.0
        radii.append(np.partition(distance, neighbours, axis=1)[:, neighbours])
    return np.concatenate(radii)


def _distances(x: Doubles, y: Doubles, chunk: int) -> Iterator[tuple[slice, Doubles]]:
    """Squared distances (rows,len(y)), by chunks of `x`."""
    centre = y.mean(axis=0)  # a large mean would reduce precision
    x, y = x - centre, y - centre
    squares = np.square(y).sum(axis=1)
    for at in range(0, len(x), chunk):
        rows = slice(at, min(at + chunk, len(x)))
        part = x[rows]
        distance = np.square(part).sum(axis=1)[:, None] + squares - 2 * part @ y.T
        yield rows, np.maximum(distance, 0.0)

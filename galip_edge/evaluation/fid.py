"""Frechet distance of two sets of features, modeled as Gaussians (Heusel et al. 2017)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


class FeatureStatistics:
    """Mean and covariance of features, updated in batches, in float64.

    Batches are merged by their means (Chan et al. 1983), so a large mean does not reduce precision.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Doubles | None = None
        self._scatter: Doubles | None = None

    def update(self, features: npt.ArrayLike) -> None:
        """Add features (N,D). Raises ValueError for another shape, or non-finite values."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or (self._mean is not None and rows.shape[1] != len(self._mean)):
            known = "(N,D)" if self._mean is None else f"(N,{len(self._mean)})"
            raise ValueError(f"features must be {known}, got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("features must be finite")
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = len(rows), mean, scatter
            return
        total, apart = self.count + len(rows), mean - self._mean
        self._scatter += scatter + np.outer(apart, apart) * (self.count * len(rows) / total)
        self._mean += apart * (len(rows) / total)
        self.count = total

    @property
    def mean(self) -> Doubles:
        """(D,). Raises ValueError with fewer than 2 features."""
        return self._known()[0]

    @property
    def covariance(self) -> Doubles:
        """(D,D), unbiased. Raises ValueError with fewer than 2 features."""
        return self._known()[1] / (self.count - 1)

    def _known(self) -> tuple[Doubles, Doubles]:
        if self._mean is None or self._scatter is None or self.count < 2:
            raise ValueError(f"statistics need at least 2 features, got {self.count}")
        return self._mean, self._scatter


class Gaussian(Protocol):
    """A mean (D,) and a covariance (D,D)."""

    @property
    def mean(self) -> Doubles:
        """(D,)."""
        ...

    @property
    def covariance(self) -> Doubles:
        """(D,D)."""
        ...


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|² + tr(A + B - 2 (A^½ B A^½)^½), for means m and covariances A and B.

    The symmetric form has real, non-negative eigenvalues except for rounding, so there is no
    imaginary part to discard. Raises ValueError if the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.shape} and {b.mean.shape} cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = float(np.sqrt(np.maximum(cross, 0)).sum())
    apart = float(np.square(a.mean - b.mean).sum())
    distance = apart + float(np.trace(a.covariance) + np.trace(b.covariance)) - 2 * overlap
    return max(distance, 0.0)

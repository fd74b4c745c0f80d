"""Maximum mean discrepancy: KID's polynomial kernel and CMMD's Gaussian one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

# CMMD as published: bandwidth and scale.
_SIGMA, _SCALE = 10.0, 1000.0


def squared_mmd_polynomial(
    a: npt.ArrayLike, b: npt.ArrayLike, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> float:
    """KID: the mean over random subsets of the unbiased squared MMD (Binkowski et al. 2018).

    The kernel is (x·y / D + 1)³.

    Args:
        a, b: features (N,D) and (M,D), at least 2 each.
        subsets: number of subsets; ignored if one contains all features.
        subset_size: features of each set in a subset, or all if there are fewer.
        seed: for drawing subsets.
    """
    x, y = _features(a, b)
    size = min(len(x), len(y), subset_size)
    if size == len(x) == len(y):
        return _unbiased(x, y)
    rng = np.random.default_rng(seed)
    return float(
        np.mean(
            [
                _unbiased(
                    x[rng.choice(len(x), size, replace=False)],
                    y[rng.choice(len(y), size, replace=False)],
                )
                for _ in range(subsets)
            ]
        )
    )


def _unbiased(x: Doubles, y: Doubles) -> float:
    def kernel(u: Doubles, v: Doubles) -> Doubles:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def within(u: Doubles) -> float:
        values = kernel(u, u)
        return float((values.sum() - np.trace(values)) / (len(u) * (len(u) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def cmmd(a: npt.ArrayLike, b: npt.ArrayLike, chunk: int = 1024) -> float:
    """CMMD: squared MMD of CLIP embeddings, times 1000 (Jayasumana et al. 2024, section 4).

    The kernel is exp(-|x - y|² / 2σ²) with σ = 10 on normalized embeddings. The estimator includes
    the diagonal, as in the published code, so the distance of a set to itself is 0.

    Args:
        a, b: embeddings (N,E) and (M,E), of any norm.
        chunk: rows at once, to limit memory.
    """
    x, y = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in _features(a, b))

    def distance(u: Doubles, v: Doubles) -> Doubles:
        return np.exp(-np.maximum(2 - 2 * u @ v.T, 0) / (2 * _SIGMA**2))

    def mean(kernel: Callable[[Doubles, Doubles], Doubles], u: Doubles, v: Doubles) -> float:
        rows = range(0, len(u), chunk)
        return sum(float(kernel(u[i : i + chunk], v).sum()) for i in rows) / (len(u) * len(v))

    return _SCALE * (mean(distance, x, x) + mean(distance, y, y) - 2 * mean(distance, x, y))


def _features(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"need two sets of at least 2 features (N,D), got {x.shape}, {y.shape}")
    return x, y

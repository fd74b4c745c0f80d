"""Distances between images, computed independently with numpy."""

import numpy as np
import pytest
import torch

from galip_edge.training.distances import perceptual_distance, pyramid_distance


@pytest.mark.parametrize("weighted", [False, True])
def test_the_distance_is_that_of_laplacian_pyramids(weighted):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 16, 16))
    importance = rng.uniform(1, 9, size=(2, 1, 16, 16)) if weighted else np.ones((2, 1, 16, 16))

    def pyramid(x, levels):
        if levels == 1:
            return [x]
        small = x.reshape(2, 3, x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
        # Bilinear by hand: pixels of the half size lie at a quarter and three quarters.
        for axis in (2, 3):
            n = small.shape[axis]
            before, after = np.clip([np.arange(n) - 1, np.arange(n) + 1], 0, n - 1)
            pair = [0.75 * small + 0.25 * small.take(side, axis) for side in (before, after)]
            wide = np.stack(pair, axis + 1)
            small = wide.reshape(*small.shape[:axis], 2 * n, *small.shape[axis + 1 :])
        half = x.reshape(2, 3, x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
        return [x - small, *pyramid(half, levels - 1)]

    def error(d):  # absolute values, but squares below a tenth
        d, cell = np.abs(d), 16 // d.shape[-1]
        weights = importance.reshape(2, 1, 16 // cell, cell, 16 // cell, cell).mean((3, 5))
        return (weights * np.where(d < 0.1, d**2 / 0.2, d - 0.05)).mean()

    expected = np.mean([error(p - q) for p, q in zip(pyramid(a, 4), pyramid(b, 4))])
    given = torch.from_numpy(importance) if weighted else None
    found = pyramid_distance(torch.from_numpy(a), torch.from_numpy(b), given)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert pyramid_distance(torch.from_numpy(a), torch.from_numpy(a)).item() == 0


def test_the_perceptual_distance_is_that_of_unit_vectors():
    rng = np.random.default_rng(0)
    scales = [(5, 4), (7, 2)]
    a, b = ([rng.normal(size=(2, c, n, n)).astype(np.float32) for c, n in scales] for _ in "ab")
    # |u - v|^2 = 2 - 2 cos(u, v) for vectors of length 1.
    cosines = [
        (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)) for x, y in zip(a, b, strict=True)
    ]
    expected = np.mean([(2 - 2 * cosine).mean() for cosine in cosines])
    sides = [[torch.from_numpy(x) for x in side] for side in (a, b)]
    assert perceptual_distance(*sides).item() == pytest.approx(expected, rel=1e-4)
    halves = torch.ones(2, 1, 8, 8)
    halves[..., :4] = 3  # the left half
    expected = ((2 - 2 * cosines[0]) * [3, 3, 1, 1]).mean()
    found = perceptual_distance(*(side[:1] for side in sides), halves)
    assert found.item() == pytest.approx(expected, rel=1e-4)

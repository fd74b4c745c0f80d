"""Fréchet and kernel distances against values that are known in closed form."""

import numpy as np
import pytest
import torch

from galip_edge.evaluation.fid import FeatureStatistics, frechet_distance
from galip_edge.evaluation.manifold import manifold_metrics
from galip_edge.evaluation.mmd import cmmd, squared_mmd_polynomial


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def statistics(*pieces) -> FeatureStatistics:
    result = FeatureStatistics()
    for piece in pieces:
        result.update(piece)
    return result


def with_moments(rng, mean, covariance, count=64):
    """Rows whose sample mean and unbiased covariance are exactly these."""
    rows = rng.standard_normal((count, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def test_known_gaussians_that_commute(rng):
    deviations, others = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 1.0, 0.25, 3.0])
    mean, other = np.array([0.0, 1.0, -2.0, 50.0]), np.array([1.0, 1.0, 0.0, 50.0])
    a = with_moments(rng, mean, np.diag(deviations**2))
    b = with_moments(rng, other, np.diag(others**2))
    wanted = np.square(mean - other).sum() + np.square(deviations - others).sum()
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(wanted, abs=1e-6)


def test_known_gaussians_that_do_not_commute(rng):
    # tr (A^½ B A^½)^½ of 2x2 matrices is sqrt(tr(AB) + 2 sqrt(det A det B)).
    a, b = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    wanted = np.trace(a) + np.trace(b) - 2 * overlap
    zero = np.zeros(2)
    found = frechet_distance(
        statistics(with_moments(rng, zero, a)), statistics(with_moments(rng, zero, b))
    )
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_set_has_no_distance_from_itself(rng):
    rows = rng.standard_normal((300, 20)) + 1000
    assert frechet_distance(statistics(rows), statistics(rows)) == pytest.approx(0, abs=1e-6)
    assert cmmd(rows, rows) == pytest.approx(0, abs=1e-9)
    few = rng.standard_normal((10, 20))  # fewer rows than features: a singular covariance
    assert frechet_distance(statistics(few), statistics(few)) == pytest.approx(0, abs=1e-6)


def test_pieces_give_what_the_whole_gives(rng):
    rows = rng.standard_normal((500, 12)) * 3 + 1e4
    whole, pieces = statistics(rows), statistics(*np.array_split(rows, [1, 7, 7, 300]))
    assert pieces.count == 500
    np.testing.assert_allclose(pieces.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pieces.covariance, np.cov(rows.T), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(pieces.covariance, whole.covariance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([np.zeros(3)], "must be"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"\(N,3\)"),
        ([np.full((2, 3), np.nan)], "finite"),
    ],
)
def test_wrong_features_are_named(pieces, message):
    with pytest.raises(ValueError, match=message):
        statistics(*pieces)


def test_one_feature_is_no_distribution():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(statistics(np.zeros((1, 3))), statistics(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="at least 2"):
        cmmd(np.ones((1, 3)), np.ones((2, 3)))


def test_kid_by_its_definition(rng):
    x, y = rng.standard_normal((9, 5)), rng.standard_normal((9, 5)) + 0.3

    def k(u, v):
        return (u @ v / 5 + 1) ** 3

    within = [np.mean([k(u[i], u[j]) for i in range(9) for j in range(9) if i != j])
              for u in (x, y)]  # fmt: skip
    wanted = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert squared_mmd_polynomial(x, y) == pytest.approx(wanted, rel=1e-10)


def test_kid_of_one_distribution_is_about_zero_and_of_two_is_not(rng):
    x, y = rng.standard_normal((2, 600, 16))
    near = squared_mmd_polynomial(x, y, subsets=20, subset_size=200)
    far = squared_mmd_polynomial(x, y + 0.5, subsets=20, subset_size=200)
    assert abs(near) < 0.02 < far
    assert near == squared_mmd_polynomial(x, y, subsets=20, subset_size=200)  # seeded


def test_cmmd_by_its_definition_and_in_chunks(rng):
    x, y = rng.standard_normal((30, 8)), rng.standard_normal((40, 8)) + 1
    u, v = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y))

    def mean(p, q):
        return np.mean([np.exp(-np.square(a - b).sum() / 200) for a in p for b in q])

    wanted = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    assert cmmd(x, y) == pytest.approx(wanted, rel=1e-8)
    assert cmmd(x, y, chunk=7) == pytest.approx(wanted, rel=1e-8)


def test_precision_and_recall_by_their_definition(rng):
    real, made = rng.standard_normal((14, 3)), rng.standard_normal((11, 3)) * 0.7 + 0.4

    def radius(rows):
        return [sorted(np.linalg.norm(rows - row, axis=1))[2] for row in rows]  # itself is first

    reached = [[np.linalg.norm(x - y) <= r for y in made] for x, r in zip(real, radius(real))]
    covers = [[np.linalg.norm(x - y) <= r for x in real] for y, r in zip(made, radius(made))]
    found = manifold_metrics(real, made, neighbours=2, chunk=4)
    assert found.precision == pytest.approx(np.mean(np.any(reached, axis=0)))
    assert found.recall == pytest.approx(np.mean(np.any(covers, axis=0)))
    assert found.density == pytest.approx(np.sum(reached) / (2 * len(made)))
    assert found.coverage == pytest.approx(np.mean(np.any(reached, axis=1)))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_precision_and_recall_tell_poor_images_from_few_kinds(rng):
    real = rng.standard_normal((400, 4)) + 1e4
    same = manifold_metrics(real, rng.standard_normal((400, 4)) + 1e4)
    assert min(same.precision, same.recall, same.density, same.coverage) > 0.8
    few = manifold_metrics(real, np.repeat(real[:4], 50, axis=0))
    assert few.precision == 1
    assert few.recall < 0.1
    poor = manifold_metrics(real, rng.standard_normal((400, 4)) * 5 + 1e4)
    assert poor.precision < 0.3
    with pytest.raises(ValueError, match="more than 3 features"):
        manifold_metrics(real, real[:3])


def test_fid_and_kid_are_torch_fidelitys_on_the_same_features(rng):
    """The published reference implementation, on features of one kind and of two."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    mixing = rng.standard_normal((32, 32)) / 6
    a = rng.standard_normal((300, 32)) @ mixing + 0.4
    b = rng.standard_normal((300, 32)) @ mixing.T * 1.2
    for other in (a[::-1] + 0.01, b):
        first, second = (fid_features_to_statistics(torch.from_numpy(x.copy())) for x in (a, other))
        fid = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
        assert frechet_distance(statistics(a), statistics(other)) == pytest.approx(
            fid, rel=1e-6, abs=1e-6
        )
        kid = kid_features_to_metric(
            torch.from_numpy(a.copy()), torch.from_numpy(other.copy()), kid_subsets=1,
            kid_subset_size=300, verbose=False,
        )["kernel_inception_distance_mean"]  # fmt: skip
        assert squared_mmd_polynomial(a, other) == pytest.approx(kid, rel=1e-6, abs=1e-9)

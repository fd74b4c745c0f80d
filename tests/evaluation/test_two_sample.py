"""Two-sample tests, midpoints, and names of metrics."""

import numpy as np
import pytest

from galip_edge.evaluation.evaluate import EvaluationOptions
from galip_edge.evaluation.models import halfway, noises
from galip_edge.evaluation.names import lower_is_better
from galip_edge.evaluation.two_sample import two_sample_accuracy
from runtime.latent import slerp


def noise_images(count, mean, seed):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(mean, 30, (count, 32, 32, 3)), 0, 255).astype(np.uint8)


def test_two_samples_of_one_distribution_are_told_apart_by_chance_only():
    same = two_sample_accuracy(noise_images(160, 120, 0), noise_images(160, 120, 1))
    assert 0.35 < same < 0.65
    darker = two_sample_accuracy(noise_images(160, 120, 0), noise_images(160, 100, 1))
    assert darker > 0.95
    with pytest.raises(ValueError, match="one shape"):
        two_sample_accuracy(noise_images(8, 1, 0), noise_images(6, 1, 0))


def test_a_two_sample_test_sees_a_distribution_that_is_too_narrow():
    # Both sets are of real colors, but the second has half of them only.
    rng = np.random.default_rng(0)

    def colored(values):
        flat = rng.choice(values, 160)[:, None, None, None]
        return np.broadcast_to(flat, (160, 32, 32, 3)).astype(np.uint8)

    wide = colored([20, 90, 160, 230])
    assert two_sample_accuracy(wide, colored([90, 160])) > 0.6
    assert two_sample_accuracy(wide, colored([20, 90, 160, 230])) < 0.65


def test_midpoints_lie_where_interpolate_goes():
    def encode(prompts):
        return np.stack([np.full(4, len(p), np.float32) + np.arange(4) for p in prompts])

    noise, sentence = halfway(["a"], ["bcd"], 5, 10, encode)
    a, b = noises(["a"], [0], 5, 10)[0], noises(["bcd"], [0], 5, 10)[0]
    assert noise[0] == pytest.approx(slerp(a, b, 0.5))
    assert sentence[0] == pytest.approx(slerp(encode(["a"])[0], encode(["bcd"])[0], 0.5))


def test_names_have_a_better_side():
    for name in ("fd_lite1", "kd_lite1", "mixed", "two_sample_accuracy"):
        assert lower_is_better(name)
    for name in ("precision_lite1", "coverage_lite1", "midpoint_precision_lite1"):
        assert not lower_is_better(name)


@pytest.mark.parametrize("name", ["midpoints", "two_sample"])
def test_no_more_than_there_are(name):
    with pytest.raises(ValueError, match=f"{name} must be at most count, 10, got 11"):
        EvaluationOptions(10, **{name: 11})

"""Measures in CLIP's embedding space."""

import numpy as np
import pytest
import torch

from galip_edge.evaluation.clip_space import CLIPScorer, clip_score, diversity, r_precision
from galip_edge.models import GALIP, PRESETS


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def scorer() -> CLIPScorer:
    torch.manual_seed(0)
    return CLIPScorer(GALIP(PRESETS["tiny"]).eval())


def test_clip_score_is_the_mean_cosine():
    images, sentences = unit(np.eye(4)[:2]), unit(np.array([[1, 0, 0, 0], [1, 1, 0, 0]]))
    assert clip_score(images, sentences) == pytest.approx((1 + 2**-0.5) / 2, rel=1e-6)


def test_scorer_tells_the_forms_apart_and_gives_unit_embeddings(scorer):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    standard, original = scorer.images(pixels), scorer.images(pixels, "original")
    assert not np.allclose(standard, original)
    for embeddings in (standard, original, scorer.sentences(["a bird", "two dogs", "a bird"])):
        assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(3), rel=1e-5)


def test_r_precision_is_one_for_true_pairs_and_chance_for_unrelated_ones():
    rng = np.random.default_rng(0)
    captions = [f"caption {i}" for i in range(300)]
    sentences = unit(rng.normal(size=(300, 32)))
    assert r_precision(sentences, sentences, captions) == 1
    unrelated = r_precision(unit(rng.normal(size=(300, 32))), sentences, captions)
    assert unrelated < 0.06  # one in a hundred


def test_r_precision_never_draws_an_equal_caption_as_a_wrong_one():
    rng = np.random.default_rng(0)
    first, second = unit(rng.normal(size=(2, 16)))
    captions = ["a bird"] * 20 + ["a duck"] * 20
    sentences = np.stack([first] * 20 + [second] * 20)
    assert r_precision(sentences, sentences, captions) == 1


def test_r_precision_needs_two_captions():
    rows = unit(np.ones((3, 4)))
    with pytest.raises(ValueError, match="2 different captions"):
        r_precision(rows, rows, ["same"] * 3)


def test_diversity_is_zero_for_copies_and_known_for_black_and_white(scorer):
    grey = np.full((3, 32, 32, 3), 100, np.uint8)
    assert diversity([grey], scorer) == pytest.approx((0, 0), abs=1e-6)
    contrast = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    assert diversity([contrast], scorer)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="2 images"):
        diversity([grey[:1]], scorer)

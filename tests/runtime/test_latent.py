from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline, PromptError
from runtime.animation import save_animation
from runtime.latent import (
    Interpolation,
    Keyframe,
    interpolate,
    interpolation_latent,
    keyframe_latent,
    latent_grid,
    slerp,
)

A, B, C, D = (
    Keyframe("a bird", 1),
    Keyframe("a bird", 2),
    Keyframe("two dogs", 1, 3),
    Keyframe("a cat"),
)


@pytest.fixture(scope="module")
def pipeline(tiny_bundles) -> Pipeline:
    return Pipeline.from_bundle(tiny_bundles["int8"])


def generated(pipeline, keyframe):
    images = pipeline.generate(keyframe.prompt, n=keyframe.index + 1, seed=keyframe.seed)
    return images[keyframe.index]


def test_an_arc_keeps_to_the_sphere():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100)).astype(np.float32)
    assert slerp(a, b, 0) is a
    assert slerp(a, b, 1) is b
    lengths = [np.linalg.norm(slerp(a, b, share)) for share in np.linspace(0, 1, 11)]
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 11), rtol=1e-5)
    angles = [
        np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        for x, y in zip(
            [slerp(a, b, share / 10) for share in range(10)],
            [slerp(a, b, share / 10) for share in range(1, 11)],
        )
    ]
    np.testing.assert_allclose(angles, np.mean(angles), rtol=1e-4)  # even steps
    np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-5)
    assert np.isfinite(slerp(a, -a, 0.5)).all()
    np.testing.assert_array_equal(slerp(0 * a, a, 0.5), a / 2)


def test_keyframes_are_the_pictures_of_generate(pipeline):
    way = list(interpolate(pipeline, [A, B, C], steps=4))
    assert len(way) == 9
    for index, keyframe in ((0, A), (4, B), (8, C)):
        np.testing.assert_array_equal(way[index], generated(pipeline, keyframe))
    assert (way[2] != way[0]).mean() > 0.1


def test_a_loop_comes_back_without_a_repetition(pipeline):
    way = list(interpolate(pipeline, [A, B], steps=5, loop=True))
    assert len(way) == 10
    np.testing.assert_array_equal(way[0], generated(pipeline, A))
    np.testing.assert_array_equal(way[5], generated(pipeline, B))
    np.testing.assert_array_equal(way[9], way[1])  # the same arc, walked back


def test_steps_shrink_as_frames_double(pipeline):
    def largest(steps: int) -> float:
        way = np.stack(list(interpolate(pipeline, [A, C], steps))).astype(float)
        return np.abs(np.diff(way, axis=0)).mean(axis=(1, 2, 3)).max()

    sizes = [largest(steps) for steps in (4, 8, 16, 32)]
    assert all(b < 0.8 * a for a, b in pairwise(sizes))


def test_a_grid_has_its_corners(pipeline):
    grid = list(latent_grid(pipeline, [A, B, C, D], 3, 4))
    assert len(grid) == 12
    for index, corner in ((0, A), (3, B), (8, C), (11, D)):
        np.testing.assert_array_equal(grid[index], generated(pipeline, corner))


def test_truncation_draws_noise_in(pipeline):
    whole, half, none = (keyframe_latent(pipeline, A, psi)[0] for psi in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half, whole / 2)
    assert not none.any()
    way = list(interpolate(pipeline, [A, B], steps=2, psi=0.0))
    np.testing.assert_array_equal(way[0], way[1])  # seeds do not matter any more
    np.testing.assert_array_equal(way[0], way[2])


def test_a_blend_moves_sentence_and_noise_apart(pipeline):
    (noise_a, sentence_a), (noise_c, sentence_c) = (
        keyframe_latent(pipeline, each) for each in (A, C)
    )
    for shares, noise, sentence in (
        ((0, 0), noise_a, sentence_a),
        ((1, 0), noise_a, sentence_c),
        ((0, 1), noise_c, sentence_a),
        ((1, 1), noise_c, sentence_c),
        ((0.5, 0.25), slerp(noise_a, noise_c, 0.25), slerp(sentence_a, sentence_c, 0.5)),
    ):
        found = interpolation_latent(pipeline, Interpolation(A, C, *shares))
        np.testing.assert_array_equal(found[0], noise)
        np.testing.assert_array_equal(found[1], sentence)
    np.testing.assert_array_equal(
        interpolation_latent(pipeline, Interpolation(A, psi=0.5))[0], noise_a / 2
    )
    with pytest.raises(ValueError, match=r"noise_share must be a number from 0 to 1, got 1.5"):
        Interpolation(A, C, noise_share=1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: interpolate(p, [A], 4), "needs at least two keyframes, got 1"),
        (lambda p: interpolate(p, [A, B], 0), "steps must be an integer of at least 1, got 0"),
        (lambda p: interpolate(p, [A, B], 2, psi=1.5), "psi must be a number from 0 to 1, got 1.5"),
        (lambda p: latent_grid(p, [A, B, C], 2, 2), "four corners and at least 2 x 2"),
        (lambda p: latent_grid(p, [A, B, C, D], 1, 2), "got 4 corners and 1 x 2"),
    ],
)
def test_bad_requests_are_named(call, message, pipeline):
    with pytest.raises(ValueError, match=message):
        list(call(pipeline))
    with pytest.raises(PromptError, match="empty"):
        list(interpolate(pipeline, [A, Keyframe(" ")], 2))


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4"])
def test_animations_hold_all_frames(ending, pipeline, tmp_path):
    frames = list(interpolate(pipeline, [A, B], steps=7))
    path = tmp_path / f"way.{ending}"
    save_animation(frames, path, 12.5)
    if ending == "mp4":
        av = pytest.importorskip("av")
        with av.open(str(path)) as container:
            assert float(container.streams.video[0].average_rate) == 12.5
            found = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    else:
        with Image.open(path) as animation:
            animation.load()
            assert animation.info["duration"] == 80
            assert animation.info["loop"] == 0
            found = []
            for index in range(animation.n_frames):
                animation.seek(index)
                found.append(np.asarray(animation.convert("RGB")))
    assert len(found) == len(frames) == 8
    for ours, theirs in zip(frames, found):
        assert np.abs(ours.astype(int) - theirs).mean() < 30  # a tiny untrained model's are noise
    assert list(tmp_path.iterdir()) == [path]


def test_other_animations_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .gif, .webp, .mp4, got way.avi"):
        save_animation([np.zeros((8, 8, 3), np.uint8)], tmp_path / "way.avi")

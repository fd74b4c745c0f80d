"""`galip-edge interpolate` and `explore` as a user runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from runtime.images import read_metadata
from runtime.latent import Keyframe

pytestmark = pytest.mark.slow


def galip_edge(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "galip_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_an_animation_between_prompts_and_seeds(tiny_bundles, tmp_path):
    command = ("interpolate", "a bird", "two dogs", "--seed", 1, "--seed", 2, "--steps", 3)
    out = tmp_path / "way.gif"
    done = galip_edge(*command, "--loop", "--model", tiny_bundles["int8"], "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": str(out), "images": 6}
    with Image.open(out) as animation:
        assert animation.n_frames == 6


def test_frames_begin_and_end_with_the_pictures_of_generate(tiny_bundles, tmp_path):
    model = ("--model", tiny_bundles["int8"])
    command = ("interpolate", "a bird", "--seed", 1, "--seed", 2, "--steps", 3)
    done = galip_edge(*command, *model, "--out", tmp_path / "frames")
    assert done.stdout.strip() == str(tmp_path / "frames")
    frames = sorted((tmp_path / "frames").iterdir())
    assert [frame.name for frame in frames] == [f"{i:05d}.png" for i in range(4)]
    for seed, frame in ((1, frames[0]), (2, frames[-1])):
        made = galip_edge("generate", "a bird", "--seed", seed, *model, "--out", tmp_path / "g")
        wanted = np.asarray(Image.open(made.stdout.strip()))
        np.testing.assert_array_equal(np.asarray(Image.open(frame)), wanted)
        assert read_metadata(frame) == read_metadata(made.stdout.strip())
    between = read_metadata(frames[1])
    assert (between.seed, between.end) == (1, Keyframe("a bird", 2))
    assert between.sentence_share == between.noise_share == 1 / 3


def test_grids_and_sheets(tiny_bundles, tmp_path):
    model = ("--model", tiny_bundles["int8"])
    corners = ("a bird", "--seed", 1, "--seed", 2, "--seed", 3, "--seed", 4)
    done = galip_edge("interpolate", *corners, "--grid", "3x5", *model, "--out", tmp_path / "g.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "g.png").size == (5 * 68 + 4, 3 * 68 + 4)
    done = galip_edge(
        "explore", "a bird", "-n", 6, "--columns", 3, *model, "--out", tmp_path / "s.png"
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "s.png").width == 3 * 68 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "c", "--seed", "1", "--seed", "2"], "3 prompts and 2 seeds"),
        (["a"], "needs at least two keyframes, got 1"),
        (["a", "b", "--grid", "4"], "--grid is ROWSxCOLUMNS, such as 5x7, got '4'"),
        (["a", "b", "--grid", "4x4"], "needs four corners"),
        (["a", "b", "--out", "x.avi"], "or is a folder: x.avi"),
        (["a", " "], "the prompt is empty"),
    ],
)
def test_bad_requests_are_one_sentence(arguments, message, tiny_bundles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = galip_edge("interpolate", *arguments, "--model", tiny_bundles["int8"])
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())

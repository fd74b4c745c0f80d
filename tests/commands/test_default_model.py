"""The embedded model: it comes with the package, and its images match their captions."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from runtime import Pipeline
from runtime.bundle import default_bundle

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "runtime/default_model").is_dir(),
        reason="the embedded model is still in training: docs/embedded-model.md",
    ),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_bundle(default_bundle())


def test_it_is_small_enough_to_come_with_the_package(pipeline):
    files = list(default_bundle().iterdir())
    assert sum(file.stat().st_size for file in files) <= 16e6
    packed = sum(len(zlib.compress(file.read_bytes())) for file in files)  # as in the wheel
    assert packed <= 15e6
    assert (MODELS / "aviary.safetensors").stat().st_size <= 40e6
    assert pipeline.manifest.precision == "int8"
    assert pipeline.manifest.image_size >= 128


def test_seeds_give_different_birds(pipeline):
    images = pipeline.generate(["a bird on a branch"], n=8, seed=3).astype(int)
    for i in range(8):
        for j in range(i):
            # A small bird is a twentieth of its image; 40 of 255 levels are clearly visible.
            plain = np.abs(images[i] - images[j]).max(axis=-1) > 40
            assert plain.mean() > 0.03, (i, j)

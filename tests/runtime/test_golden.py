"""Golden numbers: a machine that computes other ones is refused, or falls back and says so."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embedded import EMBEDDED, changed, copied, with_golden

from runtime import Pipeline, PipelineOptions
from runtime.bundle import (
    GOLDEN,
    MANIFEST,
    Bundle,
    GoldenEntry,
    read_manifest,
    save_manifest,
)
from runtime.compiled import has_bf16
from runtime.errors import BundleError
from runtime.golden import (
    OutOfToleranceError,
    Probe,
    read_golden,
    tolerance,
    worst_cosine,
    worst_psnr_db,
)
from runtime.verification import verify_bundle

pytestmark = pytest.mark.slow

PROMPT = "a bird on a branch"
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="the CPU has no bfloat16")


@pytest.fixture
def bundle(tmp_path) -> Path:
    return copied(tmp_path / "bundle")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def without_golden(folder: Path) -> Path:
    """As bundles of format 2 were."""
    manifest = read_manifest(folder)
    files = {name: entry for name, entry in manifest.files.items() if name != GOLDEN}
    for name in (MANIFEST, GOLDEN):
        (folder / name).unlink()
    save_manifest(folder, replace(manifest, files=files, golden=None))
    return folder


def test_the_embedded_model_has_golden_numbers():
    manifest = read_manifest(EMBEDDED)
    assert manifest.golden
    assert manifest.golden.sentence_cosine >= 0.99
    assert manifest.golden.image_psnr_db >= 25


def test_format_2_is_read_without_them(bundle, cache):
    before = read_manifest(bundle)
    manifest = read_manifest(without_golden(bundle))
    assert manifest.golden is None
    assert manifest.model_hash == before.model_hash
    assert '"format_version": 2' in (bundle / MANIFEST).read_text()
    pipeline = Pipeline.from_bundle(bundle)
    assert pipeline.golden is None
    expected = Pipeline.from_bundle(EMBEDDED).encode([PROMPT])
    np.testing.assert_array_equal(pipeline.encode([PROMPT]), expected)
    steps = dict(verify_bundle(bundle))
    assert "no golden numbers (format 2)" in steps["golden"]


def test_measures():
    rows = np.array([[1.0, 0], [0, 2]], np.float32)
    assert worst_cosine(rows, 3 * rows) == pytest.approx(1)
    assert worst_cosine(rows, rows[::-1]) == 0
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert worst_psnr_db(images, images) == pytest.approx(100)
    assert worst_psnr_db(images, images + np.uint8(255)) == pytest.approx(0)
    probe = Probe([], lambda _: float("nan"), -1.0, "cosine")
    with pytest.raises(OutOfToleranceError, match="cosine is nan, at least -1 is needed"):
        probe.check([])


def test_tolerance_follows_from_what_was_measured():
    manifest = read_manifest(EMBEDDED)
    near = tolerance(manifest, 0.99999, 60.0)
    assert (near.sentence_cosine, near.image_psnr_db) == (0.995, 30.0)
    far = tolerance(manifest, 0.99, 34.0)
    assert (far.sentence_cosine, far.image_psnr_db) == pytest.approx((0.9, 24.0))


def wrong_image(bundle: Path) -> Path:
    content = bytearray((bundle / GOLDEN).read_bytes())
    content[1024:] = bytes(len(content) - 1024)
    return changed(bundle, GOLDEN, bytes(content))


def test_wrong_images_are_refused_at_the_first_start(bundle, cache):
    with pytest.raises(
        BundleError, match=r"OpenVINO 20\d\d\.\d\.\d computes wrong numbers in f32 "
    ):
        Pipeline.from_bundle(wrong_image(bundle)).generate(PROMPT)
    assert not list(cache.rglob("generator*.blob"))


def wrong_embeddings(bundle: Path) -> Path:
    content = bytearray((bundle / GOLDEN).read_bytes())
    content[:1024] = np.random.default_rng(0).normal(size=256).astype("<f4").tobytes()
    return changed(bundle, GOLDEN, bytes(content))


def test_wrong_embeddings_are_refused_without_a_cache(bundle):
    pipeline = Pipeline.from_bundle(wrong_embeddings(bundle), PipelineOptions(cache=False))
    with pytest.raises(BundleError, match=r"computes wrong numbers .* at least 0\.995 is needed"):
        pipeline.encode([PROMPT])


def test_wrong_embeddings_are_refused_by_verify(bundle):
    wrong_embeddings(bundle)
    command = [sys.executable, "-m", "galip_edge", "verify", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    for word in ("OpenVINO", "in f32 on this CPU (", "text_encoder", "cosine"):
        assert word in line


@needs_bf16
def test_bf16_that_is_too_far_falls_back_and_says_so(bundle, cache, caplog):
    # Between what the two precisions reach, float32 being nearer.
    cosines = [
        worst_cosine(pipeline.encode(golden.entry.prompts), golden.sentence)
        for precision in ("bf16", "f32")
        for pipeline in [Pipeline.from_bundle(bundle, PipelineOptions(precision=precision))]
        for golden in [read_golden(Bundle.open(bundle))]
    ]
    assert cosines[0] < cosines[1]
    with_golden(bundle, sentence_cosine=sum(cosines) / 2)
    wanted = Pipeline.from_bundle(bundle, PipelineOptions(precision="f32")).encode([PROMPT])
    for _ in range(2):  # cold and warm
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = Pipeline.from_bundle(bundle).encode([PROMPT])
        np.testing.assert_array_equal(found, wanted)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "computes wrong numbers in bf16 on this CPU (" in said
        assert said.endswith("running in f32, which is slower")
    assert (len(list(cache.rglob("text_encoder-bf16.refused")))) == 1
    with pytest.raises(BundleError, match="in bf16 .*: use --precision f32"):
        Pipeline.from_bundle(bundle, PipelineOptions(precision="bf16")).encode([PROMPT])


def test_a_warm_start_compares_nothing(bundle, cache, monkeypatch):
    expected = Pipeline.from_bundle(bundle).encode([PROMPT])
    monkeypatch.setattr(Probe, "check", lambda *_: pytest.fail("compared again"))
    np.testing.assert_array_equal(Pipeline.from_bundle(bundle).encode([PROMPT]), expected)
    # Other golden numbers are another matter.
    with_golden(bundle, sentence_cosine=0.5)
    with pytest.raises(pytest.fail.Exception):
        Pipeline.from_bundle(bundle).encode([PROMPT])


def test_bf16_must_be_there_if_it_is_asked_for(bundle, monkeypatch):
    monkeypatch.setattr("runtime.compiled.has_bf16", lambda: False)
    with pytest.raises(BundleError, match="has no bfloat16: use --precision auto or f32"):
        Pipeline.from_bundle(bundle, PipelineOptions(cache=False, precision="bf16"))
    with pytest.raises(ValueError, match="precision must be one of auto, f32, bf16, got 'fp16'"):
        PipelineOptions(precision="fp16")


def test_conversion_writes_what_pytorch_computes(tiny_bundles, tiny_checkpoint, tmp_path):
    import shutil

    from convert.golden import add_golden_numbers

    manifest = read_manifest(tiny_bundles["fp32"])
    assert isinstance(manifest.golden, GoldenEntry)
    assert manifest.golden.image_psnr_db == 45
    copy = Path(shutil.copytree(tiny_bundles["fp32"], tmp_path / "copy"))
    without_golden(copy)
    assert add_golden_numbers(tiny_checkpoint, copy) == manifest
    assert (copy / GOLDEN).read_bytes() == (tiny_bundles["fp32"] / GOLDEN).read_bytes()


def test_golden_numbers_of_another_checkpoint_are_refused(tiny_checkpoint, bundle):
    from convert.errors import ConversionError
    from convert.golden import add_golden_numbers

    with pytest.raises(ConversionError, match="was converted from another checkpoint"):
        add_golden_numbers(tiny_checkpoint, bundle)

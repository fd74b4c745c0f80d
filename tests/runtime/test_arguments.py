"""Wrong arguments of the Python API: one sentence each, before anything is computed."""

from pathlib import Path

import numpy as np
import pytest

from runtime import Job, JobOptions, Pipeline, PipelineOptions, PromptFile, draw_noise
from runtime.bundle import default_bundle
from runtime.errors import BundleError, PromptError
from runtime.images import (
    ImageFormat,
    ImageMetadata,
    read_metadata,
    save_each,
    save_png,
)
from runtime.latent import (
    Interpolation,
    Keyframe,
    interpolate,
    interpolation_path,
    latent_grid,
    slerp,
)
from runtime.noise import truncate


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_bundle(str(default_bundle()))


NUMBERS = [
    ("n", 0),
    ("n", -1),
    ("n", 1.5),
    ("n", True),
    ("n", "2"),
    ("n", None),
    ("seed", 1.5),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", False),
    ("seed", "1"),
    ("seed", None),
    ("seed", float("nan")),
    ("seed", np.float64(1)),
    ("psi", -0.1),
    ("psi", 1.1),
    ("psi", float("nan")),
    ("psi", "1"),
    ("psi", True),
    ("psi", None),
]


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_numbers(name, value, pipeline):
    for call in (pipeline.generate, pipeline.generate_each):  # at once, not at the first image
        with pytest.raises(ValueError, match=rf"^{name} must be (an integer|a number) .*, got "):
            call("a bird", **{name: value})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts: pass at least one"),
        (iter(()), "no prompts"),
        ([None], "a prompt must be text, got NoneType"),
        (["a bird", 5], "a prompt must be text, got int '5'"),
        (None, "prompts must be text or a list of texts, got NoneType"),
        (7, "prompts must be text or a list of texts, got int"),
        (b"a bird", "prompts must be text or a list of texts, got bytes"),
        ([b"a bird"], "a prompt must be text, got bytes"),
        ([["a"]], "a prompt must be text, got list"),
        ("", "the prompt is empty"),
        (["a", "\ud800"], "not valid UTF-8"),
    ],
)
def test_prompts(prompts, message, pipeline):
    calls = (pipeline.generate, pipeline.generate_each, pipeline.encode)
    for call in calls if not hasattr(prompts, "__next__") else calls[:1]:
        with pytest.raises(PromptError, match=message):
            call(prompts)


def test_accepted_kinds(pipeline):
    image = pipeline.generate("a bird on a branch", seed=3)
    same = pipeline.generate(
        (text for text in [np.str_("a bird on a branch")]), n=np.int64(1), seed=np.int32(3), psi=1
    )
    assert np.array_equal(image, same)
    assert pipeline.encode("a bird").shape == (1, pipeline.manifest.embedding_dim)
    item = next(iter(pipeline.generate_each("a bird", seed=np.int64(4))))
    assert type(item.seed) is int


@pytest.mark.parametrize(
    ("sentence", "noise", "message"),
    [
        (lambda s: s[0], lambda z: z[0], "got"),
        (lambda s: s[:0], lambda z: z[:0], "got"),
        (lambda s: 1.0, lambda z: 2.0, "got"),
        (lambda s: s * np.nan, lambda z: z, "sentence has values that are not finite"),
        (lambda s: s, lambda z: z * np.inf, "noise has values that are not finite"),
        (lambda s: "text", lambda z: z, "sentence must be an array of numbers"),
        (lambda s: s, lambda z: None, "noise has values that are not finite|array of numbers"),
        (lambda s: [[1], [1, 2]], lambda z: z, "sentence must be an array of numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_synthesize(sentence, noise, message, pipeline):
    s = np.zeros((1, pipeline.manifest.embedding_dim), np.float32)
    z = np.ones((1, pipeline.manifest.noise_dim), np.float32)
    with pytest.raises(ValueError, match=message):
        pipeline.synthesize(sentence(s), noise(z))
    with pytest.raises(ValueError, match="a row must be noise"):
        list(pipeline.synthesize_each([(s, z)], 1))
    with pytest.raises(ValueError, match="count must be an integer"):
        pipeline.synthesize_each([], 1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PipelineOptions(threads=True), "threads must be an integer"),
        (lambda: PipelineOptions(streams=1.0), "streams must be an integer"),
        (lambda: PipelineOptions(cache="no"), "cache must be True or False"),
        (lambda: Pipeline.from_bundle(3), "path must be a path, got 3"),
        (lambda: Pipeline.from_bundle(5), "path must be a path, got 5"),
        (lambda: Pipeline.from_bundle(""), "path must be a path, got ''"),
        (lambda: draw_noise(1.5, "a", 0, 4), "seed must be an integer"),
        (lambda: draw_noise(True, "a", 0, 4), "seed must be an integer"),
        (lambda: draw_noise(1, "a", 0.5, 4), "index must be an integer"),
        (lambda: draw_noise(1, "a", 0, -4), "size must be an integer"),
        (lambda: truncate(np.zeros(2, np.float32), float("nan")), "psi must be a number"),
        (lambda: Keyframe("a", 1.5), "seed must be an integer"),
        (lambda: Keyframe("a", 0, -1), "index must be an integer"),
        (lambda: Keyframe(None), "prompt must be text"),
        (lambda: Interpolation("a"), "start must be a Keyframe"),
        (lambda: Interpolation(Keyframe("a"), psi="1"), "psi must be a number"),
        (lambda: interpolation_path([Keyframe("a")], 2), "at least two keyframes"),
        (
            lambda: interpolation_path([Keyframe("a"), "b"], 2),
            "keyframes must be Keyframe objects, got 'b'",
        ),
        (lambda: interpolation_path(None, 2), "keyframes must be Keyframe objects, got None"),
        (lambda: interpolation_path([Keyframe("a")] * 2, 1.5), "steps must be an integer"),
        (lambda: slerp(np.zeros(2), np.zeros(3), 0.5), "two vectors of one length"),
        (lambda: slerp(np.zeros(2), np.zeros(2), float("nan")), "share must be a number"),
        (lambda: JobOptions(shard_size=1.5), "shard_size must be an integer"),
        (lambda: JobOptions(shard_size=None), "shard_size must be an integer"),
        (lambda: JobOptions(max_errors=True), "max_errors must be an integer"),
        (lambda: JobOptions(force="yes"), "force must be True or False"),
        (lambda: PromptFile("a.txt", count=1.5), "count must be an integer"),
        (lambda: PromptFile("a.txt", seed=None), "seed must be an integer"),
        (lambda: PromptFile(None), "path must be a path"),
        (lambda: ImageFormat(quality=1.5), "quality must be an integer"),
    ],
)
def test_other_public_functions(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_latent_functions_check_before_they_compute(pipeline):
    corners = [Keyframe("a")] * 4
    with pytest.raises(ValueError, match="rows must be an integer"):
        next(latent_grid(pipeline, corners, 2.5, 2))
    with pytest.raises(ValueError, match="steps must be an integer"):
        next(interpolate(pipeline, corners, True))
    with pytest.raises(ValueError, match="keyframes must be Keyframe objects"):
        next(latent_grid(pipeline, ["a"] * 4, 2, 2))


def test_paths_may_be_text(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.zeros((8, 8, 3), np.uint8)
    metadata = ImageMetadata("a", 0, 0, "m", "h")
    save_png(image, "one.png", metadata)
    assert read_metadata("one.png") == metadata
    assert [path.parent for _, _, path in save_each([(image, metadata)], "folder")] == [
        Path("folder")
    ]
    save_png(image, "sheet.png", None)
    Path("prompts.txt").write_text("a bird\n")
    job = Job(PromptFile("prompts.txt"), str(default_bundle()), "out")
    assert [entry["status"] for entry in job] == ["done"]
    with pytest.raises(BundleError):
        Pipeline.from_bundle("nowhere")

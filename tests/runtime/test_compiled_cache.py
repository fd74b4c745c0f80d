"""Compiled models in the cache: the same images, without a second copy of the weights."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from runtime import BundleError, Pipeline, PipelineOptions, compiled, compiled_cache
from runtime.bundle import GENERATOR, Bundle, default_bundle, weights_file
from runtime.graph_io import read_graph
from runtime.passes import decompress_weights

pytestmark = pytest.mark.slow

PROMPT = "a bird on a branch"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache) -> dict[str, Path]:
    """Files by the model's name."""
    return {path.name.split("-")[0]: path for path in cache.rglob("*.blob")}


def picture(bundle, **options):
    return Pipeline.from_bundle(bundle, PipelineOptions(**options)).generate(PROMPT, seed=3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_model_is_compiled_once(precision, cache, tiny_bundles, monkeypatch):
    bundle = tiny_bundles[precision]
    wanted = picture(bundle, cache=False)
    np.testing.assert_array_equal(picture(bundle), wanted)
    assert set(kept(cache)) == {"text_encoder", "generator"}
    monkeypatch.setattr(compiled, "read_model", lambda *_: pytest.fail("read again"))
    np.testing.assert_array_equal(picture(bundle), wanted)


def test_it_holds_no_weights(cache):
    """Except those that a bundle stores in 8 bits and the runtime decompresses."""
    picture(default_bundle())
    for name, blob in kept(cache).items():
        graph = read_graph(Bundle.open(default_bundle()), f"{name}.xml.gz")
        decompress_weights(graph)
        size = Counter()
        for node in graph.get_ordered_ops():
            if node.get_type_name() == "Constant":
                size[node.get_element_type().get_type_name()] += node.get_data().nbytes
        # All of the INT8 weights would come on top, and the graph itself.
        assert blob.stat().st_size < size["f32"] + 0.75 * size["i8"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
)
def test_a_damaged_one_is_made_again(damage, cache, tiny_bundles, monkeypatch):
    wanted = picture(tiny_bundles["int8"])
    blob = kept(cache)["generator"]
    blob.write_bytes(damage(blob.read_bytes()))
    np.testing.assert_array_equal(picture(tiny_bundles["int8"]), wanted)
    monkeypatch.setattr(compiled, "read_model", lambda *_: pytest.fail("read again"))
    np.testing.assert_array_equal(picture(tiny_bundles["int8"]), wanted)


def test_one_of_another_openvino_is_made_again(cache, tiny_bundles):
    import hashlib

    wanted = picture(tiny_bundles["int8"])
    blob = kept(cache)["generator"]
    other = re.sub(rb"ov=\d", b"ov=1", blob.read_bytes()[32:])
    blob.write_bytes(hashlib.sha256(other).digest() + other)
    np.testing.assert_array_equal(picture(tiny_bundles["int8"]), wanted)


def test_one_that_gives_other_numbers_is_not_kept(cache, tiny_bundles, monkeypatch):
    """As would happen if OpenVINO took a constant from the wrong place among the weights."""
    wanted = picture(tiny_bundles["int8"], cache=False)
    outputs = compiled_cache.outputs
    calls = []

    def drifting(model, rows):
        calls.append(model)
        return [array + (len(calls) + 1) % 2 for array in outputs(model, rows)]

    monkeypatch.setattr(compiled_cache, "outputs", drifting)
    np.testing.assert_array_equal(picture(tiny_bundles["int8"]), wanted)
    assert len(calls) == 4
    assert not kept(cache)


def test_openvino_still_imports_changed_constants_with_their_old_values(cache, monkeypatch):
    """If this fails, OpenVINO was fixed, and constants need not be detached any more."""
    from runtime.bundle import default_bundle

    monkeypatch.setattr(compiled_cache, "_detach_small_constants", lambda model: None)
    picture(default_bundle(), precision="f32")
    assert "generator" not in kept(cache)


def test_another_use_of_the_cpu_is_another_file(cache, tiny_bundles):
    for streams in (1, 2):
        picture(tiny_bundles["int8"], threads=2, streams=streams)
    names = {path.name for path in cache.rglob("generator*.blob")}
    assert len(names) == 2


def test_a_changed_bundle_is_noticed_with_a_warm_cache_too(cache, tiny_bundle):
    picture(tiny_bundle)
    pipeline = Pipeline.from_bundle(tiny_bundle)
    weights = weights_file(tiny_bundle / GENERATOR)
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(BundleError, match="was changed while it was in use"):
        pipeline.generate(PROMPT)


def resident(file: Path) -> int:
    """Bytes of `file` that are mapped and in this process's memory."""
    maps = Path("/proc/self/smaps").read_text()
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", maps, flags=re.MULTILINE)
    found = [re.search(r"Rss: +(\d+) kB", part) for part in parts if str(file) in part]
    return sum(int(match[1]) * 1024 for match in found if match)


def test_released_pages_take_no_memory_and_can_be_read_again(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 1 << 22, np.uint8)
    file = tmp_path / "weights with a space.bin"
    file.write_bytes(content.tobytes())
    mapped = np.memmap(file, mode="r")
    np.testing.assert_array_equal(mapped, content)
    assert resident(file) > 1 << 21
    compiled_cache.release_pages(file)
    assert resident(file) == 0
    np.testing.assert_array_equal(mapped, content)


def test_pages_that_may_have_been_changed_are_not_released(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(1 << 20))
    mapped = np.memmap(file, mode="c")
    mapped[:] = 7
    compiled_cache.release_pages(file)
    assert (mapped == 7).all()

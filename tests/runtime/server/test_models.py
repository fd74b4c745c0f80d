"""Several models in one server."""

import asyncio
import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from runtime import Pipeline
from runtime.bundle import read_manifest
from runtime.pipeline import PipelineOptions
from runtime.server.app import create_app
from runtime.server.models import ModelPool, ModelSource
from runtime.server.options import ServerOptions
from runtime.server.schema import ServiceError

pytestmark = pytest.mark.slow

GENERATE = "/v1/images/generations"


def test_requests_choose_their_model(tiny_bundles):
    sources = {
        name: ModelSource.of_bundle(tiny_bundles[name], PipelineOptions())
        for name in ("fp32", "int8")
    }
    with TestClient(create_app(sources), base_url="http://localhost") as client:
        names = [each["id"] for each in client.get("/v1/models").json()["data"]]
        assert names == ["fp32", "int8"]
        body = {"prompt": "a bird", "seed": 3, "response_format": "b64_json"}
        for model, meant in (("int8", "int8"), (None, "fp32"), ("dall-e-3", "fp32")):
            answer = client.post(GENERATE, json=body | {"model": model})
            content = base64.b64decode(answer.json()["data"][0]["b64_json"])
            wanted = Pipeline.from_bundle(tiny_bundles[meant]).generate("a bird", seed=3)[0]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), wanted)
        answer = client.post(GENERATE, json=body | {"model": "other"})
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "available: fp32, int8" in error["message"]
        # A1111's clients choose by title, for all requests after it.
        title = client.get("/sdapi/v1/sd-models").json()[1]["title"]
        client.post("/sdapi/v1/options", json={"sd_model_checkpoint": title})
        info = client.post("/sdapi/v1/txt2img", json={"prompt": "a bird"}).json()["info"]
        assert read_manifest(tiny_bundles["int8"]).model_hash[:10] in info
        override = {"override_settings": {"sd_model_checkpoint": "fp32"}}
        info = client.post("/sdapi/v1/txt2img", json={"prompt": "a bird", **override}).json()
        assert read_manifest(tiny_bundles["fp32"]).model_hash[:10] in info["info"]


class TinyPipeline:
    """Generates black images."""

    def __init__(self, manifest):
        self.manifest = manifest

    def parallel_images(self, count):
        return 1

    def encode(self, prompts):
        return np.zeros((len(prompts), 4), np.float32)

    def synthesize_each(self, rows, count):
        for _ in rows:
            yield np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def loads(tiny_bundles):
    """Sources a, b and c that take 100 MB each, and what was loaded."""
    manifest, loaded = read_manifest(tiny_bundles["int8"]), []

    def source(name):
        def load():
            loaded.append(name)
            return TinyPipeline(replace(manifest, name=name))

        return ModelSource(manifest, load, memory=100_000_000)

    return {name: source(name) for name in "abc"}, loaded


def test_the_least_recently_used_model_is_unloaded(loads):
    sources, loaded = loads

    async def run():
        pool = ModelPool(sources, queue_size=8, memory=250_000_000)
        with pytest.raises(ServiceError, match="starting or stopping"):
            async with pool.use("a"):
                pass
        await pool.open()
        assert pool.loaded == ["a"]
        async with pool.use("b"), pool.use("a"):
            assert pool.loaded == ["b", "a"]
        async with pool.use("c"):
            assert pool.loaded == ["a", "c"]
        async with pool.use("a"), pool.use("b"):  # a is in use, c is not
            assert pool.loaded == ["a", "b"]
        await pool.close()

    asyncio.run(run())
    assert loaded == ["a", "b", "c", "b"]


def test_models_in_use_stay_until_they_are_not(loads):
    sources, loaded = loads

    async def run():
        pool = ModelPool(sources, queue_size=8, memory=150_000_000)
        await pool.open()
        async with pool.use("a"):
            async with pool.use("b"):
                assert pool.loaded == ["a", "b"]
        assert len(pool.loaded) == 1
        await pool.close()

    asyncio.run(run())
    assert loaded == ["a", "b"]


def test_concurrent_requests_load_a_model_once(loads):
    sources, loaded = loads

    async def run():
        pool = ModelPool(sources, queue_size=8)
        await pool.open()

        async def use():
            async with pool.use("b") as model:
                assert model.name == "b"

        await asyncio.gather(*(use() for _ in range(20)))
        await pool.close()

    asyncio.run(run())
    assert loaded == ["a", "b"]


def test_a_model_that_cannot_be_loaded_leaves_the_others(tiny_bundles, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundles["int8"], broken)
    sources = {
        name: ModelSource.of_bundle(path, PipelineOptions(cache=False))
        for name, path in (("good", tiny_bundles["int8"]), ("broken", broken))
    }
    (broken / "merges.txt").write_text("changed")
    with TestClient(create_app(sources), base_url="http://localhost") as client:
        for _ in range(2):
            answer = client.post(GENERATE, json={"prompt": "a bird", "model": "broken"})
            assert answer.status_code == 500
            message = answer.json()["error"]["message"]
            assert message == "the model broken cannot be loaded"
        assert client.post(GENERATE, json={"prompt": "a bird"}).status_code == 200


def test_memory_of_dropped_models_is_returned(tiny_bundles):
    """The limit is of use only if unloading frees what loading took."""
    from runtime.cpu import resident_bytes

    sources = {
        name: ModelSource.of_bundle(tiny_bundles["int8"], PipelineOptions()) for name in "ab"
    }

    async def run():
        pool = ModelPool(sources, queue_size=8, memory=1)
        await pool.open()
        sizes = []
        for turn in range(3):
            async with pool.use("ba"[turn % 2]):
                assert len(pool.loaded) == 1
            sizes.append(resident_bytes())
        await pool.close()
        return sizes

    sizes = asyncio.run(run())
    assert sizes[-1] - sizes[0] < 30_000_000


def test_a_server_needs_a_model():
    with pytest.raises(ValueError, match="at least one model"):
        ModelPool({}, 1)
    with pytest.raises(ValueError, match="at least 1 byte"):
        ServerOptions(memory=0)

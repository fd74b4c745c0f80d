"""Requests of image clients to the real server, and what they need from it (clients.jsonl)."""

import base64
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline
from runtime.images import resized

pytestmark = pytest.mark.slow

GENERATE = "v1/images/generations"
CLIENTS = [
    json.loads(line)
    for line in Path(__file__).with_name("clients.jsonl").read_text(encoding="utf-8").splitlines()
]
FORMATS = {"PNG": "PNG", "WebP": "WEBP", "JPEG": "JPEG"}


@pytest.fixture(scope="module")
def pipeline(tiny_bundles):
    return Pipeline.from_bundle(tiny_bundles["int8"])


@pytest.fixture(scope="module")
def address(serving, tiny_bundles):
    with serving(Pipeline.from_bundle(tiny_bundles["int8"])) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def image_of(item, client):
    content = base64.b64decode(item["b64_json"]) if "b64_json" in item else None
    if content is None:
        content = client.get(item["url"]).content
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("entry", CLIENTS, ids=lambda entry: entry["client"])
def test_each_client_gets_what_it_needs(entry, client):
    text = entry.get("body_text") or json.dumps(entry["body"])
    needs = entry["needs"]
    answer = client.post(GENERATE, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == int(needs[:3]), answer.text
    if answer.status_code != 200:
        return
    body = answer.json()
    assert isinstance(body["created"], int)
    assert len(body["data"]) == int(entry["body"].get("n") or 1)
    for item in body["data"]:
        for key in ("url", "b64_json"):
            assert key in item or key not in needs
        image = image_of(item, client)
        wanted = next((it for name, it in FORMATS.items() if f"{name} bytes" in needs), "PNG")
        assert image.format == wanted
        size = re.search(r"(\d+)x(\d+)", needs) or re.search(
            r"(\d+)x(\d+)", str(entry["body"].get("size"))
        )
        assert image.size == (tuple(map(int, size.groups())) if size else (64, 64))


@pytest.mark.parametrize(("width", "height"), [(512, 512), (512, 256), (100, 333), (2048, 1)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_other_sizes_are_resampled_and_reported(width, height, fit, client, pipeline):
    body = {"prompt": "a bird", "seed": 4, "size": f"{width}x{height}", "fit": fit}
    answer = client.post(GENERATE, json=body).json()
    (warning,) = answer["warnings"]
    assert f"the model generates 64x64 pixels: the image was resampled to {width}x" in warning
    assert answer["size"] == f"{width}x{height}"
    image = image_of(answer["data"][0], client)
    assert image.text["galip-edge"]  # the recipe
    wanted = resized(pipeline.generate("a bird", seed=4)[0], width, height, fit)
    np.testing.assert_array_equal(np.asarray(image), wanted)


def test_the_models_own_size_is_not_resampled(client, pipeline):
    body = {"prompt": "a bird", "seed": 4, "size": "64x64", "response_format": "b64_json"}
    answer = client.post(GENERATE, json=body).json()
    assert answer["warnings"] == []
    image = np.asarray(image_of(answer["data"][0], client))
    np.testing.assert_array_equal(image, pipeline.generate("a bird", seed=4)[0])


def test_resampling_keeps_the_middle_or_all():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 16:48] = 255  # a white bar in the middle
    assert resized(image, 64, 64) is image
    crop = resized(image, 64, 128)
    assert crop.shape == (128, 64, 3)
    assert crop[:, 10:54].min() > 250  # only the bar is left
    pad = resized(image, 64, 128, "pad")
    assert pad[:32].max() == pad[96:].max() == 0
    assert pad[40:88, 30].min() > 250
    assert pad[40:88, 4].max() < 5


def test_compression_changes_the_files_size(client):
    def size(**settings):
        body = {"prompt": "a bird", "seed": 1, "size": "512x512", "model": "gpt-image-1"}
        (item,) = client.post(GENERATE, json=body | settings).json()["data"]
        return len(item["b64_json"])

    for name in ("jpeg", "webp"):
        assert size(output_format=name, output_compression=10) < size(output_format=name)
    assert size(output_format="jpg", output_compression="0") > 0


def test_parameters_of_diffusion_models_are_accepted_with_a_warning(client):
    body = {"prompt": "a bird", "steps": 20, "negative_prompt": "cat", "guidance_scale": None}
    assert client.post(GENERATE, json=body).json()["warnings"] == [
        "without effect on this model: negative_prompt, steps"
    ]


def test_random_seeds_differ_and_are_returned(client):
    seeds = {
        client.post(GENERATE, json={"prompt": "a bird", "seed": seed}).json()["seed"]
        for seed in (-1, "-1", None, "")
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    big = {"prompt": "a bird", "seed": str(2**63 - 1)}
    assert client.post(GENERATE, json=big).json()["seed"] == 2**63 - 1


def test_what_the_model_cannot_do_is_refused_in_openais_form(client):
    files = {"image": ("a.png", b"x" * 300_000, "image/png")}
    for name in ("edits", "variations"):
        answer = client.post(f"v1/images/{name}", data={"prompt": "a bird"}, files=files)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"] == f"{name} is not supported by this model"
        assert (error["type"], error["code"]) == ("invalid_request_error", "not_supported")


def events(client, body):
    with client.stream("POST", GENERATE, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_stream_has_one_event_for_each_image(client, pipeline):
    body = {"prompt": "a bird", "n": 3, "seed": 7, "stream": True, "partial_images": 2}
    found = events(client, body)
    assert [kind for kind, _ in found] == ["image_generation.completed"] * 3
    images = [np.asarray(image_of(data, client)) for _, data in found]
    np.testing.assert_array_equal(images, pipeline.generate("a bird", n=3, seed=7))
    data = found[0][1]
    assert data["type"] == "image_generation.completed"
    assert (data["size"], data["output_format"], data["seed"]) == ("64x64", "png", 7)
    assert data["usage"]["input_tokens"] == 2


def test_what_is_wrong_with_a_stream_is_a_plain_error(client):
    answer = client.post(GENERATE, json={"prompt": " ", "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_a_failure_within_a_stream_is_an_event(serving, tiny_bundles, monkeypatch):
    pipeline = Pipeline.from_bundle(tiny_bundles["int8"])
    with serving(pipeline) as address, httpx.Client(base_url=address, timeout=60) as client:
        monkeypatch.setattr(pipeline, "synthesize_each", lambda rows, _: (1 // 0 for _ in rows))
        ((kind, data),) = events(client, {"prompt": "a bird", "stream": True})
    assert kind == "error"
    assert data["error"]["message"] == "the images could not be generated"


def test_images_with_urls_take_bounded_memory(client):
    urls = []
    for _ in range(4):
        body = {"prompt": "a bird", "n": 10, "size": "2048x2048", "output_format": "jpeg"}
        urls += [item["url"] for item in client.post(GENERATE, json=body).json()["data"]]
    assert urls[-1].endswith(".jpg")
    assert all(client.get(url).status_code in (200, 404) for url in urls[:3])
    for url in urls[-2:]:
        answer = client.get(url)
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (2048, 2048)

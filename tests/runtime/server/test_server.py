"""The server's interface, with a model in this process."""

import base64
import io
import socket
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette import testclient
from waiting import wait_until

from runtime import Pipeline
from runtime.images import read_metadata
from runtime.latent import Interpolation, Keyframe, interpolation_latent, keyframe_latent
from runtime.server import images_api
from runtime.server.app import create_app
from runtime.server.options import ServerOptions
from runtime.server.queue import GenerationQueue, QueueFullError


def TestClient(app):  # noqa: N802
    """A client of this machine: other Host names need an API key."""
    return testclient.TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000))


GENERATE = "/v1/images/generations"
INTERPOLATE = "/v1/images/interpolations"


@pytest.fixture(scope="module")
def bundle(tiny_bundles):
    return tiny_bundles["int8"]


@pytest.fixture(scope="module")
def client(bundle):
    with TestClient(create_app(Pipeline.from_bundle(bundle))) as client:
        yield client


def pictures(answer) -> list[np.ndarray]:
    found = [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(data))) for data in found]


def test_pictures_are_those_of_the_pipeline(client, bundle):
    body = {"prompt": "a bird", "n": 3, "seed": 7, "response_format": "b64_json", "size": "64x64"}
    answer = client.post(GENERATE, json=body | {"seed": 7.0})
    assert answer.status_code == 200
    assert answer.json()["seed"] == 7
    wanted = Pipeline.from_bundle(bundle).generate("a bird", n=3, seed=7)
    np.testing.assert_array_equal(pictures(answer), wanted)


def test_a_cut_prompt_is_reported(client):
    cut = "a prompt has 80 tokens, the model reads the first 75"
    body = {"prompt": "bird " * 80, "n": 2}
    assert client.post(GENERATE, json=body).json()["warnings"] == [cut]
    assert client.post(GENERATE, json={"prompt": "a bird"}).json()["warnings"] == []
    end = {"start": A, "end": {"prompt": "bird " * 80}}
    assert client.post(INTERPOLATE, json=end).headers["X-Galip-Edge-Warning"] == cut
    assert "X-Galip-Edge-Warning" not in client.post(INTERPOLATE, json={"start": A}).headers


def test_a_seed_is_drawn_and_told(client):
    body = {"prompt": "a bird", "response_format": "b64_json"}
    first, second = (client.post(GENERATE, json=body) for _ in range(2))
    assert first.json()["seed"] != second.json()["seed"]
    again = client.post(GENERATE, json=body | {"seed": first.json()["seed"]})
    np.testing.assert_array_equal(pictures(again), pictures(first))


def test_the_latest_images_are_kept_in_constant_memory(bundle, monkeypatch):
    monkeypatch.setattr(images_api, "_KEPT_BYTES", 1)
    options = ServerOptions(max_images=2, body_bytes=1024)
    with TestClient(create_app(Pipeline.from_bundle(bundle), options)) as client:
        body = {"prompt": "a bird", "n": 2, "response_format": "url"}
        urls = []
        for seed in range(10):
            data = client.post(GENERATE, json=body | {"seed": seed}).json()["data"]
            urls += [each["url"] for each in data]
            files = [client.get(url) for url in urls[-2:]]
            assert [file.status_code for file in files] == [200, 200]
        assert client.get(urls[0]).status_code == 404
        kept = {url: file.content for url in urls if (file := client.get(url)).status_code == 200}
        side = Pipeline.from_bundle(bundle).manifest.image_size
        assert sum(map(len, kept.values())) <= 2 * (3 * side**2 + 2 * 1024)
    wanted = Pipeline.from_bundle(bundle).generate("a bird", n=2, seed=9)
    for content, image in zip(list(kept.values())[-2:], wanted):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image)


def test_a_url_gives_a_png_with_its_recipe(client, tmp_path):
    answer = client.post(GENERATE, json={"prompt": "a bird", "seed": 3})
    (url,) = (each["url"] for each in answer.json()["data"])
    file = tmp_path / "a.png"
    file.write_bytes(client.get(url).content)
    recipe = read_metadata(file)
    assert (recipe.prompt, recipe.seed, recipe.index) == ("a bird", 3, 0)
    assert client.get("/v1/files/another").status_code == 404
    assert client.get("/v1/files/..%2f..%2fetc%2fpasswd").status_code == 404


@pytest.mark.parametrize(
    ("body", "parameter", "message"),
    [
        ({}, "prompt", "prompt must be a string"),
        ({"prompt": 5}, "prompt", "prompt must be a string"),
        ({"prompt": " "}, "prompt", "the prompt is empty"),
        ({"prompt": "x" * 3000}, "prompt", "at most 2,000 are accepted"),
        ({"prompt": "a\0b"}, "prompt", "NUL"),
        ({"prompt": "\ud800"}, "prompt", "not valid UTF-8"),
        ({"prompt": "a", "n": 0}, "n", "n must be an integer from 1 to 10"),
        ({"prompt": "a", "n": 11}, "n", "n must be an integer from 1 to 10"),
        ({"prompt": "a", "n": True}, "n", "n must be an integer"),
        ({"prompt": "a", "seed": 1.5}, "seed", "seed must be an integer from -1"),
        ({"prompt": "a", "seed": -2}, "seed", "seed must be an integer from -1"),
        ({"prompt": "a", "size": "4096x64"}, "size", "WIDTHxHEIGHT with at most 2048 pixels"),
        ({"prompt": "a", "size": "0x64"}, "size", "size must be auto or WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "64"}, "size", "size must be auto or WIDTHxHEIGHT"),
        ({"prompt": "a", "size": 64}, "size", "size must be auto or WIDTHxHEIGHT"),
        ({"prompt": "a", "output_format": "svg"}, "output_format", "one of png, jpeg, webp"),
        ({"prompt": "a", "stream": "perhaps"}, "stream", "stream must be true or false"),
        ({"prompt": "a", "n": "many"}, "n", "n must be an integer from 1 to 10"),
        ({"prompt": "a", "response_format": "tiff"}, "response_format", "one of url, b64_json"),
        ({"prompt": "a", "psi": 1.1}, "psi", "psi must be a number from 0 to 1"),
        ({"prompt": "a", "colour": 50}, "colour", "unknown parameter 'colour'"),
        ({"prompt": "a", "\ud800": 1}, "\\ud800", "unknown parameter"),
    ],
)
def test_what_is_wrong_is_told(body, parameter, message, client):
    import json

    answer = client.post(GENERATE, content=json.dumps(body))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == parameter
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


A, B = {"prompt": "a bird", "seed": 1, "index": 2}, {"prompt": "two dogs"}


@pytest.mark.parametrize(
    "body",
    [
        {"start": A},
        {"start": A, "end": B, "sentence_share": 0.25, "noise_share": 1, "psi": 0.5},
    ],
)
def test_a_picture_between_two_has_its_recipe(body, client, bundle, tmp_path):
    answer = client.post(INTERPOLATE, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    (tmp_path / "a.png").write_bytes(answer.content)
    recipe = read_metadata(tmp_path / "a.png")
    end = Keyframe("two dogs") if "end" in body else None
    rest = recipe.sentence_share, recipe.noise_share, recipe.psi
    assert (recipe.prompt, recipe.seed, recipe.index, recipe.end) == ("a bird", 1, 2, end)
    assert rest == ((0.25, 1, 0.5) if end else (0, 0, 1))
    pipeline = Pipeline.from_bundle(bundle)
    noise, sentence = interpolation_latent(
        pipeline, Interpolation(Keyframe("a bird", 1, 2), end, *rest)
    )
    (wanted,) = pipeline.synthesize([sentence], [noise])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), wanted)


@pytest.mark.parametrize(
    ("body", "parameter", "message"),
    [
        ({}, "start", "start must be a JSON object"),
        ({"start": {"seed": 1}}, "start.prompt", "start.prompt must be a string"),
        ({"start": A, "end": {"prompt": ""}}, "end.prompt", "the prompt is empty"),
        ({"start": A | {"index": -1}}, "start.index", "start.index must be an integer from 0"),
        ({"start": A, "end": A | {"x": 1}}, "end.x", "unknown parameter 'end.x'"),
        ({"start": A, "noise_share": "x"}, "noise_share", "noise_share must be a number from 0"),
        ({"start": A, "noise_share": -0.1}, "noise_share", "noise_share must be a number from 0"),
        ({"start": A, "psi": True}, "psi", "psi must be a number from 0 to 1"),
    ],
)
def test_what_is_wrong_between_two_is_told(body, parameter, message, client):
    error = client.post(INTERPOLATE, json=body).json()["error"]
    assert error["param"] == parameter
    assert message in error["message"]


def test_truncation_is_that_of_the_latent_tools(client, bundle):
    body = {"prompt": "a bird", "seed": 7, "psi": 0.5, "response_format": "b64_json"}
    pipeline = Pipeline.from_bundle(bundle)
    noise, sentence = keyframe_latent(pipeline, Keyframe("a bird", 7), 0.5)
    found = pictures(client.post(GENERATE, json=body))
    np.testing.assert_array_equal(found, pipeline.synthesize([sentence], [noise]))


def test_pages_of_other_sites_are_refused(client):
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        headers = {"Sec-Fetch-Site": site}
        answer = client.post(GENERATE, json={"prompt": "a bird"}, headers=headers)
        assert answer.status_code == status


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"x" * 100_000, b"[1]"])
def test_bodies_that_are_none(body, client):
    assert client.post(GENERATE, content=body).status_code == 400


def test_other_addresses(client):
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    answer = client.get(GENERATE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    assert "galip_images_total" in client.get("/metrics").text
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0"
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models/other").status_code == 404


def test_a_model_that_fails_is_told_and_the_server_goes_on(bundle, monkeypatch):
    pipeline = Pipeline.from_bundle(bundle)
    with TestClient(create_app(pipeline)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "synthesize_each", lambda rows, count: (1 // 0 for _ in rows))
            answer = client.post(GENERATE, json={"prompt": "a bird", "n": 2})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the images could not be generated"
        assert client.post(GENERATE, json={"prompt": "a bird"}).status_code == 200


def test_a_key_is_asked_for(bundle):
    options = ServerOptions(api_key="a-long-secret")
    with TestClient(create_app(Pipeline.from_bundle(bundle), options)) as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "a-long-secret"}):
            answer = client.post(GENERATE, json={"prompt": "a bird"}, headers=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/v1/models", headers=given).status_code == 401
        basic = base64.b64encode(b"user:a-long-secret").decode()
        for given in ("Bearer a-long-secret", "bearer  a-long-secret", f"Basic {basic}"):
            headers = {"Authorization": given}
            answer = client.post(GENERATE, json={"prompt": "a bird"}, headers=headers)
            assert answer.status_code == 200
            assert client.get("/v1/models", headers={"Host": "any.example", **headers}).is_success
        assert client.get("/healthz").status_code == 200


def test_too_late_is_told_when_to_come_again(bundle):
    options = ServerOptions(queue_size=8, max_images=8)
    with TestClient(create_app(Pipeline.from_bundle(bundle), options)) as client:
        answers = []

        def ask():
            answers.append(client.post(GENERATE, json={"prompt": "a bird", "n": 8}))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert "try again in" in refused.json()["error"]["message"]


@pytest.fixture
def held(bundle):
    """A pipeline that makes nothing until its gate is opened; notes what it makes."""
    pipeline = Pipeline.from_bundle(bundle)
    pipeline.gate, pipeline.made = threading.Event(), []
    pipeline.gate.set()
    whole = pipeline.synthesize_each

    def wait(rows, count):
        for row in rows:
            pipeline.gate.wait()
            pipeline.made.append(row[0])
            yield from whole([row], 1)

    pipeline.synthesize_each = wait
    yield pipeline
    pipeline.gate.set()


def test_a_request_that_takes_too_long_is_given_up(held):
    with TestClient(create_app(held, ServerOptions(timeout=0.3))) as client:
        held.gate.clear()
        answer = client.post(GENERATE, json={"prompt": "a bird"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "galip_given_up_requests_total 1.0" in client.get("/metrics").text
        held.gate.set()
        assert client.post(GENERATE, json={"prompt": "a bird"}).status_code == 200


def raw(address: str, body: str, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent."""
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    connection = socket.create_connection((host, int(port)))
    length = len(body) if length is None else length
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def test_what_nobody_waits_for_any_more_is_not_made(serving, held):
    with serving(held) as address, ThreadPoolExecutor(1) as other:
        generate, metrics = address + GENERATE.removeprefix("/"), address + "metrics"
        held.gate.clear()
        held.made.clear()
        stays = other.submit(httpx.post, generate, timeout=60, json={"prompt": "a bird", "seed": 1})
        wait_until(lambda: "galip_queued_images 1.0" in httpx.get(metrics, timeout=60).text)
        raw(address, '{"prompt": "a bird", "n": 5}').close()
        given_up = "galip_given_up_requests_total 1.0"
        wait_until(lambda: given_up in httpx.get(metrics, timeout=60).text)
        held.gate.set()
        assert stays.result().status_code == 200
        assert httpx.post(generate, json={"prompt": "a bird"}, timeout=60).status_code == 200
        assert len(held.made) == 2


def test_a_body_that_does_not_come_is_not_waited_for(serving, bundle):
    with serving(Pipeline.from_bundle(bundle), ServerOptions(timeout=0.3)) as address:
        with raw(address, '{"prompt": ', length=30) as connection:
            answer = b""
            while not answer.endswith(b"}") and (more := connection.recv(4096)):
                answer += more
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"request body timed out after 0.3 s" in answer


class SlowPipeline:
    """Generates an image each time it is allowed to."""

    def __init__(self, manifest):
        self.manifest, self.allowed, self.made = manifest, threading.Semaphore(0), []

    def parallel_images(self, count):
        return 2

    def encode(self, prompts):
        return [np.array([len(prompts[0])], np.float32)]

    def synthesize_each(self, rows, count):
        for _, sentence in rows:
            self.allowed.acquire()
            self.made.append(int(sentence[0]))
            if self.made[-1] == 13:
                raise RuntimeError("a kernel gave up")
            yield np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def slow(bundle):
    return SlowPipeline(Pipeline.from_bundle(bundle).manifest)


def test_pictures_are_made_in_order_and_the_queue_is_bounded(slow):
    queue = GenerationQueue(slow, bound=5)
    first = queue.submit([Interpolation(Keyframe("x"))])
    wait_until(first[0].running)
    rest = queue.submit([Interpolation(Keyframe("x" * i)) for i in range(2, 6)])
    assert len(queue) == 5
    with pytest.raises(QueueFullError, match="try again in 1 s"):
        queue.submit([Interpolation(Keyframe("late"))])
    rest[1].cancel()
    slow.allowed.release(10)
    queue.close()
    assert slow.made == [1, 2, 4, 5]
    assert len(queue) == 0
    assert all(future.done() for future in first + rest)
    with pytest.raises(CancelledError):
        rest[1].result()


def test_a_failure_is_told_and_the_next_one_is_made(slow):
    slow.allowed.release(10)
    queue = GenerationQueue(slow, bound=4)
    (failed,) = queue.submit([Interpolation(Keyframe("x" * 13))])
    with pytest.raises(RuntimeError, match="a kernel gave up"):
        failed.result(timeout=60)
    (good,) = queue.submit([Interpolation(Keyframe("x"))])
    assert good.result(timeout=60).shape == (8, 8, 3)
    queue.close()
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_images": 0}, "got 0"),
        ({"max_images": 65}, "from 1 to queue_size .64., got 65"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"body_bytes": 10}, "body_bytes must be at least 1024, got 10"),
        ({"api_key": "short"}, "at least 8 characters"),
        ({"api_key": "geheimnis-schlüssel"}, "ASCII letters"),
        ({"api_key": "a long secret"}, "without spaces"),
        ({"api_key": "with\nnewline"}, "ASCII letters"),
        ({"cors_origins": ("example.com",)}, "an origin is scheme, host and port"),
        ({"trusted_proxies": ("nginx",)}, "a trusted proxy is an IP address"),
        ({"root_path": "images"}, "root_path must start with /"),
        ({"memory": 0}, "memory must be at least 1 byte"),
        ({"max_connections": 0}, "max_connections must be at least 1"),
    ],
)
def test_invalid_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerOptions(**settings)

"""`galip-edge serve` as a process, and the client that programs for OpenAI use."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image
from waiting import wait_until

from galip_edge.commands.serve import listening
from runtime import Pipeline

pytestmark = pytest.mark.slow


@contextmanager
def serve(*options, **environment):
    """A process of `galip-edge serve`, and its address."""
    command = [sys.executable, "-m", "galip_edge", "serve", "--port", "0", *map(str, options)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    told = process.stderr.readline()
    assert told.startswith("studio and API: http://127.0.0.1:"), told + process.stderr.read()
    try:
        yield process, told.split()[-1].rstrip("/")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def bundle(tiny_bundles):
    return tiny_bundles["int8"]


@pytest.fixture(scope="module")
def server(bundle):
    with serve("--model", bundle) as started:
        yield started


def test_openais_client_gets_pictures(server, tiny_bundles):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{server[1]}/v1", api_key="none is asked for", max_retries=0)
    (model,) = client.models.list()
    answer = client.images.generate(
        model=model.id,
        prompt="a bird",
        n=2,
        size="64x64",
        response_format="b64_json",
        extra_body={"seed": 5},
    )
    wanted = Pipeline.from_bundle(tiny_bundles["int8"]).generate("a bird", n=2, seed=5)
    for each, image in zip(answer.data, wanted, strict=True):
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(each.b64_json))))
        np.testing.assert_array_equal(found, image)
    url = client.images.generate(prompt="a bird").data[0].url
    assert httpx.get(url, timeout=60).headers["content-type"] == "image/png"
    with pytest.raises(BadRequestError, match="the prompt is empty"):
        client.images.generate(prompt=" ")


# As in the examples and the README of the openai package.
EXAMPLES = """
import base64
from openai import OpenAI

client = OpenAI()
print(client.images.generate(prompt="an astronaut", model="dall-e-3").data[0].url)
image = client.images.generate(
    model="gpt-image-1.5", prompt="a bird", n=1, size="1024x1024", quality="high",
    background="transparent", output_format="webp", output_compression=80, moderation="low",
)
print(base64.b64decode(image.data[0].b64_json)[8:12])
for event in client.images.generate(
    model="gpt-image-1", prompt="a bird", n=1, size="1024x1024", stream=True, partial_images=3
):
    if event.type == "image_generation.partial_image":
        print("partial", event.partial_image_index)
    elif event.type == "image_generation.completed":
        print(base64.b64decode(event.b64_json)[1:4], event.usage.total_tokens)
"""


def test_openais_examples_run_unchanged(server):
    found = {"OPENAI_BASE_URL": f"{server[1]}/v1", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-c", EXAMPLES]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | found)
    assert done.returncode == 0, done.stderr
    url, *rest = done.stdout.splitlines()
    assert httpx.get(url, timeout=60).headers["content-type"] == "image/png"
    assert rest == ["b'WEBP'", "b'PNG' 2"]


def test_openais_client_reads_our_errors(server):
    import openai

    client = openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="edits is not supported by this model"):
        client.images.edit(image=b"x" * 100_000, prompt="a bird")
    with pytest.raises(openai.BadRequestError, match="size must be auto or WIDTHxHEIGHT"):
        client.images.generate(prompt="a bird", size="9000x9000")
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.images.generate(prompt=" ", stream=True)


def test_a_signal_lets_it_finish_what_it_accepted(bundle):
    body = {"prompt": "a bird", "n": 10, "stream": True}
    with serve("--model", bundle) as (process, address), ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=60))
        generate = f"{address}/v1/images/generations"
        # A stream's header comes when its request is accepted.
        streams = [
            stack.enter_context(client.stream("POST", generate, json=body)) for _ in range(6)
        ]
        process.send_signal(signal.SIGTERM)
        events = [stream.read().decode().count("event: ") for stream in streams]
        process.wait(timeout=60)
    assert [stream.status_code for stream in streams] == [200] * 6
    assert events == [10] * 6


def test_former_spellings_work_and_are_hidden(monkeypatch):
    from click.testing import CliRunner

    from galip_edge.commands.serve import command

    shown = CliRunner().invoke(command, ["--help"]).output
    assert "--max-images" in shown
    assert "--queue-size" in shown
    for former, name in (("--most", "--max-images"), ("--queue", "--queue-size")):
        assert former not in shown.replace(name, "")
        for option in (former, name):
            parameters = command.make_context("serve", [option, "3"]).params
            assert parameters[name[2:].replace("-", "_")] == 3
    monkeypatch.setenv("GALIP_EDGE_SERVE_MOST", "4")
    assert command.make_context("serve", []).params["max_images"] == 4


def test_others_need_a_key(tiny_bundles):
    command = [sys.executable, "-m", "galip_edge", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "0.0.0.0 is not a loopback address: pass --api-key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told_at_once(server):
    port = server[1].rpartition(":")[2]
    command = [sys.executable, "-m", "galip_edge", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot listen on 127.0.0.1, port {port} (Address already in use): choose another "
        "--port or --host\n"
    )


def test_small_answers_are_not_held_back():
    with listening("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()


def test_several_models_environment_and_configuration(tiny_bundles, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text(
        f"model = ['small={tiny_bundles['int8']}', 'float={tiny_bundles['fp32']}']\n"
        "max-images = 3\nqueue_size = 9\nmemory = '2GB'\ncors-origin = 'https://a.example'\n"
    )
    environment = {"GALIP_EDGE_SERVE_MAX_IMAGES": "2", "GALIP_EDGE_SERVE_API_KEY": "a-long-secret"}
    with serve("--config", config, "--most", "1", **environment) as (_, address):
        headers = {"Authorization": "Bearer a-long-secret", "Origin": "https://a.example"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            names = [each["id"] for each in client.get("/v1/models").json()["data"]]
            assert names == ["small", "float"]
            body = {"prompt": "a bird", "model": "float"}
            assert client.post("/v1/images/generations", json=body).status_code == 200
            answer = client.post("/v1/images/generations", json=body | {"n": 2})
            assert "n must be an integer from 1 to 1" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key", "geheimnis-schlüssel"], "must consist of ASCII letters"),
        (["--model", "a=none", "--model", "b=none"], "no bundle at none"),
        (["--cors-origin", "example.com"], "an origin is scheme, host and port"),
        (["--trusted-proxy", "nginx"], "a trusted proxy is an IP address"),
        (["--memory", "much"], "'much' is not a size such as 2GB"),
        (["--max-images", "65"], "max_images must be from 1 to queue_size (64), got 65"),
        (["--root-path", "images"], "root_path must start with /"),
        (["--config", "none.toml"], "cannot read the configuration none.toml"),
        (["--config", "bad.toml"], "unknown option 'ports' in bad.toml"),
        (["--config", "not.toml"], "cannot read the configuration not.toml"),
    ],
)
def test_wrong_options_are_named(arguments, message, tmp_path, monkeypatch, capsys):
    from galip_edge.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("ports = 1\n")
    (tmp_path / "not.toml").write_bytes(b"\xff = =")
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--port", "0", *arguments])
    assert exit_.value.code != 0
    assert message in capsys.readouterr().err


def test_two_models_of_one_name_are_refused(bundle, capsys):
    from galip_edge.cli import main

    with pytest.raises(SystemExit):
        main(["serve", "--port", "0", "--model", str(bundle), "--model", str(bundle)])
    assert "pass --model NAME=PATH" in capsys.readouterr().err


NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# Two servers: one strips the path and says so, the other keeps it.
NGINX_CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /galip/ {{
            proxy_pass {stripped}/;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Forwarded-Host images.example;
            proxy_set_header X-Forwarded-Prefix /galip;
        }}
        location /kept/ {{
            proxy_pass {kept};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
        }}
    }}
}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def listens(port):
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx(folder, **places):
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=folder, port=port, user=user, **places))
    command = [NGINX, "-p", str(folder), "-e", "stderr", "-c", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, process.stderr.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_behind_nginx_under_a_path_with_tls(bundle, server, tmp_path):
    with (
        serve("--model", bundle, "--root-path", "/kept") as (_, kept),
        nginx(tmp_path, stripped=server[1], kept=kept) as front,
        httpx.Client(base_url=front, follow_redirects=True, timeout=60) as client,
    ):
        for path, start in (
            ("/galip", "https://images.example/galip/v1/files/"),
            ("/kept", f"{front.replace('http:', 'https:')}/kept/v1/files/"),
        ):
            body = {"prompt": "a bird", "size": "100x50"}
            answer = client.post(f"{path}/v1/images/generations", json=body)
            (item,) = answer.json()["data"]
            assert item["url"].startswith(start)
            image = client.get(path + item["url"].partition(path)[2])
            assert Image.open(io.BytesIO(image.content)).size == (100, 50)
            page = client.get(f"{path}/")
            assert page.url.path == f"{path}/studio/"
            assert "studio.js" in page.text
            assert client.get(f"{path}/studio/studio.js").status_code == 200
            # The page is of the same origin for its browser, other pages are not.
            own = start.partition(f"{path}/")[0]
            for origin, status in ((own, 200), ("https://evil.example", 403)):
                answer = client.post(
                    f"{path}/v1/images/generations", json=body, headers={"Origin": origin}
                )
                assert answer.status_code == status
            streamed = client.post(f"{path}/v1/images/generations", json=body | {"stream": True})
            kind, data = streamed.text.strip().split("\n")
            assert kind == "event: image_generation.completed"
            assert json.loads(data.removeprefix("data: "))["size"] == "100x50"

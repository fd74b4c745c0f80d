"""`galip-edge serve` as a process, and the client that programs for OpenAI use."""

import base64
import io
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from galip_edge.commands.serve import listening
from runtime import Pipeline


@pytest.fixture
def server(tiny_bundles):
    command = [sys.executable, "-m", "galip_edge", "serve", "--model", str(tiny_bundles["int8"])]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    told = process.stderr.readline()
    assert told.startswith("studio and API: http://127.0.0.1:")
    address = told.split()[-1].rstrip("/")
    yield process, address
    if process.poll() is None:
        process.kill()
    process.wait()


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
    assert httpx.get(url).headers["content-type"] == "image/png"
    with pytest.raises(BadRequestError, match="the prompt is empty"):
        client.images.generate(prompt=" ")


def test_a_signal_lets_it_finish_what_it_accepted(server):
    process, address = server
    answers = []

    def ask():
        body = {"prompt": "a bird", "n": 10}
        answers.append(httpx.post(f"{address}/v1/images/generations", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    process.wait(timeout=30)
    assert [answer.status_code for answer in answers] == [200] * 6


def test_others_need_a_key(tiny_bundles):
    command = [sys.executable, "-m", "galip_edge", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "0.0.0.0 can be reached by others: give --api-key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told_at_once(server):
    port = server[1].rpartition(":")[2]
    command = [sys.executable, "-m", "galip_edge", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot listen at 127.0.0.1, port {port} (Address already in use): choose another "
        "--port or --host\n"
    )


def test_small_answers_are_not_held_back():
    with listening("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()

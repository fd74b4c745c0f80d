"""Limits on connections, against a listening server."""

import http.client
import logging
import select
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from waiting import wait_until

from galip_edge.commands import serve
from runtime import Pipeline
from runtime.server import connections
from runtime.server.connections import RepeatFilter, connection_limits
from runtime.server.options import ServerOptions

pytestmark = pytest.mark.slow

HEAD = "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HALF_HEADER = f"{HEAD}X: "
HALF_BODY = f'{HEAD}Content-Length: 100\r\n\r\n{{"prompt": '
IDLE = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def pipeline(tiny_bundles):
    return Pipeline.from_bundle(tiny_bundles["int8"])


@pytest.fixture(scope="module")
def crowded(serving, pipeline):
    """A server with few connections and a long patience."""
    options = ServerOptions(max_connections=20, header_timeout=300, timeout=300)
    with serving(pipeline, options) as address:
        yield address


def connect(address, text=""):
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(text.encode())
    return connection


def is_closed(connection, seconds=0.0):
    """True if the server closed a connection; its earlier output is read."""
    deadline = time.monotonic() + seconds
    while select.select([connection], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            if not connection.recv(65536):
                return True
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize("begun", ["", HALF_HEADER], ids=["nothing", "half a header"])
def test_a_header_must_come_in_time(begun, serving, pipeline):
    with serving(pipeline, ServerOptions(header_timeout=0.3)) as address:
        with connect(address, begun) as connection:
            assert is_closed(connection, 20)


def test_single_bytes_do_not_extend_the_time_for_a_header(serving, pipeline):
    with serving(pipeline, ServerOptions(header_timeout=1)) as address:
        with connect(address, f"{IDLE}{HALF_HEADER}") as connection:
            started = time.monotonic()
            while not is_closed(connection, 0.1):
                assert time.monotonic() < started + 20
                try:
                    connection.sendall(b"x")
                except ConnectionError:
                    break


@pytest.mark.parametrize("text", [HALF_BODY, IDLE], ids=["body", "idle"])
def test_slow_connections_leave_room_for_others(text, crowded):
    held = []
    try:
        for count in range(1, 81):
            held.append(connect(crowded, text))
            if count % 20 == 0:
                assert httpx.get(f"{crowded}healthz", timeout=20).status_code == 200
        open_ones = [each for each in held if not is_closed(each, 0.01)]
        assert len(open_ones) <= 20
    finally:
        for each in held:
            each.close()


def test_the_oldest_without_a_header_make_room_for_others(serving, pipeline, monkeypatch):
    monkeypatch.setattr(serve, "connection_limits", lambda *_: (20, 20))
    with serving(pipeline, ServerOptions(header_timeout=300)) as address:
        held = [connect(address, HALF_HEADER) for _ in range(80)]
        assert httpx.get(f"{address}healthz", timeout=20).status_code == 200
        assert all(is_closed(each, 20) for each in held[:60])
        assert not any(is_closed(each) for each in held[61:])  # the health check was one more
        held[-1].sendall(b"y\r\nContent-Length: 2\r\n\r\n{}")  # the header may come in parts
        assert b"400 Bad Request" in held[-1].recv(4096)
        for each in held:
            each.close()


def test_headers_together_are_bounded(serving, pipeline, monkeypatch):
    monkeypatch.setattr(connections, "_HEADERS_BYTES", 50_000)
    with serving(pipeline, ServerOptions(header_timeout=300)) as address:
        held = [connect(address, HALF_HEADER + 10_000 * "x") for _ in range(12)]
        assert httpx.get(f"{address}healthz", timeout=20).status_code == 200
        assert all(is_closed(each, 20) for each in held[:5])
        for each in held:
            each.close()
        with connect(address, HALF_HEADER + 20_000 * "x") as connection:
            assert is_closed(connection, 20)  # too large for any server
        assert httpx.get(f"{address}healthz", timeout=20).status_code == 200


def test_a_request_in_progress_is_not_closed(serving, tiny_bundles):
    pipeline = Pipeline.from_bundle(tiny_bundles["int8"])
    gate, whole = threading.Event(), pipeline.synthesize_each
    gate.set()

    def wait(rows, count):
        gate.wait()
        return whole(rows, count)

    pipeline.synthesize_each = wait
    with serving(pipeline, ServerOptions(max_connections=5)) as address, ThreadPoolExecutor(1) as t:
        gate.clear()
        url = f"{address}v1/images/generations"
        request = t.submit(httpx.post, url, json={"prompt": "a bird"}, timeout=60)
        try:
            wait_until(lambda: "galip_queued_images 1.0" in metrics(address))
            held = [connect(address, HALF_HEADER) for _ in range(30)]
            assert httpx.get(f"{address}healthz", timeout=20).status_code == 200
        finally:
            gate.set()
        assert request.result().status_code == 200
        for each in held:
            each.close()


def metrics(address):
    return httpx.get(f"{address}metrics", timeout=20).text


def test_connections_leave_files_for_the_rest():
    assert connection_limits(512, None) == (512, 16_384)
    assert connection_limits(512, 20_000) == (512, 16_384)
    assert connection_limits(512, 4096) == (512, 4096 - 64 - 512)
    assert connection_limits(512, 256) == (96, 96)
    assert connection_limits(512, 10) == (1, 1)


def test_the_soft_limit_of_files_is_raised():
    program = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
        "from runtime.server.connections import raise_file_limit;"
        "assert raise_file_limit() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_repeated_messages_are_dropped_and_counted():
    repeats = RepeatFilter(seconds=0.2)
    passed = []

    def log(text):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)
        if repeats.filter(record):
            passed.append(record.getMessage())

    for _ in range(100):
        log("accept failed")
    log("another")
    assert passed == ["accept failed", "another"]
    deadline = time.monotonic() + 10
    while len(passed) < 3 and time.monotonic() < deadline:
        log("accept failed")
    assert passed[2].startswith("accept failed (and ")


def test_few_files_are_enough(tiny_bundles):
    """300 half-sent headers exhausted 256 files: no health check, 211 MB of log."""
    command = f"ulimit -n 256; exec {sys.executable} -m galip_edge serve --port 0 --model "
    process = subprocess.Popen(
        ["bash", "-c", command + str(tiny_bundles["int8"])], stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stderr.readline().split()[-1]
        held = [connect(address, HALF_HEADER) for _ in range(300)]
        host = address.removeprefix("http://").rstrip("/")
        for _ in range(3):
            client = http.client.HTTPConnection(host, timeout=20)
            client.request("GET", "/healthz")
            assert client.getresponse().status == 200
            client.close()
        for each in held:
            each.close()
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[1]
    assert len(rest) < 1000

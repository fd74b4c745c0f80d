"""Effect of hostile clients on the server's memory and to its health check.

    python benchmarks/hostile_clients.py [BUNDLE] [--minutes 10] [--connections 10000] [--json]

First a soak: 8 clients send new prompts without end, each of a kind that once grew a cache or took
long to tokenize, in random sizes and formats, and read half of the images by their URLs. Memory is
that of the server's process, from its first request on. Then slow connections: one client opens as
many as it can, sends half a header on each and opens it again when the server closes it, while
/healthz is requested every 20 ms, on a new connection each time; the same without slow connections
is what the machine itself allows. Clients run on the same cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import resource
import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import environment
from serving import Server
from turns import percentile

from runtime.bundle import default_bundle

CLIENTS = 8


def _astral(draw: random.Random) -> str:
    """One word of 8,000 bytes."""
    return "".join(chr(draw.randrange(0x20000, 0x2A6D0)) for _ in range(2000))


def _short_words(draw: random.Random) -> str:
    """Hundreds of words, none used before."""
    return " ".join(
        "".join(chr(draw.randrange(0x3400, 0x9FFF)) for _ in range(5)) for _ in range(330)
    )


def _entities(draw: random.Random) -> str:
    return "".join(f"&#{draw.randrange(33, 50_000)};" for _ in range(200))


def _repeated(draw: random.Random) -> str:
    return draw.choice("abcdefgh") * draw.randrange(1500, 2000) + str(draw.random())


def _ordinary(draw: random.Random) -> str:
    return f"a bird on a branch, number {draw.random()}"


KINDS: tuple[Callable[[random.Random], str], ...] = (
    _astral,
    _short_words,
    _entities,
    _repeated,
    _ordinary,
)


def _ask(port: int, seed: int, until: float, statuses: Counter[int]) -> None:
    draw = random.Random(seed)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.time() < until:
        body: dict[str, Any] = {"prompt": draw.choice(KINDS)(draw), "seed": draw.randrange(1 << 32)}
        if draw.random() < 0.1:
            body["size"] = draw.choice(("512x512", "1024x768", "333x777"))
            body["output_format"] = draw.choice(("png", "jpeg", "webp"))
        client.request("POST", "/v1/images/generations", json.dumps(body))
        answer = client.getresponse()
        content = answer.read()
        statuses[answer.status] += 1
        if answer.status == 200 and draw.random() < 0.5:
            url = json.loads(content)["data"][0]["url"]
            client.request("GET", url[url.index("/v1/") :])
            client.getresponse().read()
        if answer.status == 429:
            time.sleep(float(answer.headers["Retry-After"]))


def soak(server: Server, minutes: float) -> dict[str, Any]:
    """Memory of the server while hostile prompts come in, once in ten seconds, in bytes."""
    memory, until = [server.memory()], time.time() + minutes * 60
    statuses: Counter[int] = Counter()
    threads = [
        threading.Thread(target=_ask, args=(server.port, seed, until, statuses))
        for seed in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while (left := until - time.time()) > 0:
        time.sleep(min(10.0, left))
        memory.append(server.memory())
    for thread in threads:
        thread.join()
    memory.append(server.memory())
    return {
        "minutes": minutes,
        "statuses": dict(statuses),
        "memory_bytes": memory,
        "growth_bytes": memory[-1] - memory[0],
        "largest_growth_bytes": max(memory) - memory[0],
    }


def _hold(port: int, count: int, end: threading.Event, opened: Counter[str]) -> None:
    """Keep `count` connections with half a header open."""
    selector = selectors.DefaultSelector()
    held = 0
    while not end.is_set():
        while held < count and not end.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            except OSError:
                opened["failed"] += 1
                break
            connection.setblocking(False)
            connection.send(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            selector.register(connection, selectors.EVENT_READ)
            opened["opened"] += 1
            held += 1
        for key, _ in selector.select(0.05):  # closed by the server
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            held -= 1
        time.sleep(0.01)
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]


def health_checks(server: Server, seconds: float) -> dict[str, Any]:
    """Seconds of a health check on a new connection."""
    times, failed, until = [], 0, time.time() + seconds
    while time.time() < until:
        start = time.perf_counter()
        try:
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            client.request("GET", "/healthz")
            client.getresponse().read()
            client.close()
            times.append(time.perf_counter() - start)
        except OSError:
            failed += 1
        time.sleep(0.02)
    return {
        "count": len(times),
        "failed": failed,
        "p50_s": statistics.median(times),
        "p99_s": percentile(times, 0.99),
        "max_s": max(times),
    }


def slow_connections(server: Server, count: int, seconds: float) -> dict[str, Any]:
    """Health checks alone, while one client opens slow connections, and while it holds them."""
    alone = health_checks(server, seconds / 3)
    end, opened = threading.Event(), Counter[str]()
    holder = threading.Thread(target=_hold, args=(server.port, count, end, opened))
    holder.start()
    opening = health_checks(server, seconds / 3)
    deadline = time.time() + 120
    while opened["opened"] < count and time.time() < deadline:
        time.sleep(0.1)
    holding = health_checks(server, seconds / 3)
    end.set()
    holder.join()
    return {
        "connections": count,
        "opened": opened["opened"],
        "not_opened": opened["failed"],
        "health_alone": alone,
        "health_while_opening": opening,
        "health_while_held": holding,
    }


def print_results(results: dict[str, Any], env: dict[str, Any]) -> None:
    """Print a summary."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}\n")
    found = results["soak"]
    print(
        f"{found['minutes']:g} minutes of hostile prompts, statuses {found['statuses']}: memory "
        f"{found['memory_bytes'][0] / 1e6:.0f} MB + {found['growth_bytes'] / 1e6:.1f} MB "
        f"(at most + {found['largest_growth_bytes'] / 1e6:.1f} MB)"
    )
    found = results["slow_connections"]
    print(f"{found['connections']} slow connections at a time, {found['opened']} opened in all\n")
    print("| health check | p50 | p99 | slowest | failed |\n|---|---|---|---|---|")
    for name in ("alone", "while_opening", "while_held"):
        each = found[f"health_{name}"]
        times = " | ".join(f"{each[key] * 1e3:.1f} ms" for key in ("p50_s", "p99_s", "max_s"))
        print(f"| {name.replace('_', ' ')} | {times} | {each['failed']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: the embedded model")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parser.add_argument("--connections", type=int, default=10_000, help="slow ones, at a time")
    parser.add_argument("--seconds", type=float, default=30.0, help="of slow connections")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server(args.bundle or default_bundle())
    results = {
        "soak": soak(server, args.minutes),
        "slow_connections": slow_connections(server, args.connections, args.seconds),
    }
    server.end()
    if args.json:
        print(json.dumps({"environment": environment(), **results}, indent=1))
    else:
        print_results(results, environment())


if __name__ == "__main__":
    main()

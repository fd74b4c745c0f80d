"""Overhead of serving over generating, and behaviour under many clients.

    python benchmarks/serving.py [BUNDLE] [--json]

The default bundle is the untrained one of the published size that cpu_latency.py creates. In turns,
in one run: `Pipeline.generate_each` with many images, and `galip-edge serve` with 8 clients, each
of which requests its next image when it has one. Then many clients at once for a minute: their
responses, the waiting time for images, and the growth of memory. The time of a request without
concurrent ones, times the queue size, bounds the waiting time. Clients run on the same cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import environment
from prepared import full_size_bundle
from turns import Variant, percentile

from runtime import Pipeline

CLIENTS = 8
_QUEUE = 64


def generating(bundle: str) -> Callable[[int], float]:
    """Images per second, without a server."""
    pipeline = Pipeline.from_bundle(bundle)
    seeds = iter(range(1 << 30))

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in pipeline.generate_each("a bird on a branch", n=count, seed=next(seeds)):
            pass
        return count / (time.perf_counter() - start)

    return run


class Server:
    """`galip-edge serve` in a separate process."""

    def __init__(self, bundle: Path) -> None:
        command = [sys.executable, "-m", "galip_edge", "serve", "--model", str(bundle)]
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--queue-size", str(_QUEUE)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        told = self._process.stderr.readline()  # when it accepts requests
        self.port = int(told.rstrip("/\n").rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory(self) -> int:
        """Its resident bytes."""
        fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return int(fields[1]) * 4096

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def clients(
    server: Server, count: int, until: Callable[[], bool]
) -> tuple[Counter[int], list[float]]:
    """Request images one at a time; statuses, and seconds of successful requests."""
    statuses: Counter[int] = Counter()
    seconds: list[float] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        connection, asked = server.connect(), 0
        while not until():
            asked += 1
            body = json.dumps({"prompt": "a bird on a branch", "seed": number * 1000 + asked})
            start = time.perf_counter()
            connection.request("POST", "/v1/images/generations", body)
            answer = connection.getresponse()
            answer.read()
            with lock:
                statuses[answer.status] += 1
                if answer.status == 200:
                    seconds.append(time.perf_counter() - start)
            if answer.status == 429:
                time.sleep(float(answer.headers["Retry-After"]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, seconds


def asked(count: int) -> Callable[[], bool]:
    """True once that many images were requested; each call counts one."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def throughput(server: Server, count: int) -> float:
    """Images per second of `CLIENTS` clients."""
    start = time.perf_counter()
    statuses, _ = clients(server, CLIENTS, asked(count))
    return statuses[200] / (time.perf_counter() - start)


def alone(server: Server, count: int) -> float:
    """Seconds of a request without concurrent ones."""
    return statistics.median(clients(server, 1, asked(count))[1])


def crowd(server: Server, count: int, seconds: float, rate: float) -> dict[str, Any]:
    """Many clients at once."""
    service = alone(server, 50)
    end = time.perf_counter() + seconds
    before = server.memory()
    statuses, waited = clients(server, count, lambda: time.perf_counter() > end)
    return {
        "service_s": service,
        "clients": count,
        "seconds": seconds,
        "statuses": dict(statuses),
        "p50_s": statistics.median(waited),
        "p99_s": percentile(waited, 0.99),
        "queue_times_service_s": _QUEUE * service,
        "queue_by_rate_s": _QUEUE / rate,
        "growth_bytes": server.memory() - before,
    }


def measure(bundle: Path, count: int, runs: int, many: int, crowd_seconds: float) -> dict[str, Any]:
    """Medians in images per second, and the crowd."""
    bare, server = Variant(generating, str(bundle)), Server(bundle)
    rates: dict[str, list[float]] = {"generate": [], "serve": []}
    for turn in range(runs + 1):
        found = bare.run(count), throughput(server, count)
        if turn:  # the first one compiled
            for name, rate in zip(rates, found, strict=True):
                rates[name].append(rate)
    bare.end()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    crowded = crowd(server, many, crowd_seconds, medians["serve"])
    server.end()
    return {"images_per_second": medians, "crowd": crowded}


def print_table(results: dict[str, Any], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}\n")
    rates, found = results["images_per_second"], results["crowd"]
    print("| | images/s |\n|---|---|")
    print(f"| generate, many | {rates['generate']:.1f} |")
    share = rates["serve"] / rates["generate"] * 100
    print(f"| serve, {CLIENTS} clients | {rates['serve']:.1f} ({share:.1f} %) |\n")
    print(f"{found['clients']} clients for {found['seconds']:.0f} s: statuses {found['statuses']}")
    print(
        f"p50 {found['p50_s']:.2f} s, p99 {found['p99_s']:.2f} s. A request alone takes "
        f"{found['service_s'] * 1000:.1f} ms, times the queue's bound {_QUEUE} is "
        f"{found['queue_times_service_s']:.2f} s; by the rate of {CLIENTS} clients, a full queue "
        f"takes {found['queue_by_rate_s']:.2f} s. Memory + {found['growth_bytes'] / 1e6:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("-n", type=int, default=120, help="images of each measurement")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each")
    parser.add_argument("--clients", type=int, default=200, help="of the crowd")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the crowd")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    bundle = args.bundle or full_size_bundle()
    results = measure(bundle, args.n, args.runs, args.clients, args.seconds)
    if args.json:
        print(json.dumps({"environment": environment(), **results}, indent=1))
    else:
        print_table(results, environment())


if __name__ == "__main__":
    main()

"""Scaling of a job over nodes, simulated by nodes that only wait.

    python benchmarks/cluster_scaling.py [--rate 27.9] [--json]

Ray cluster, job, files and manifest are real, on this machine; instead of running a generator, each
"node" returns constant images at the rate measured for one. This shows the cost of coordination
(distributing shards, collecting entries, the manifest), not the effect of a real cluster's network
and disks. This machine's cores do all the writing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from environment import environment

from runtime import Job, JobOptions, PromptFile
from runtime.bundle import default_bundle
from runtime.images import ImageFormat
from runtime.jobs.ray import RayExecutor

_RATE = "GALIP_EDGE_SIMULATED_RATE"


def simulate() -> None:
    """Replace the generator by one that waits, in each process of the cluster."""
    from batch_throughput import ConstantPipeline

    from runtime.jobs import worker

    seconds = 1 / float(os.environ[_RATE])

    class WaitingPipeline(ConstantPipeline):
        def synthesize_each(self, rows: Iterator[Any], count: int) -> Iterator[Any]:
            due = time.perf_counter()
            for image in super().synthesize_each(rows, count):
                due += seconds
                time.sleep(max(0.0, due - time.perf_counter()))
                yield image

    worker.Pipeline = WaitingPipeline  # type: ignore[assignment, misc]


def measure(nodes: list[int], rate: float, seconds: float) -> list[dict[str, float]]:
    """Images per second over the number of nodes, each measured for about that many seconds."""
    import ray

    environment_variables = {_RATE: str(rate), "PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(
        num_cpus=max(nodes),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment_variables, "worker_process_setup_hook": simulate},
    )
    results = []
    for count in nodes:
        images = int(count * rate * seconds)
        with tempfile.TemporaryDirectory() as name:
            prompts = Path(name, "prompts.txt")
            prompts.write_text("\n".join(f"bird {i}" for i in range(images)))
            options = JobOptions(
                output_format="tar", image_format=ImageFormat("jpeg"), shard_size=max(1, int(rate))
            )
            job = Job(
                PromptFile(prompts), default_bundle(), f"{name}/out", options, RayExecutor(count)
            )
            started, first = 0.0, 0
            for index, _ in enumerate(job, 1):
                if not started and index >= 0.2 * images:  # all nodes have begun
                    started, first = time.perf_counter(), index
            # The manifest's time belongs to the job.
            found = (images - first) / (time.perf_counter() - started)
        results.append(
            {"nodes": count, "images_per_second": found, "of_perfect": found / count / rate}
        )
        print(results[-1], file=sys.stderr)
    ray.shutdown()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=27.9, help="images a second of a node")
    parser.add_argument("--nodes", type=int, action="append", help="default: 1 to 32, doubling")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each job")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    with redirect_stdout(sys.stderr):  # Ray prints there
        results = measure(args.nodes or [1, 2, 4, 8, 16, 32], args.rate, args.seconds)
    env = environment()
    if args.json:
        print(json.dumps({"environment": env, "rate": args.rate, "simulated": results}, indent=1))
        return
    print(f"{env['cpu']}, {env['cores']} cores; nodes are simulated at {args.rate} images/s\n")
    print("| nodes | images/s | of perfect |\n|---|---|---|")
    for r in results:
        share = r["of_perfect"] * 100
        print(f"| {r['nodes']} | {r['images_per_second']:.0f} | {share:.0f} % |")


if __name__ == "__main__":
    main()

"""A Ray cluster of processes on this machine, with two nodes of one core.

As a command it prints the cluster's address, then does what each line of its input says: `add` a
node, `remove` the oldest one as if it had lost power, `hold` all of the cluster's cores or `free`
them; then it says `done`. It ends with its input.
"""

import os
import subprocess
import sys
from collections import Counter


class Cluster:
    """That command. Ray's threads, and its ways to hang, stay out of the process of the tests."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._answer("address ")

    def _answer(self, start):
        for line in self._process.stdout:
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise RuntimeError("the cluster ended")

    def tell(self, what):
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        self._answer("done")

    def end(self):
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()


def main():
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
    nodes = [cluster.add_node(**node) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    held = []
    print("address", cluster.address, flush=True)  # noqa: T201
    for line in sys.stdin:
        match line.strip():
            case "add":
                nodes.append(cluster.add_node(**node))
            case "remove":
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
            case "hold":
                # One may be put on a node of which it is not known yet that it was lost.
                kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Counter)
                held = [kind.remote() for _ in nodes]
                ray.get([actor.total.remote() for actor in held])
            case "free":
                while held:
                    ray.kill(held.pop())
        print("done", flush=True)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

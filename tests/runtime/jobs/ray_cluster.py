"""A Ray cluster of processes on this machine, with two nodes of one core.

As a command it prints the cluster's address, then does what each line of its input says: `add` a
node, `remove` the oldest one as if it had lost power, and says `done`. It ends with its input.
"""

import os
import subprocess
import sys


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
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print("address", cluster.address, flush=True)  # noqa: T201
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", flush=True)  # noqa: T201
    cluster.shutdown()


if __name__ == "__main__":
    main()

"""A job on a cluster of several nodes, which are processes of this machine."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from left import entries, made, orphans

from runtime import Job, JobOptions, PromptFile


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def prompts(tmp_path) -> PromptFile:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(200)) + "\n" + "x" * 3000)
    return PromptFile(path)


def worker_processes() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if Path(f"/proc/{entry}/cmdline").read_bytes().startswith(b"ray::_Actor"):
                    found.append(int(entry))
            except OSError:
                pass
    return found


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_it_makes_what_this_process_makes(form, cluster, prompts, bundle, tmp_path):
    from runtime.jobs.ray_engine import Ray

    options = JobOptions(form=form, part=20)
    list(Job(prompts, bundle, tmp_path / "here", options))
    job = Job(prompts, bundle, f"file://{tmp_path}/there", options, Ray())
    assert len(list(job)) == 201
    assert (job.progress.done, job.progress.failed, job.progress.left) == (200, 1, 0)
    assert made(tmp_path / "there") == made(tmp_path / "here")


def test_what_a_lost_worker_was_at_is_done_by_another(cluster, prompts, bundle, tmp_path):
    from runtime.jobs.ray_engine import Ray

    list(Job(prompts, bundle, tmp_path / "here", JobOptions(part=5)))
    killed = []

    def kill():
        while len(killed) < 2:
            if victims := [pid for pid in worker_processes() if pid not in killed]:
                time.sleep(0.3)
                os.kill(victims[0], signal.SIGKILL)
                killed.append(victims[0])
            time.sleep(0.5)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    list(Job(prompts, bundle, tmp_path / "there", JobOptions(part=5), Ray()))
    assert len(killed) >= 1
    assert len(entries(tmp_path / "there")) == 201
    assert made(tmp_path / "there") == made(tmp_path / "here")
    assert not orphans(tmp_path / "there")


def test_a_lost_node_is_done_without(cluster, prompts, bundle, tmp_path):
    from runtime.jobs.ray_engine import Ray

    nodes, (first, _) = cluster
    list(Job(prompts, bundle, tmp_path / "here", JobOptions(part=5)))
    for count, _ in enumerate(Job(prompts, bundle, tmp_path / "there", JobOptions(part=5), Ray())):
        if count == 20:
            nodes.remove_node(first, allow_graceful=False)
    assert made(tmp_path / "there") == made(tmp_path / "here")

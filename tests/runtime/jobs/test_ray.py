"""A job on a cluster of several nodes, which are processes of this machine."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from left import PATIENCE, entries, made, orphans, wait_until, wait_until_written
from ray_cluster import Cluster

from runtime import Job, JobOptions, PromptFile
from runtime.bundle import read_manifest
from runtime.jobs.ray import store_bundle

RECORDED = Path(__file__).parent / "recorded"
MODEL_HASH = read_manifest(RECORDED / "bundle").model_hash

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    cluster = Cluster()
    yield cluster
    cluster.end()


@pytest.fixture
def prompts(tmp_path) -> Path:
    """200, and one that is too long."""
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(200)) + "\n" + "x" * 3000)
    return path


@pytest.fixture
def whole(prompts, bundle, tmp_path) -> Path:
    """What this process makes of them."""
    list(Job(PromptFile(prompts), bundle, tmp_path / "here", JobOptions(shard_size=5)))
    return tmp_path / "here"


@pytest.fixture
def start(cluster, prompts, bundle):
    """Starts a job on the cluster as users do."""
    jobs = []

    def start(out, *more) -> subprocess.Popen:
        command = [sys.executable, "-m", "galip_edge", "batch", prompts, "--out", out, "--json"]
        command += ["--model", bundle, "--executor", "ray", "--address", cluster.address]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        jobs.append(subprocess.Popen([*map(str, command), *map(str, more)], text=True, **pipes))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.wait()


def result(job: subprocess.Popen) -> dict:
    """What a job told at its end: it has one row that failed, which is told as well."""
    told, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1, error
    assert "1 of 201 images failed" in error
    return json.loads(told)


def worker_processes() -> list[int]:
    """Oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                    found.append((entry.stat().st_ctime, int(entry.name)))
            except OSError:
                pass
    return [number for _, number in sorted(found)]


@pytest.mark.parametrize("output_format", ["folder", "tar"])
def test_it_makes_what_this_process_makes(output_format, start, prompts, bundle, tmp_path):
    list(
        Job(
            PromptFile(prompts),
            bundle,
            tmp_path / "here",
            JobOptions(output_format=output_format, shard_size=20),
        )
    )
    told = result(
        start(f"file://{tmp_path}/there", "--output-format", output_format, "--shard-size", 20)
    )
    assert (told["done"], told["failed"], told["left"]) == (200, 1, 0)
    assert made(tmp_path / "there") == made(tmp_path / "here")


def test_workers_for_which_there_is_no_room_are_not_waited_for(start, whole, tmp_path):
    result(start(tmp_path / "there", "--workers", 3, "--shard-size", 5))
    assert made(tmp_path / "there") == made(whole)


def test_what_lost_workers_were_at_is_done_by_others(start, whole, tmp_path):
    out = tmp_path / "there"
    job = start(out, "--shard-size", 5)
    for count in (10, 40, 70):
        wait_until_written(count, out)
        os.kill(worker_processes()[0], signal.SIGKILL)
    told = result(job)
    assert (told["left"], told["all_failed"]) == (0, 1)
    assert len(entries(out)) == 201
    assert made(out) == made(whole)
    assert not orphans(out)


def test_a_lost_node_is_done_without(cluster, start, whole, tmp_path):
    out = tmp_path / "there"
    job = start(out, "--shard-size", 5)
    wait_until_written(20, out)
    cluster.tell("remove")
    result(job)
    assert made(out) == made(whole)
    cluster.tell("add")


def test_a_cluster_of_no_nodes_is_waited_for(cluster, start, whole, tmp_path):
    out = tmp_path / "there"
    job = start(out, "--shard-size", 5)
    wait_until_written(20, out)
    for _ in range(2):
        cluster.tell("remove")
    for _ in range(2):
        cluster.tell("add")
    result(job)
    assert made(out) == made(whole)


@pytest.fixture
def held_cluster(cluster):
    """Others have all of its cores."""
    cluster.tell("hold")
    yield cluster
    cluster.tell("free")


def test_a_signal_ends_a_job_that_waits_for_room(held_cluster, start, tmp_path):
    job = start(tmp_path / "out")
    folder = tmp_path / "out" / ".job"
    wait_until(lambda: (folder / "job.json").exists() and reads_tables(job.pid, folder))
    job.send_signal(signal.SIGINT)
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 130, error
    assert "201 of 201 images left" in error


def reads_tables(process, folder):
    """Whether a process has a job's tables of rows open, as it does while it runs."""
    for number in Path(f"/proc/{process}/fd").iterdir():
        try:
            if number.readlink().is_relative_to(folder / "rows"):
                return True
        except FileNotFoundError:  # closed meanwhile
            continue
    return False


def test_no_room_for_long_is_told(held_cluster, prompts, bundle, tmp_path):
    script = f"""
from pathlib import Path
from runtime import Job, JobError, PromptFile
from runtime.jobs.ray import RayExecutor
prompts, bundle, out = {[str(prompts), str(bundle), str(tmp_path / "out")]}
executor = RayExecutor(address={held_cluster.address!r}, patience=2)
try:
    list(Job(PromptFile(Path(prompts)), bundle, out, None, executor))
except JobError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "no node with 1 free cores for 2 seconds: add nodes" in told.stdout, told.stderr


@pytest.fixture
def sent() -> dict[str, bytes]:
    """A small bundle as a leader sends it to nodes."""
    return {file.name: file.read_bytes() for file in (RECORDED / "bundle").iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_nodes_copy_of_the_bundle_is_private_and_repaired(sent, cache):
    before = os.umask(0o002)  # groups of users share their files
    try:
        with ExitStack() as stack:
            folder = store_bundle(sent, MODEL_HASH, stack)
    finally:
        os.umask(before)
    assert folder.parent == cache / "bundles"
    for private in (cache, folder.parent, folder):
        assert private.stat().st_mode & 0o777 == 0o700
    inode = folder.stat().st_ino
    with ExitStack() as stack:
        assert store_bundle(sent, MODEL_HASH, stack).stat().st_ino == inode
        (folder / "generator.bin").write_bytes(b"forged")
        assert store_bundle(sent, MODEL_HASH, stack) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == sent


def test_a_cache_that_others_can_write_gets_no_bundle(sent, cache, caplog):
    (cache / "bundles").mkdir(parents=True)
    (cache / "bundles").chmod(0o777)
    with ExitStack() as stack:
        folder = store_bundle(sent, MODEL_HASH, stack)
        assert not folder.is_relative_to(cache)
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert {file.name for file in folder.iterdir()} == set(sent)
    assert not folder.exists()
    assert "other users may write to it" in caplog.text

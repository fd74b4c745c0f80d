"""Jobs at a URL, and what a storage must do wherever it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from left import made
from plain_model import PlainPipeline

from runtime import Job, JobError, JobOptions, PromptFile
from runtime.jobs import locks
from runtime.jobs import storage as storage_module
from runtime.jobs.storage import LocalStorage, RemoteStorage, open_storage

pytestmark = pytest.mark.slow


@pytest.fixture(params=["local", "file", "memory"])
def storage(request, tmp_path):
    urls = {"file": f"file://{tmp_path}/storage", "memory": f"memory://{tmp_path.name}"}
    return open_storage(urls.get(request.param, tmp_path / "storage"))


def test_files_are_whole_or_not_there(storage):
    assert storage.read("a/b") is None
    assert storage.sizes("a") == {}
    with storage.new("a/b") as path:
        path.write_bytes(b"one")
    with storage.new("a/c") as path:
        path.write_bytes(b"three")
    with pytest.raises(RuntimeError), storage.new("a/d") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert (storage.read("a/b"), storage.read("a/d")) == (b"one", None)
    assert storage.names("a") == ["a/b", "a/c"]
    assert storage.sizes("a") == {"a/b": 3, "a/c": 5}
    with storage.new("a/b") as path:
        path.write_bytes(b"again")
    assert storage.read("a/b") == b"again"
    for name in ("a/b", "a/c", "a/none"):
        storage.remove(name)
    assert storage.names("a") == []
    with storage.lock():
        pass


def test_a_lock_outlives_the_removal_of_its_empty_folder(tmp_path, monkeypatch):
    """The last worker of another run removes it just before this one opens its file."""
    real, removed = locks.try_lock, []

    def try_lock(file):
        if not removed:
            removed.append(file.parent)
            file.parent.rmdir()
        return real(file)

    monkeypatch.setattr(locks, "try_lock", try_lock)
    with LocalStorage(tmp_path).join():
        assert len(list(removed[0].iterdir())) == 1


def test_a_lock_outlives_a_removal_while_its_folder_is_created(tmp_path, monkeypatch):
    """`Path.mkdir` with `exist_ok` fails if the folder that exists is gone at its second look."""
    storage = LocalStorage(tmp_path)
    with storage.join():
        pass
    real, removed = Path.is_dir, []

    def is_dir(path):
        if path.name == "running" and not removed:
            removed.append(path)
            path.rmdir()
        return real(path)

    (tmp_path / ".job" / "running").mkdir()
    monkeypatch.setattr(Path, "is_dir", is_dir)
    with storage.join():
        assert len(removed) == 1


def test_a_file_in_place_of_the_locks_folder_is_named(tmp_path):
    (tmp_path / ".job").mkdir()
    (tmp_path / ".job" / "running").touch()
    with pytest.raises(JobError, match=r"running.*File exists"), LocalStorage(tmp_path).join():
        pass


def test_a_shard_is_written_by_one_process_at_a_time(tmp_path, monkeypatch):
    """One that a cluster lost sight of may still be at it."""
    monkeypatch.setattr(storage_module, "_LOST_SECONDS", 0.2)
    storage = LocalStorage(tmp_path)
    script = f"""
import sys
from pathlib import Path
from runtime.jobs.storage import LocalStorage
with LocalStorage(Path({str(tmp_path)!r})).lock_shard(3):
    print("held", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as lost:
        assert lost.stdout.readline() == b"held\n"
        with storage.lock_shard(2), storage.lock_shard(4):
            pass
        with (
            pytest.raises(JobError, match="a lost worker is still writing shard 3"),
            storage.lock_shard(3),
        ):
            pass
        lost.kill()
        lost.wait()
        with storage.lock_shard(3):
            pass


def test_kinds(tmp_path):
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage("memory://x"), RemoteStorage)
    with pytest.raises(JobError, match="nowhere://x needs fsspec and its package for nowhere"):
        open_storage("nowhere://x")


@pytest.mark.parametrize("output_format", ["folder", "tar", "parquet"])
def test_a_job_at_a_url_is_the_same_and_goes_on(
    output_format, bundle, tmp_path, plain_model, monkeypatch
):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(45)) + "\n" + "x" * 3000)
    prompts, options = PromptFile(path), JobOptions(output_format=output_format, shard_size=10)
    list(Job(prompts, bundle, tmp_path / "here", options))
    url = f"file://{tmp_path}/there"
    job = Job(prompts, bundle, url, options)
    for count, _ in enumerate(job):
        if count == 25:
            job.stop()
    assert job.progress.left > 0
    again = Job(prompts, bundle, url, options)
    list(again)
    assert (again.progress.left, again.progress.failed) == (0, 1)
    assert again.progress.kept >= 20
    assert made(tmp_path / "there") == made(tmp_path / "here")
    file = next(name for name in sorted(made(tmp_path / "there")) if name[0] == "0")
    (tmp_path / "there" / file).unlink()
    encode, asked = PlainPipeline.encode, []
    monkeypatch.setattr(
        PlainPipeline, "encode", lambda self, ps: asked.extend(ps) or encode(self, ps)
    )
    list(Job(prompts, bundle, url, options))
    assert asked == [f"bird {i}" for i in range(10)]  # its shard
    assert made(tmp_path / "there") == made(tmp_path / "here")
    with pytest.raises(JobError, match="holds a job with another shard size"):
        Job(prompts, bundle, url, JobOptions(output_format=output_format, shard_size=11))
    list(
        Job(
            prompts, bundle, url, JobOptions(output_format=output_format, shard_size=11, force=True)
        )
    )
    list(
        Job(
            prompts,
            bundle,
            tmp_path / "here",
            JobOptions(output_format=output_format, shard_size=11, force=True),
        )
    )
    assert made(tmp_path / "there") == made(tmp_path / "here")

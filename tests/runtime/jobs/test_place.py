"""Jobs at a URL, and what a place must do wherever it is."""

import subprocess
import sys

import pytest
from left import made
from plain_model import PlainPipeline

from runtime import Job, JobError, JobOptions, PromptFile
from runtime.jobs import lock
from runtime.jobs.place import LocalPlace, RemotePlace, place_of


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path):
    urls = {"file": f"file://{tmp_path}/place", "memory": f"memory://{tmp_path.name}"}
    return place_of(urls.get(request.param, tmp_path / "place"))


def test_files_are_whole_or_not_there(place):
    assert place.read("a/b") is None
    assert place.sizes("a") == {}
    with place.new("a/b") as path:
        path.write_bytes(b"one")
    with place.new("a/c") as path:
        path.write_bytes(b"three")
    with pytest.raises(RuntimeError), place.new("a/d") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert (place.read("a/b"), place.read("a/d")) == (b"one", None)
    assert place.names("a") == ["a/b", "a/c"]
    assert place.sizes("a") == {"a/b": 3, "a/c": 5}
    with place.new("a/b") as path:
        path.write_bytes(b"again")
    assert place.read("a/b") == b"again"
    for name in ("a/b", "a/c", "a/none"):
        place.remove(name)
    assert place.names("a") == []
    with place.lock():
        pass


def test_a_part_is_made_by_one_process_at_a_time(tmp_path, monkeypatch):
    """One that a cluster lost sight of may still be at it."""
    monkeypatch.setattr(lock, "_LOST_SECONDS", 0.2)
    place = LocalPlace(tmp_path)
    script = f"""
import sys
from pathlib import Path
from runtime.jobs.place import LocalPlace
with LocalPlace(Path({str(tmp_path)!r})).hold(3):
    print("held", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as lost:
        assert lost.stdout.readline() == b"held\n"
        with place.hold(2), place.hold(4):
            pass
        with (
            pytest.raises(JobError, match="a lost worker is still at part 3"),
            place.hold(3),
        ):
            pass
        lost.kill()
        lost.wait()
        with place.hold(3):
            pass


def test_kinds(tmp_path):
    assert isinstance(place_of(tmp_path), LocalPlace)
    assert isinstance(place_of("memory://x"), RemotePlace)
    with pytest.raises(JobError, match="nowhere://x needs fsspec and its package for nowhere"):
        place_of("nowhere://x")


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_a_job_at_a_url_is_the_same_and_goes_on(form, bundle, tmp_path, plain_model, monkeypatch):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(45)) + "\n" + "x" * 3000)
    prompts, options = PromptFile(path), JobOptions(form=form, part=10)
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
    assert asked == [f"bird {i}" for i in range(10)]  # the part that it was in
    assert made(tmp_path / "there") == made(tmp_path / "here")
    with pytest.raises(JobError, match="holds a job with other part size"):
        Job(prompts, bundle, url, JobOptions(form=form, part=11))
    list(Job(prompts, bundle, url, JobOptions(form=form, part=11, force=True)))
    list(Job(prompts, bundle, tmp_path / "here", JobOptions(form=form, part=11, force=True)))
    assert made(tmp_path / "there") == made(tmp_path / "here")

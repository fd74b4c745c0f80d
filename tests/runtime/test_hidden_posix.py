"""The commands where Python has no POSIX modules, as on Windows."""

import ast
import importlib.util
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import hidden_posix
import pytest

import runtime
from runtime import JobError, Pipeline
from runtime.locks import FOLDER_LOCKS, try_lock, try_lock_folder

pytestmark = pytest.mark.slow

PROMPT = "a bird on a branch"


def command(*arguments) -> list[str]:
    return [sys.executable, hidden_posix.__file__, *map(str, arguments)]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run(command(*arguments), **options)


def test_an_image_is_the_same(tmp_path):
    done = run("generate", PROMPT, "--seed", 3, "--out", tmp_path / "image.png")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    wanted = Pipeline.from_bundle().generate(PROMPT, seed=3)[0]
    assert Image.open(tmp_path / "image.png").tobytes() == wanted.tobytes()


def test_verify_and_devices():
    done = run("verify")
    assert done.returncode == 0, done.stderr
    assert "inference   ok" in done.stdout
    assert run("devices", "--json").returncode == 0


def test_two_jobs_exclude_each_other_and_one_resumes(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"bird {i}" for i in range(2000)))
    arguments = ("batch", prompts, "--out", out, "--json", "--output-format", "tar")
    first = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob(".job/open/*")):
            assert first.poll() is None, first.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = run(*arguments)
        assert second.returncode == 1
        (line,) = (line for line in second.stderr.splitlines() if line.startswith("Error: "))
        assert "another process is running the job" in line
    finally:
        first.kill()
        first.communicate()
    # What the killed one left is taken over, and its rows are known.
    prompts.write_text("\n".join(f"bird {i}" for i in range(2000)))
    third = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 240
        before = next(out.glob(".job/parts/*")).stat().st_size
        while next(out.glob(".job/parts/*")).stat().st_size <= before:
            assert third.poll() is None, third.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        third.kill()
        third.communicate()


def test_worker_processes(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"bird {i}" for i in range(6)))
    done = run("batch", prompts, "--out", out, "--workers", 2, "--shard-size", 3, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 6
    assert not list(out.glob(".job/running/*"))


def test_a_server_starts_and_answers(tmp_path):
    import urllib.request

    server = subprocess.Popen(
        command("serve", "--port", 0, "--no-cache"), stderr=subprocess.PIPE, text=True
    )
    try:
        line = server.stderr.readline()
        while "http://" not in line:
            assert line, "the server ended"
            line = server.stderr.readline()
        address = "http://" + line.split("http://")[1].strip()
        with urllib.request.urlopen(f"{address}v1/models", timeout=60) as answer:
            assert answer.status == 200
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("native", [True, False])
def test_locks(native, tmp_path, monkeypatch):
    if not native:
        monkeypatch.setattr("runtime.locks._has_native_locks", lambda: False)
    file, folder = tmp_path / "file", tmp_path / "folder"
    folder.mkdir()
    for take, path in ((try_lock, file), (try_lock_folder, folder)):
        lock = take(path)
        assert lock.held()
        assert take(path) is None
        lock.release()
        again = take(path)
        assert again.held()
        again.release()
        again.release()  # twice does no harm
    assert {p.name for p in folder.iterdir()} <= set(FOLDER_LOCKS)


def test_a_removed_folder_is_not_locked_as_a_file(tmp_path):
    """As by a conversion that ends when the next one begins: the file would stay in its way."""
    with pytest.raises(FileNotFoundError):
        try_lock_folder(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_lock_file_of_an_earlier_version_does_not_lock(tmp_path):
    from runtime.jobs.locks import leader_lock

    for name in ("lock", "workers", "parts.lock"):
        (tmp_path / name).touch()
    with leader_lock(tmp_path, 1.0, "busy") as held:
        assert held()


def test_a_leader_and_workers_of_an_earlier_version_are_noticed(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    from runtime.jobs.locks import leader_lock

    for name, kind in (("lock", fcntl.LOCK_EX), ("workers", fcntl.LOCK_SH)):
        with (tmp_path / name).open("w") as file:
            fcntl.flock(file, kind)
            with pytest.raises(JobError, match="busy"), leader_lock(tmp_path, 0.2, "busy"):
                pass
    with leader_lock(tmp_path, 0.2, "busy"), worker_is_noticed(tmp_path):
        pass


@contextmanager
def worker_is_noticed(state):
    from runtime.jobs.locks import file_lock, leader_lock, worker_lock

    with worker_lock(state):
        (file,) = (state / "running").iterdir()
        with pytest.raises(JobError, match="busy"), file_lock(file, 0.1, "busy"):
            pass
        other = state / "other"
        other.mkdir()
        (other / "running").symlink_to(state / "running")
        with pytest.raises(JobError, match="busy"), leader_lock(other, 0.1, "busy"):
            pass
        yield
    assert not (state / "running").exists()


def test_no_module_imports_posix_modules_at_the_top():
    """Modules that Windows lacks are imported where they are used, and their absence is handled."""
    packages = [
        importlib.util.find_spec(n).submodule_search_locations[0]
        for n in ("runtime", "convert", "galip_edge")
    ]
    assert runtime.__file__
    for file in (path for folder in packages for path in Path(folder).rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & set(hidden_posix.MODULES), file
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in hidden_posix.MODULES, file

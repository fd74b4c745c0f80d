"""Jobs on an object store: a server of S3's protocol, with s3fs as its users have it."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
import s3fs
from kills import start
from left import made, wait_until
from object_store import EXPIRED, SLOW_DOWN, ObjectStore

from runtime import Job, JobError, JobOptions, PromptFile
from runtime.jobs import storage
from runtime.jobs.storage import RemoteStorage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    store = ObjectStore()
    yield store
    store.end()


@pytest.fixture
def store(server, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "_RENEWAL", 0.2)
    monkeypatch.setattr(storage, "_EXPIRY", 2.0)
    monkeypatch.setattr(storage, "_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    server.fail = lambda number: None
    server.client.create_bucket(Bucket="bucket")
    yield server
    server.fail = lambda number: None
    names = [{"Key": each["Key"]} for each in objects(server)]
    for first in range(0, len(names), 1000):
        some = {"Objects": names[first : first + 1000]}
        server.client.delete_objects(Bucket="bucket", Delete=some)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": f"bird {i}", "n": 2} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def objects(store, prefix="") -> list[dict]:
    pages = store.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return [each for page in pages for each in page.get("Contents", [])]


def downloaded(store, folder):
    for each in objects(store, "out/"):
        path = folder / each["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.client.get_object(Bucket="bucket", Key=each["Key"])["Body"].read())
    return folder / "out"


def run(prompts, bundle, out, output_format="folder", **options):
    job = Job(
        PromptFile(prompts),
        bundle,
        out,
        JobOptions(output_format=output_format, shard_size=20, **options),
    )
    for _ in job:
        pass
    assert job.progress.left == 0
    return job


def wait_until_stored(count, store, process) -> None:
    journals = "out/.job/parts/"
    wait_until(lambda: len(objects(store, journals)) >= count or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize(("output_format", "workers"), [("folder", 2), ("tar", 1), ("parquet", 1)])
def test_a_killed_job_ends_as_if_it_had_not_been(
    output_format, workers, store, prompts, bundle, tmp_path, plain_model
):
    run(prompts, bundle, tmp_path / "out", output_format)
    whole = made(tmp_path / "out")
    for count in (1, 3):
        process = start(
            prompts, bundle, "s3://bucket/out", output_format, workers, 15, shard_size=20
        )
        wait_until_stored(count, store, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    job = run(prompts, bundle, "s3://bucket/out", output_format)
    assert 40 <= job.progress.kept < 100
    assert made(downloaded(store, tmp_path / "got")) == whole
    with prompts.open("a") as file:
        file.write('{"prompt": "one more"}\n')
    assert run(prompts, bundle, "s3://bucket/out", output_format).progress.done == 1
    run(prompts, bundle, tmp_path / "out", output_format)
    assert made(downloaded(store, tmp_path / "more")) == made(tmp_path / "out")


def test_damage_is_found_and_repaired(store, prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, "s3://bucket/out")
    whole = made(downloaded(store, tmp_path / "before"))
    name = next(each for each in whole if each.startswith("00000001/"))
    data = bytearray(whole[name])
    data[100] ^= 1
    store.client.put_object(Bucket="bucket", Key=f"out/{name}", Body=bytes(data))
    assert run(prompts, bundle, "s3://bucket/out").progress.lost == 0
    assert run(prompts, bundle, "s3://bucket/out", verify=True).progress.lost == 1
    assert made(downloaded(store, tmp_path / "after")) == whole


def test_a_store_that_is_busy_now_and_then(store, prompts, bundle, tmp_path, plain_model):
    store.fail = lambda number: SLOW_DOWN if number % 3 == 0 else None
    run(prompts, bundle, "s3://bucket/out")
    store.fail = lambda number: None
    run(prompts, bundle, tmp_path / "out")
    assert made(downloaded(store, tmp_path / "got")) == made(tmp_path / "out")


def test_a_store_that_stays_busy_is_one_sentence(
    store, prompts, bundle, tmp_path, plain_model, monkeypatch
):
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    job = Job(PromptFile(prompts), bundle, "s3://bucket/out", JobOptions(shard_size=20))
    with pytest.raises(JobError, match=r"unreachable in 2 attempts .* rerun the same command"):
        for count, _ in enumerate(job):
            if count == 25:
                store.fail = lambda number: SLOW_DOWN
    store.fail = lambda number: None
    run(prompts, bundle, "s3://bucket/out")
    run(prompts, bundle, tmp_path / "out")
    assert made(downloaded(store, tmp_path / "got")) == made(tmp_path / "out")


def test_expired_credentials_are_one_sentence(store, prompts, bundle, tmp_path, plain_model):
    job = Job(PromptFile(prompts), bundle, "s3://bucket/out", JobOptions(shard_size=20))
    with pytest.raises(JobError, match=r"credentials expired .*renew them; rerun the same command"):
        for count, _ in enumerate(job):
            if count == 25:
                store.fail = lambda number: EXPIRED
    with pytest.raises(JobError, match=r"credentials expired .*renew them"):
        Job(PromptFile(prompts), bundle, "s3://bucket/out", JobOptions(shard_size=20))
    store.fail = lambda number: None
    assert run(prompts, bundle, "s3://bucket/out").progress.kept >= 20
    run(prompts, bundle, tmp_path / "out")
    assert made(downloaded(store, tmp_path / "got")) == made(tmp_path / "out")


def test_a_second_leader_is_refused(store, prompts, bundle, tmp_path, plain_model):
    first = iter(Job(PromptFile(prompts), bundle, "s3://bucket/out", JobOptions(shard_size=20)))
    next(first)
    other = tmp_path / "other.txt"
    other.write_text("a duck\n")
    for path in (prompts, other):
        with pytest.raises(JobError, match="another process is running the job in s3://bucket/out"):
            Job(PromptFile(path), bundle, "s3://bucket/out", JobOptions(shard_size=20))
    assert len(list(first)) == 99
    with pytest.raises(JobError, match="changed since|has 1 rows"):
        Job(PromptFile(other), bundle, "s3://bucket/out", JobOptions(shard_size=20))


def test_the_lease_of_a_killed_leader_is_taken_over(store, prompts, bundle, plain_model):
    body = b"some-host 1 0123 7"
    store.client.put_object(Bucket="bucket", Key="out/.job/lease", Body=body)
    run(prompts, bundle, "s3://bucket/out")
    assert not objects(store, "out/.job/lease")


def test_who_lost_the_lease_stops(store, prompts, bundle, plain_model, monkeypatch):
    leases, lock = [], RemoteStorage.lock

    @contextmanager
    def remembered(self):
        with lock(self) as held:
            leases.append(held)
            yield held

    monkeypatch.setattr(RemoteStorage, "lock", remembered)

    def is_taken_over() -> bool:  # repeated, because a renewal may be under way
        body = b"another-host 1 0123 1"
        store.client.put_object(Bucket="bucket", Key="out/.job/lease", Body=body)
        return not leases[-1]()

    job = Job(PromptFile(prompts), bundle, "s3://bucket/out", JobOptions(shard_size=5))
    with pytest.raises(JobError, match="another process took over the job in s3://bucket/out"):
        for count, _ in enumerate(job):
            if count == 5:
                wait_until(is_taken_over)
    assert objects(store, "out/.job/lease")  # it belongs to the other one


def test_many_small_files_are_listed_in_pages(store):
    store.put_small_files("out/00000000", 10_000)
    before = len(store.lists())
    found = RemoteStorage("s3://bucket/out").sizes("00000000")
    assert len(found) == 10_000
    assert found["00000000/00009999.png"] == 9999 % 7
    assert len(store.lists()) - before >= 10

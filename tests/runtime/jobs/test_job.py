"""Jobs in this process: results, resuming, and refusals."""

import io
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from left import MANIFEST, entries, made, orphans
from PIL import Image
from plain_model import PlainPipeline

from runtime import Job, JobError, JobOptions, Pipeline, PipelineOptions, PromptFile
from runtime.bundle import Manifest
from runtime.errors import GalipEdgeError
from runtime.images import ImageFormat, read_metadata
from runtime.jobs import writers
from runtime.jobs.state import STATE_FILE, State
from runtime.jobs.writers import OUTPUT_FORMATS


@pytest.fixture
def prompts(tmp_path) -> PromptFile:
    """23 rows, 44 items: some of many images, two that cannot be made."""
    path = tmp_path / "prompts.csv"
    lines = [f"bird-{i},bird number {i},{i % 3 + 1},{i * 5},{i % 2}" for i in range(22)]
    lines[7] = "bird-7, ,3,1,0"
    lines[9] = "bird-3,a bird,1,1,0"
    path.write_text("id,prompt,n,seed,kind\n" + "\n".join(lines) + "\nlast,the last,2,1,x\n")
    return PromptFile(path, keep_columns=("kind",))


def run(prompts, bundle, out, **options) -> Job:
    job = Job(prompts, bundle, out, JobOptions(**{"shard_size": 10, **options}))
    for _ in job:
        pass
    return job


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_every_item_is_in_the_manifest(output_format, prompts, bundle, tmp_path, plain_model):
    job = run(prompts, bundle, tmp_path / "out", output_format=output_format)
    found = entries(tmp_path / "out")
    expected = [(r.number, i) for r in prompts.rows() for i in range(r.count)]
    assert [(e["row"], e["index"]) for e in found] == expected
    assert (job.progress.done, job.progress.failed, job.progress.left) == (len(found) - 2, 2, 0)
    failed = {e["row"]: e["error"] for e in found if e["status"] == "failed"}
    assert "the prompt is empty" in failed[7]
    assert "duplicate id 'bird-3' (first used in row 3)" in failed[9]
    assert {e["model"] for e in found} == {job.model.model_hash}
    assert [e["kind"] for e in found if e["row"] == 5] == ["1"] * 3
    table = pq.read_table(tmp_path / "out" / "__manifest__" / "manifest.parquet").to_pylist()
    assert table == found
    assert not orphans(tmp_path / "out")


def test_files_are_what_the_manifest_says(prompts, bundle, tmp_path, plain_model):
    import hashlib

    run(prompts, bundle, tmp_path / "out")
    done = [e for e in entries(tmp_path / "out") if e["status"] == "done"]
    for entry in done:
        data = (tmp_path / "out" / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        recipe = read_metadata(tmp_path / "out" / entry["file"])
        assert (recipe.prompt, recipe.seed, recipe.index) == (
            entry["prompt"],
            entry["seed"],
            entry["index"],
        )
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("0*/*")}
    assert files == {e["file"] for e in done}


def test_shards_are_read_by_webdataset(prompts, bundle, tmp_path, plain_model):
    import webdataset

    run(prompts, bundle, tmp_path / "out", output_format="tar", image_format=ImageFormat("webp"))
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(shards) == 5
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    done = [e for e in entries(tmp_path / "out") if e["status"] == "done"]
    assert [s["__key__"] for s in samples] == [e["key"] for e in done]
    assert [s["txt"] for s in samples] == [e["prompt"] for e in done]
    assert all(s["webp"].shape == (8, 8, 3) for s in samples)
    assert [(s["json"]["seed"], s["json"]["kind"]) for s in samples] == [
        (e["seed"], e["kind"]) for e in done
    ]
    for shard in shards:
        with tarfile.open(shard) as archive:
            assert archive.getnames()


def test_parquet_shards_hold_images(prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, tmp_path / "out", output_format="parquet")
    shards = sorted((tmp_path / "out").glob("0*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    done = [e for e in entries(tmp_path / "out") if e["status"] == "done"]
    assert [row["prompt"] for row in rows] == [e["prompt"] for e in done]
    picture = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    assert (picture.size, rows[0]["image"]["path"]) == ((8, 8), f"{done[0]['key']}.png")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("after", [0, 1, 9, 10, 11, 25, 43])
def test_a_stopped_job_goes_on(output_format, after, prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, tmp_path / "whole", output_format=output_format)
    job = Job(
        prompts, bundle, tmp_path / "out", JobOptions(output_format=output_format, shard_size=10)
    )
    seen = []
    if after == 0:
        job.stop()
    for entry in job:
        seen.append(entry)
        if len(seen) == after:
            job.stop()
    assert (tmp_path / "out" / MANIFEST).exists()
    again = Job(
        prompts, bundle, tmp_path / "out", JobOptions(output_format=output_format, shard_size=10)
    )
    rest = list(again)
    if output_format != "parquet":  # whose shards are made whole
        assert len(seen) + len(rest) == 44
    assert again.progress.left == 0
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert not orphans(tmp_path / "out")
    assert list(again) == []  # nothing is left


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_what_is_gone_is_made_again_and_nothing_else(
    output_format, prompts, bundle, tmp_path, plain_model
):
    run(prompts, bundle, tmp_path / "out", output_format=output_format)
    before = made(tmp_path / "out")
    file = next(name for name in sorted(before, reverse=True) if name[0] == "0")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    (tmp_path / "out" / file).unlink()
    (tmp_path / "out" / MANIFEST).write_bytes(before[MANIFEST][:200])
    run(prompts, bundle, tmp_path / "out", output_format=output_format)
    assert made(tmp_path / "out") == before
    for name, time in times.items():
        if name[0] == "0" and name != file:
            assert (tmp_path / "out" / name).stat().st_mtime_ns == time


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_a_record_cut_short_costs_only_work(
    output_format, share, prompts, bundle, tmp_path, plain_model
):
    run(prompts, bundle, tmp_path / "out", output_format=output_format)
    before = made(tmp_path / "out")
    for journal in (tmp_path / "out" / ".job" / "parts").iterdir():
        data = journal.read_bytes()
        journal.write_bytes(data[: int(share * len(data))])
    run(prompts, bundle, tmp_path / "out", output_format=output_format)
    assert made(tmp_path / "out") == before
    assert not orphans(tmp_path / "out")


@pytest.mark.parametrize("output_format", ["folder", "tar"])
def test_killed_before_the_record_says_that_a_part_is_whole(
    output_format, prompts, bundle, tmp_path, plain_model
):
    run(prompts, bundle, tmp_path / "out", output_format=output_format)
    before = made(tmp_path / "out")
    for journal in (tmp_path / "out" / ".job" / "parts").iterdir():
        *images, shards = journal.read_bytes().splitlines(keepends=True)
        assert b"shards" in shards
        journal.write_bytes(b"".join(images))
    (tmp_path / "out" / MANIFEST).unlink()
    again = run(prompts, bundle, tmp_path / "out", output_format=output_format)
    assert again.progress.done == 0  # nothing is made twice
    assert made(tmp_path / "out") == before
    assert not orphans(tmp_path / "out")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_one_that_fails_stops_nothing_and_can_be_tried_again(
    output_format, bundle, tmp_path, plain_model, monkeypatch
):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"{'crash' if i in (3, 4, 17) else 'bird'} {i}" for i in range(25)))
    job = run(PromptFile(path), bundle, tmp_path / "out", output_format=output_format)
    assert (job.progress.done, job.progress.failed) == (22, 3)
    failed = [e for e in entries(tmp_path / "out") if e["status"] == "failed"]
    assert [(e["row"], e["error"]) for e in failed] == [
        (row, "RuntimeError: a kernel gave up") for row in (3, 4, 17)
    ]
    before = made(tmp_path / "out")
    assert (
        run(PromptFile(path), bundle, tmp_path / "out", output_format=output_format).progress.kept
        == 25
    )
    encode = PlainPipeline.encode
    monkeypatch.setattr(
        PlainPipeline,
        "encode",
        lambda self, ps: encode(self, [p.replace("crash", "x") for p in ps]),
    )
    again = run(
        PromptFile(path), bundle, tmp_path / "out", output_format=output_format, retry_failed=True
    )
    assert (again.progress.done, again.progress.kept) == (3, 22)
    after = made(tmp_path / "out")
    assert {e["status"] for e in entries(tmp_path / "out")} == {"done"}
    assert all(after[name] == data for name, data in before.items() if name[0] == "0")
    # Killed after the last image of a repeated shard was recorded, before its file was finished.
    for file in (tmp_path / "out").glob("*-retry1.tar"):
        number, first = file.name[:8], file.with_name(f"{file.name[:8]}.tar")
        journal = tmp_path / "out" / ".job" / "parts" / f"{number}.jsonl"
        *lines, _ = journal.read_text().splitlines(keepends=True)
        earlier = json.dumps({"shards": {first.name: first.stat().st_size}}) + "\n"
        lines.sort(key=lambda line: file.name in line)
        place = sum(file.name not in line for line in lines)
        journal.write_text("".join([*lines[:place], earlier, *lines[place:]]))
        file.rename(tmp_path / "out" / ".job" / "open" / file.name)
    assert (
        run(PromptFile(path), bundle, tmp_path / "out", output_format=output_format).progress.kept
        == 25
    )
    assert made(tmp_path / "out") == after


def test_too_many_failures_end_it(bundle, tmp_path, plain_model):
    path = tmp_path / "p.txt"
    path.write_text("\n".join("crash" if i % 2 else "bird" for i in range(100)))
    with pytest.raises(JobError, match="failed, more than --max-errors allows"):
        run(PromptFile(path), bundle, tmp_path / "out", max_errors=4)
    assert 10 <= len(entries(tmp_path / "out")) < 50
    job = run(PromptFile(path), bundle, tmp_path / "out")
    assert job.progress.left == 0


class PlainSigner:
    def sign(self, content, _):
        return content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_format": ImageFormat(signer=PlainSigner())}, "choice of signing images"),
        ({"shard_size": 11}, "shard size"),
        ({"output_format": "tar"}, "output format"),
        ({"image_format": ImageFormat("jpeg")}, "image format"),
        ({"pipeline": PipelineOptions(precision="f32")}, "precision"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(
    change, named, prompts, bundle, tmp_path, plain_model
):
    run(prompts, bundle, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("the user's")
    with pytest.raises(JobError, match=f"holds a job with another {named}: .* --force"):
        run(prompts, bundle, tmp_path / "out", **change)
    run(prompts, bundle, tmp_path / "out", force=True, **change)
    run(prompts, bundle, tmp_path / "other", **change)
    assert (tmp_path / "out" / "notes.txt").read_text() == "the user's"
    (tmp_path / "out" / "notes.txt").unlink()
    assert made(tmp_path / "out") == made(tmp_path / "other")


def test_a_job_recorded_before_precision_was_continues(prompts, bundle, tmp_path, plain_model):
    whole = run(prompts, bundle, tmp_path / "out").progress
    path = tmp_path / "out" / STATE_FILE
    state = State.from_bytes(path.read_bytes())
    assert state.facts.pop("precision") == "auto"
    path.write_bytes(state.to_bytes())
    assert run(prompts, bundle, tmp_path / "out").progress.kept == whole.items
    path.write_bytes(state.to_bytes())
    with pytest.raises(JobError, match="holds a job with another precision"):
        run(prompts, bundle, tmp_path / "out", pipeline=PipelineOptions(precision="bf16"))


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "00000000/../../x.png"])
def test_force_removes_nothing_outside(name, prompts, bundle, tmp_path, plain_model):
    """Whatever the record says that came with a folder from elsewhere."""
    run(prompts, bundle, tmp_path / "out")
    outside = [tmp_path / "outside.png", tmp_path / "x.png"]
    for path in outside:
        path.write_text("the user's")
    journal = tmp_path / "out" / ".job" / "parts" / "00000000.jsonl"
    first, *rest = journal.read_text().splitlines()
    entry = json.loads(first) | {"file": name}
    journal.write_text("\n".join([*rest[:-1], json.dumps(entry), rest[-1]]) + "\n")
    run(prompts, bundle, tmp_path / "out", force=True, shard_size=11)
    assert all(path.exists() for path in outside)


def test_another_model_is_noticed(prompts, bundle, tmp_path, plain_model, monkeypatch):
    run(prompts, bundle, tmp_path / "out")
    monkeypatch.setattr(Manifest, "model_hash", "0" * 64)
    with pytest.raises(JobError, match="holds a job with another model"):
        run(prompts, bundle, tmp_path / "out")


@pytest.mark.parametrize("content", ["", "\n\n", "prompt\n"])
def test_no_prompts_are_one_sentence(content, bundle, tmp_path):
    path = tmp_path / ("p.csv" if "prompt" in content else "p.txt")
    path.write_text(content)
    with pytest.raises(JobError, match="has no prompts"):
        Job(PromptFile(path), bundle, tmp_path / "out")


def test_a_damaged_state_is_one_sentence(prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, tmp_path / "out")
    (tmp_path / "out" / ".job" / "job.json").write_text('{"version":')
    with pytest.raises(JobError, match="job.json in .* is damaged"):
        run(prompts, bundle, tmp_path / "out")
    run(prompts, bundle, tmp_path / "out", force=True)


def test_two_processes_do_not_work_on_one_job(prompts, bundle, tmp_path, plain_model):
    job = Job(prompts, bundle, tmp_path / "out")
    first = iter(job)
    next(first)
    with pytest.raises(JobError, match="another process is running the job"):
        next(iter(Job(prompts, bundle, tmp_path / "out")))
    first.close()
    assert list(Job(prompts, bundle, tmp_path / "out"))


def test_what_lost_workers_left_half_written_is_removed(prompts, bundle, tmp_path, plain_model):
    out, options = tmp_path / "out", JobOptions(shard_size=4)
    job = Job(prompts, bundle, out, options)
    for count, _ in enumerate(job):
        if count == 6:
            records = out / ".job" / "parts"
            shutil.copy(records / "00000000.jsonl", records / ".00000000.jsonl.1-1.tmp")
            (out / ".00000000.parquet.1-1.tmp").write_text("half")
    assert len(entries(out)) == job.progress.items  # none is in the manifest twice
    assert not orphans(out)


def test_a_write_that_fails_ends_it_and_loses_nothing(
    prompts, bundle, tmp_path, plain_model, monkeypatch
):
    run(prompts, bundle, tmp_path / "whole")
    write_whole, count = writers.write_whole, 0

    def full(path, data):
        nonlocal count
        count += 1
        if count > 20:
            raise JobError(f"cannot write {path}: No space left on device")
        write_whole(path, data)

    monkeypatch.setattr(writers, "write_whole", full)
    with pytest.raises(JobError, match="left on device; rerun the same command to resume"):
        run(prompts, bundle, tmp_path / "out")
    monkeypatch.setattr(writers, "write_whole", write_whole)
    job = run(prompts, bundle, tmp_path / "out")
    assert job.progress.kept >= 10
    assert made(tmp_path / "out") == made(tmp_path / "whole")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_full_disk_ends_it_and_loses_nothing(output_format, bundle, tmp_path, plain_model):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(600)))
    run(PromptFile(path), bundle, tmp_path / "whole", output_format=output_format, shard_size=50)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(JobError, match="No space left on device"):
            run(PromptFile(path), bundle, disk / "out", output_format=output_format, shard_size=50)
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        job = run(
            PromptFile(path), bundle, disk / "out", output_format=output_format, shard_size=50
        )
        assert job.progress.kept > 0
        assert made(disk / "out") == made(tmp_path / "whole")
        assert not orphans(disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_read_only_output_is_one_sentence(prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, tmp_path / "disk" / "out")
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", tmp_path / "disk", tmp_path / "disk"])
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for out in ("out", "another"):
            with pytest.raises(GalipEdgeError, match="cannot write .*: Read-only file system"):
                run(prompts, bundle, tmp_path / "disk" / out)
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_an_output_that_cannot_be_written_is_one_sentence(prompts, bundle, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(GalipEdgeError, match=f"cannot write {tmp_path / 'out'}"):
        Job(prompts, bundle, tmp_path / "out")


@pytest.mark.slow
def test_pictures_are_those_of_the_pipeline(bundle, tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": f"a bird {i}", "n": 2, "seed": i} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(PromptFile(path), bundle, tmp_path / "out", shard_size=4)
    pipeline = Pipeline.from_bundle(bundle)
    for entry in entries(tmp_path / "out"):
        image = np.asarray(Image.open(tmp_path / "out" / entry["file"]))
        wanted = pipeline.generate(entry["prompt"], n=2, seed=entry["seed"])[entry["index"]]
        np.testing.assert_array_equal(image, wanted)
    shutil.rmtree(tmp_path / "out")


def test_a_shard_that_a_power_cut_left_empty_is_made_again(prompts, bundle, tmp_path, plain_model):
    run(prompts, bundle, tmp_path / "whole", output_format="tar", shard_size=40)
    job = Job(prompts, bundle, tmp_path / "out", JobOptions(output_format="tar", shard_size=40))
    for count, _ in enumerate(job):
        if count == 20:
            job.stop()
    (shard,) = (tmp_path / "out" / ".job" / "open").iterdir()
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2] + bytes(size - size // 2))
    run(prompts, bundle, tmp_path / "out", output_format="tar", shard_size=40)
    assert made(tmp_path / "out") == made(tmp_path / "whole")

"""Jobs whose prompt file changed: rows added, rows changed, more images, and files that lie."""

import hashlib
import json
import shutil

import pyarrow.parquet as pq
import pytest
from left import MANIFEST, entries, made, orphans
from plain_model import PlainPipeline

from runtime import Job, JobError, JobOptions, PromptFile
from runtime.jobs.prompts import RESERVED
from runtime.jobs.writers import OUTPUT_FORMATS


@pytest.fixture(autouse=True)
def _plain(plain_model):
    pass


@pytest.fixture
def asked(monkeypatch):
    """Prompts that the model was given."""
    found, encode = [], PlainPipeline.encode
    monkeypatch.setattr(
        PlainPipeline,
        "encode",
        lambda self, prompts: found.extend(prompts) or encode(self, prompts),
    )
    return found


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "p.jsonl"
    write(path, [{"prompt": f"bird {i}", "n": 1 + i % 2} for i in range(25)])
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(path, bundle, out, count=1, keep_columns=(), **options) -> Job:
    options = JobOptions(**{"shard_size": 10, **options})
    job = Job(PromptFile(path, count=count, keep_columns=keep_columns), bundle, out, options)
    for _ in job:
        pass
    assert job.progress.left == 0
    return job


def images(folder) -> dict[tuple, str]:
    """The hash of each image, which must be what is in its file or shard."""
    found = {(e["row"], e["index"], e["prompt"]): e for e in entries(folder) if e["file"]}
    for entry in found.values():
        if "/" in entry["file"]:
            data = (folder / entry["file"]).read_bytes()
        elif entry["file"].endswith(".parquet"):
            rows = pq.read_table(folder / entry["file"]).to_pylist()
            (data,) = [
                r["image"]["bytes"] for r in rows if r["image"]["path"].startswith(entry["key"])
            ]
        else:
            import tarfile

            with tarfile.open(folder / entry["file"]) as archive:
                data = archive.extractfile(f"{entry['key']}.png").read()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    return {key: entry["sha256"] for key, entry in found.items()}


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_rows_at_the_end_are_an_extension(output_format, path, bundle, tmp_path, asked):
    run(path, bundle, tmp_path / "out", output_format=output_format)
    before = made(tmp_path / "out")
    for number in (25, 26):  # more than once
        asked.clear()
        write(path, [*read(path), {"prompt": f"bird {number}", "n": 2}])
        job = run(path, bundle, tmp_path / "out", output_format=output_format)
        assert asked == [f"bird {number}"] * 2
        assert (job.progress.kept, job.progress.done) == (37 + 2 * (number - 25), 2)
    after = made(tmp_path / "out")
    names = [name for name in before if name[0] == "0"]
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    run(path, bundle, tmp_path / "whole", output_format=output_format)
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    assert run(path, bundle, tmp_path / "out", output_format=output_format).progress.done == 0


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_more_images_of_each_row_are_an_extension(output_format, path, bundle, tmp_path):
    write(path, [{"prompt": f"bird {i}"} for i in range(25)])
    run(path, bundle, tmp_path / "out", output_format=output_format)
    job = run(path, bundle, tmp_path / "out", count=3, output_format=output_format)
    assert (job.progress.kept, job.progress.done) == (25, 50)
    run(path, bundle, tmp_path / "whole", count=3, output_format=output_format)
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    with pytest.raises(JobError, match="row 0 and 24 more of .* changed .* fewer images"):
        run(path, bundle, tmp_path / "out", count=2, output_format=output_format)
    job = run(path, bundle, tmp_path / "out", count=2, output_format=output_format, update=True)
    assert job.progress.done == 0
    run(path, bundle, tmp_path / "two", count=2, output_format=output_format)
    assert images(tmp_path / "out") == images(tmp_path / "two")
    assert not orphans(tmp_path / "out")
    run(path, bundle, tmp_path / "out", count=4, output_format=output_format)
    run(path, bundle, tmp_path / "four", count=4, output_format=output_format)
    assert images(tmp_path / "out") == images(tmp_path / "four")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_changed_rows_are_named_and_only_they_are_made_again(
    output_format, path, bundle, tmp_path, asked
):
    run(path, bundle, tmp_path / "out", output_format=output_format)
    before = made(tmp_path / "out")
    rows = read(path)
    rows[11] = {"prompt": "a duck", "n": 2}
    rows[20] = {**rows[20], "seed": 5}
    write(path, rows)
    with pytest.raises(JobError, match="row 11 and 1 more of .* changed .* --update"):
        run(path, bundle, tmp_path / "out", output_format=output_format)
    assert made(tmp_path / "out") == before
    asked.clear()
    run(path, bundle, tmp_path / "out", output_format=output_format, update=True)
    assert sorted(asked) == ["a duck", "a duck", "bird 20"]
    run(path, bundle, tmp_path / "whole", output_format=output_format)
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert not orphans(tmp_path / "out")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_an_update_that_was_stopped_goes_on_without_being_asked(
    output_format, path, bundle, tmp_path
):
    run(path, bundle, tmp_path / "out", output_format=output_format)
    write(path, [{**row, "prompt": row["prompt"] + " at night"} for row in read(path)])
    prompts, options = (
        PromptFile(path),
        JobOptions(output_format=output_format, shard_size=10, update=True),
    )
    job = Job(prompts, bundle, tmp_path / "out", options)
    for count, _ in enumerate(job):
        if count == 13:
            job.stop()
    assert job.progress.left
    run(path, bundle, tmp_path / "out", output_format=output_format)
    run(path, bundle, tmp_path / "whole", output_format=output_format)
    assert made(tmp_path / "out") == made(tmp_path / "whole")


def test_a_corrected_row_is_generated(path, bundle, tmp_path):
    write(path, [{"prompt": "a bird"}, {"prompt": "a duck", "n": "two"}, {"prompt": "a goose"}])
    job = run(path, bundle, tmp_path / "out")
    assert (job.progress.all_failed, job.progress.invalid) == (1, 1)
    write(path, [{"prompt": "a bird"}, {"prompt": "a duck", "n": 2}, {"prompt": "a goose"}])
    job = run(path, bundle, tmp_path / "out", update=True)
    assert (job.progress.done, job.progress.all_failed) == (2, 0)
    run(path, bundle, tmp_path / "whole")
    assert images(tmp_path / "out") == images(tmp_path / "whole")


def test_removed_rows_are_refused(path, bundle, tmp_path):
    run(path, bundle, tmp_path / "out")
    write(path, read(path)[:-1])
    with pytest.raises(JobError, match="has 24 rows, the job in .* has 25: .* not removed"):
        run(path, bundle, tmp_path / "out", update=True)
    run(path, bundle, tmp_path / "out", force=True)
    run(path, bundle, tmp_path / "whole")
    assert made(tmp_path / "out") == made(tmp_path / "whole")


def test_the_same_rows_in_another_form_are_the_same_job(path, bundle, tmp_path):
    run(path, bundle, tmp_path / "out")
    rows = read(path)
    table = "n;Caption\n" + "".join(f"{row['n']};{row['prompt']}\n" for row in rows)
    (tmp_path / "p.csv").write_bytes(table.encode("utf-16"))
    assert run(tmp_path / "p.csv", bundle, tmp_path / "out").progress.done == 0


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_file_that_changes_during_a_run_is_not_mixed(output_format, bundle, tmp_path):
    path = tmp_path / "p.txt"
    parrots = "".join(f"a red parrot number {i} {'x' * 500}\n" for i in range(300))
    path.write_text(parrots)
    job = Job(
        PromptFile(path),
        bundle,
        tmp_path / "out",
        JobOptions(shard_size=10, output_format=output_format),
    )
    with pytest.raises(JobError, match=r"row \d+ changed in .* during the run"):
        for count, _ in enumerate(job):
            if count == 25:
                path.write_text("a blue duck\n" * 313)
    assert not any("duck" in entry["prompt"] for entry in entries(tmp_path / "out"))
    path.write_text(parrots)
    run(path, bundle, tmp_path / "out", output_format=output_format)
    run(path, bundle, tmp_path / "whole", output_format=output_format)
    assert made(tmp_path / "out") == made(tmp_path / "whole")


def test_rows_added_during_a_run_are_not_forgotten(bundle, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("".join(f"bird {i} {'x' * 500}\n" for i in range(100)))
    job = Job(PromptFile(path), bundle, tmp_path / "out", JobOptions(shard_size=10))
    with pytest.raises(JobError, match="rows were added to .* during the run: rerun"):
        for count, _ in enumerate(job):
            if count == 5:
                with path.open("a") as file:
                    file.write("one more\n")
    assert run(path, bundle, tmp_path / "out").progress.done == 1


def test_the_lock_comes_before_the_prompts_are_read(path, bundle, tmp_path, monkeypatch):
    """The first of two jobs on a new folder has it, however long its file is."""
    other = tmp_path / "other.txt"
    other.write_text("a duck\n")
    rows, refused = PromptFile.rows, []

    def slow(self):
        if self.path == path and not refused:
            refused.append(True)
            with pytest.raises(JobError, match="another process is running the job"):
                Job(PromptFile(other), bundle, tmp_path / "out")
        return rows(self)

    monkeypatch.setattr(PromptFile, "rows", slow)
    run(path, bundle, tmp_path / "out")
    assert refused
    assert not any("duck" in entry["prompt"] for entry in entries(tmp_path / "out"))
    with pytest.raises(JobError, match="changed since|rows"):
        run(other, bundle, tmp_path / "out")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_entries_of_other_prompts_are_not_kept(output_format, path, bundle, tmp_path):
    run(path, bundle, tmp_path / "out", output_format=output_format)
    whole = made(tmp_path / "out")
    journal = tmp_path / "out" / ".job" / "parts" / "00000001.jsonl"
    text = journal.read_text()
    assert '"prompt": "bird 8"' in text
    journal.write_text(text.replace('"prompt": "bird 8"', '"prompt": "a duck"'))
    job = run(path, bundle, tmp_path / "out", output_format=output_format)
    assert job.progress.done == text.count('"prompt": "bird 8"')
    assert made(tmp_path / "out") == whole


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_damage_of_the_same_size_is_found_and_repaired(
    output_format, path, bundle, tmp_path, asked
):
    run(path, bundle, tmp_path / "out", output_format=output_format)
    whole = made(tmp_path / "out")
    names = [name for name in whole if name[0] == "0"]
    for position in (0.02, 0.5, 0.98):
        file = tmp_path / "out" / names[2 % len(names)]
        data = bytearray(file.read_bytes())
        data[int(position * len(data))] ^= 0x10
        file.write_bytes(data)
        assert run(path, bundle, tmp_path / "out", output_format=output_format).progress.lost == 0
        job = run(path, bundle, tmp_path / "out", output_format=output_format, verify=True)
        assert made(tmp_path / "out") == whole
        assert job.progress.lost == job.progress.done
    job = run(path, bundle, tmp_path / "out", output_format=output_format, verify=True)
    assert (job.progress.lost, job.progress.done) == (0, 0)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_folder_removed_during_a_run_is_an_error(output_format, path, bundle, tmp_path):
    job = Job(
        PromptFile(path),
        bundle,
        tmp_path / "out",
        JobOptions(shard_size=5, output_format=output_format),
    )
    with pytest.raises(JobError, match="was removed or replaced during the run|cannot write"):
        for count, _ in enumerate(job):
            if count == 12:  # at once: a file that the job writes meanwhile would stop rmtree
                (tmp_path / "out").rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    run(path, bundle, tmp_path / "out", output_format=output_format)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("what", ["images", "record"])
def test_files_removed_during_a_run_are_an_error(output_format, what, path, bundle, tmp_path):
    job = Job(
        PromptFile(path),
        bundle,
        tmp_path / "out",
        JobOptions(shard_size=5, output_format=output_format),
    )
    with pytest.raises(JobError, match="images are missing from .* removed during the run"):
        for count, _ in enumerate(job):
            if count == 12 and what == "record":
                (tmp_path / "out" / ".job" / "parts" / "00000000.jsonl").unlink()
            elif count == 12:
                (found,) = (tmp_path / "out").glob("00000000*")
                shutil.rmtree(found) if found.is_dir() else found.unlink()
    run(path, bundle, tmp_path / "out", output_format=output_format, shard_size=5)
    run(path, bundle, tmp_path / "whole", output_format=output_format, shard_size=5)
    assert images(tmp_path / "out") == images(tmp_path / "whole")


VALUES = {
    "flag": [True, False, None],
    "number": [1, 2, None],
    "score": [0.5, 2, 1e300],
    "tags": [["a", "b"], [], None],
    "long": ["z" * 5000, "", "ü\n"],
    "nested": [{"a": 1, "b": [1.5]}, {"a": None, "b": []}, None],
    "empty": [None, None, None],
}


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_kept_values_have_their_types(output_format, bundle, tmp_path):
    path, names = tmp_path / "p.jsonl", tuple(VALUES)
    rows = [{"prompt": f"bird {i}"} | {n: VALUES[n][i] for n in names} for i in range(3)]
    write(path, rows)
    run(
        path,
        bundle,
        tmp_path / "out",
        keep_columns=names,
        output_format=output_format,
        shard_size=2,
    )
    wanted = [{name: row[name] for name in names} for row in rows]
    assert [{n: e[n] for n in names} for e in entries(tmp_path / "out")] == wanted
    table = pq.read_table(tmp_path / "out" / "__manifest__" / "manifest.parquet").to_pylist()
    assert [{n: e[n] for n in names} for e in table] == wanted
    if output_format == "parquet":
        shards = sorted((tmp_path / "out").glob("*.parquet"))
        assert len({str(pq.read_schema(shard)) for shard in shards}) == 1
        found = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
        assert [{n: row[n] for n in names} for row in found] == wanted
    assert (
        run(
            path,
            bundle,
            tmp_path / "out",
            keep_columns=names,
            output_format=output_format,
            shard_size=2,
        ).progress.done
        == 0
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", 2], "column 'kind' .* is string before row 1, which has 2"),
        ([1, "2"], "column 'kind' .* is int64 before row 1, which has '2'"),
        ([float("nan"), 1], "column 'kind' .* row 0 has nan, which JSON cannot represent"),
        ([1.5, float("-inf")], "column 'kind' .* row 1 has -inf, which JSON cannot represent"),
        ([[1, float("nan")], []], "column 'kind' .* row 0 has nan, which JSON cannot represent"),
        ([2**63, 1], "column 'kind' .* row 0 has an integer of more than 64 bits"),
        ([{}, {}], "column 'kind' .* objects without keys"),
    ],
)
def test_values_that_cannot_be_kept_name_their_column(values, message, bundle, tmp_path):
    path = tmp_path / "p.jsonl"
    write(path, [{"prompt": f"bird {i}", "kind": value} for i, value in enumerate(values)])
    with pytest.raises(JobError, match=message):
        run(path, bundle, tmp_path / "out", keep_columns=("kind",))
    assert not (tmp_path / "out").exists()


def test_a_mistyped_column_is_an_error(path, bundle, tmp_path):
    with pytest.raises(JobError, match=r"no column 'colour' to keep, only 'prompt', 'n'"):
        run(path, bundle, tmp_path / "out", keep_columns=("colour",))
    (tmp_path / "p.csv").write_text("prompt,color\na bird,red\n")
    with pytest.raises(JobError, match=r"no column 'colour' to keep, only 'prompt', 'color'"):
        run(tmp_path / "p.csv", bundle, tmp_path / "out", keep_columns=("colour",))
    (tmp_path / "p.txt").write_text("a bird\n")
    with pytest.raises(JobError, match="has text lines and no column 'colour'"):
        run(tmp_path / "p.txt", bundle, tmp_path / "out", keep_columns=("colour",))


@pytest.mark.parametrize("name", [*sorted(RESERVED), "Image", "ROW"])
def test_columns_of_our_own_are_refused_at_once(name, tmp_path):
    with pytest.raises(ValueError, match=f"column '{name}' cannot be kept"):
        PromptFile(tmp_path / "p.jsonl", keep_columns=(name,))


def test_shards_with_another_type_are_not_added(bundle, tmp_path):
    path = tmp_path / "p.jsonl"
    write(path, [{"prompt": "bird 0", "score": 1}])
    run(path, bundle, tmp_path / "out", keep_columns=("score",), output_format="parquet")
    write(path, [*read(path), {"prompt": "bird 1", "score": 1.5}])
    with pytest.raises(JobError, match="column 'score' .* is double, but int64 in the shards"):
        run(path, bundle, tmp_path / "out", keep_columns=("score",), output_format="parquet")


def as_version_1(out, path) -> None:
    """State of the previous version: no tables of rows, other names, no hashes of shards."""
    state = json.loads((out / ".job" / "job.json").read_text())
    for name in ("passes", "column types", "format", "prompt column", "encoding", "checksum"):
        del state[name]
    state |= {"version": 1, "input format": "jsonl"}
    (out / ".job" / "job.json").write_text(json.dumps(state))
    shutil.rmtree(out / ".job" / "rows")
    for name in ("manifest.jsonl", "manifest.parquet"):
        (out / "__manifest__" / name).rename(out / name)
    (out / "__manifest__").rmdir()
    (out / "metadata.jsonl").unlink(missing_ok=True)
    for journal in (out / ".job" / "parts").iterdir():
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        journal.write_text(
            "".join(json.dumps({k: v for k, v in x.items() if k != "hashes"}) + "\n" for x in lines)
        )


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_job_of_the_version_before_continues(output_format, path, bundle, tmp_path):
    job = Job(
        PromptFile(path),
        bundle,
        tmp_path / "out",
        JobOptions(output_format=output_format, shard_size=10),
    )
    for count, _ in enumerate(job):
        if count == 22:
            job.stop()
    as_version_1(tmp_path / "out", path)
    original = path.read_text()
    write(path, [*read(path), {"prompt": "one more"}])
    with pytest.raises(JobError, match="by an early version .* rerun it once with its original"):
        run(path, bundle, tmp_path / "out", output_format=output_format)
    path.write_text(original)
    run(path, bundle, tmp_path / "out", output_format=output_format, verify=True)
    run(path, bundle, tmp_path / "whole", output_format=output_format)
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert not (tmp_path / "out" / MANIFEST.split("/")[-1]).exists()
    write(path, [*read(path), {"prompt": "one more"}])
    assert run(path, bundle, tmp_path / "out", output_format=output_format).progress.done == 1

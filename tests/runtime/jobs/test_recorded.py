"""A job that an earlier version began and left: `recorded/` was written by that version."""

import shutil
from pathlib import Path

import pytest
from left import entries, orphans

from runtime import Job, JobOptions, PromptFile

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_a_recorded_job_resumes(form, tmp_path, plain_model):
    out = tmp_path / "out"
    shutil.copytree(RECORDED / form, out)
    before = entries(out)
    prompts = PromptFile(RECORDED / "prompts.jsonl", carry=("kind",))
    job = Job(prompts, RECORDED / "bundle", out, JobOptions(form=form, part=16))
    list(job)
    # An unfinished Parquet shard is generated again.
    kept = 7 if form == "parquet" else len(before)
    assert (job.progress.kept, job.progress.done, job.progress.left) == (kept, 27 - kept, 0)
    assert [e for e in entries(out) if e["milliseconds"] in {b["milliseconds"] for b in before}]
    found = {(e["row"], e["index"]): e for e in entries(out)}
    for entry in before:
        same = ("id", "prompt", "seed", "status", "error", "file", "key", "kind")
        new = found[entry["row"], entry["index"]]
        assert {n: new[n] for n in same} == {n: entry[n] for n in same}
    assert not orphans(out)
    verified = Job(prompts, RECORDED / "bundle", out, JobOptions(form=form, part=16, verify=True))
    list(verified)
    assert (verified.progress.kept, verified.progress.lost) == (27, 0)

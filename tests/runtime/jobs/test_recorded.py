"""Jobs that version 0.1 wrote and left unfinished, `recorded/`, continue with this one."""

import shutil
from pathlib import Path

import pytest
from left import entries, orphans

from runtime import Job, JobOptions, PromptFile

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize("output_format", ["folder", "tar", "parquet"])
def test_a_recorded_job_resumes(output_format, tmp_path, plain_model):
    out = tmp_path / "out"
    shutil.copytree(RECORDED / output_format, out)
    before = entries(out)
    prompts = PromptFile(RECORDED / "prompts.jsonl", keep_columns=("kind",))
    job = Job(
        prompts, RECORDED / "bundle", out, JobOptions(output_format=output_format, shard_size=16)
    )
    list(job)
    # 15 had been generated or were invalid; an unfinished Parquet shard is generated again.
    kept = 6 if output_format == "parquet" else 15
    assert (job.progress.lost, job.progress.left, job.progress.done) == (0, 0, 26 - kept)
    found = {(e["row"], e["index"]): e for e in entries(out)}
    for entry in before:
        same = ("id", "prompt", "seed", "status", "file", "key", "kind")
        new = found[entry["row"], entry["index"]]
        assert {n: new[n] for n in same} == {n: entry[n] for n in same}
    assert not orphans(out)
    verified = Job(
        prompts,
        RECORDED / "bundle",
        out,
        JobOptions(output_format=output_format, shard_size=16, verify=True),
    )
    list(verified)
    assert (verified.progress.kept, verified.progress.lost) == (26, 0)

"""Damaged records and states, with a fixed seed: each outcome is success or one of our errors.

    FUZZ_CASES=5000 FUZZ_SEED=1 pytest --timeout 3600 tests/runtime/jobs/test_fuzz.py

damages more folders, in other ways.
"""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
from left import entries, made

from runtime import Job, JobOptions, PromptFile
from runtime.errors import GalipEdgeError
from runtime.jobs.journal import parse_journal
from runtime.jobs.shards import Pass
from runtime.jobs.state import State

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", "60"))
SEED = os.environ.get("FUZZ_SEED", "")

# What a value in a line of JSON is replaced by.
ODD = (
    *(None, True, 5, -1, 2**70, 1.5, "", "../../x", "\0", "\ud800", "x" * 3000, [], {}, [[]]),
    *({"a": 1}, {"00000000.tar": -1}, {"00000000.tar": "1"}, {"../x": 1}, [0] * 50),
)
LINES = (
    *(b'{"shards": 5}', b'{"shards": null}', b'{"shards": [1]}', b'{"shards": {"../a": 1}}'),
    *(b"null", b"5", b"[]", b"{}", b"[" * 5000, b"\xff\xfe", b"\0" * 100, b'{"row": 1}', b""),
    *(b'{"shards": {}, "hashes": 5}', b"9" * 6000, b'{"shards": {"00000000.tar": 99999999}}'),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file with one thing wrong."""
    kind = draw.randrange(6)
    if kind == 0 or not content:
        return content[: draw.randrange(len(content) + 1)]
    if kind == 1:
        data = bytearray(content)
        for _ in range(draw.choice((1, 1, 5, 50))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(data)
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    if kind == 2:
        lines[place] = draw.choice(LINES)
    elif kind == 3:
        lines.insert(place, draw.choice(LINES + tuple(lines)))
    elif kind == 4:
        draw.shuffle(lines)
    else:
        try:
            found = json.loads(lines[place])
            found[draw.choice(list(found))] = draw.choice(ODD)
            lines[place] = json.dumps(found).encode()
        except (ValueError, TypeError):
            lines[place] = b"{"
    return b"\n".join(lines)


@pytest.fixture
def whole(bundle, tmp_path, plain_model, request):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": f"bird {i}", "kind": i} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": " "}]))
    prompts = PromptFile(path, keep_columns=("kind",))
    options = JobOptions(output_format=request.param, shard_size=5)
    list(Job(prompts, bundle, tmp_path / "whole", options))
    return prompts, options


@pytest.mark.parametrize("whole", ["folder", "tar", "parquet"], indirect=True)
def test_a_damaged_folder_is_repaired_or_refused(whole, bundle, tmp_path):
    prompts, options = whole
    draw, out = random.Random(options.output_format + SEED), tmp_path / "out"
    wanted, succeeded = made(tmp_path / "whole"), 0
    for _ in range(CASES):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", out)
        files = [*(out / ".job" / "parts").iterdir(), out / ".job" / "job.json"]
        files += [*(out / ".job" / "rows").iterdir(), *out.glob("0*.*"), *out.glob("0*/*")]
        file = draw.choice([draw.choice(files), draw.choice(files[:4])])
        file.write_bytes(damaged(file.read_bytes(), draw))
        try:
            for _ in Job(
                prompts, bundle, out, JobOptions(options.output_format, shard_size=5, verify=True)
            ):
                pass
        except GalipEdgeError:
            force = JobOptions(options.output_format, shard_size=5, force=True, verify=True)
            for _ in Job(prompts, bundle, out, force):
                pass
        else:
            succeeded += 1
        listed = [(entry["row"], entry["index"]) for entry in entries(out)]
        assert sorted(listed) == [(i, 0) for i in range(13)]
        assert {k: v for k, v in made(out).items() if k in wanted and k[0] == "0"} == {
            k: v for k, v in wanted.items() if k[0] == "0"
        }
    assert succeeded > CASES // 3


def test_readers_of_records_and_states_fail_in_one_way():
    draw = random.Random(f"1{SEED}")
    entry = {
        "row": 0,
        "id": "00000000",
        "prompt": "a",
        "index": 0,
        "seed": 0,
        "model": "m",
        "status": "done",
        "error": None,
        "file": "00000000.tar",
        "sha256": "0" * 64,
        "key": "00000000-00000-a",
        "bytes": 5,
        "milliseconds": 0.5,
    }
    record = "".join(
        json.dumps(line) + "\n" for line in [entry, entry, {"shards": {"00000000.tar": 10240}}]
    ).encode()
    assert len(parse_journal(record).entries) == 2
    state = State({"n": 1}, (Pass(0, 3, 3, "0" * 64),), 3, {}).to_bytes()
    assert State.from_bytes(state).items == 3
    for _ in range(80 * CASES):
        found = parse_journal(damaged(record, draw))
        assert all(isinstance(each["file"], str | None) for each in found.entries)
        try:
            State.from_bytes(damaged(state, draw))
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("milliseconds", value) for value in (2**70, float("nan"), float("inf"))),
        *(("model", "\ud800"), ("model", "0" * 64), ("key", "00000000-00000-bird-0")),
        *(("sha256", "x"), ("kind", True), ("kind", 1.0), ("unknown", 1)),
    ],
)
@pytest.mark.parametrize("whole", ["parquet"], indirect=True)
def test_values_that_no_manifest_can_hold_are_generated_again(name, value, whole, bundle, tmp_path):
    prompts, options = whole
    journal = tmp_path / "whole" / ".job" / "parts" / "00000000.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    lines[1] = json.dumps(json.loads(lines[1]) | {name: value}) + "\n"
    before = made(tmp_path / "whole")
    journal.write_text("".join(lines))
    list(Job(prompts, bundle, tmp_path / "whole", options))
    assert made(tmp_path / "whole") == before


@pytest.mark.parametrize("whole", ["tar", "parquet"], indirect=True)
def test_a_completion_without_the_shard_is_made_again(whole, bundle, tmp_path):
    prompts, options = whole
    before = made(tmp_path / "whole")
    journal = tmp_path / "whole" / ".job" / "parts" / "00000001.jsonl"
    *lines, _ = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines) + '{"shards": {}, "hashes": {}}\n')
    list(Job(prompts, bundle, tmp_path / "whole", options))
    assert made(tmp_path / "whole") == before


@pytest.mark.parametrize("whole", ["parquet"], indirect=True)
def test_a_shard_whose_text_is_not_utf8_is_made_again(whole, bundle, tmp_path):
    prompts, options = whole
    before = made(tmp_path / "whole")
    shard = tmp_path / "whole" / "00000000.parquet"
    content = shard.read_bytes()
    assert content.count(b"00000002-00000-bird-2.png") >= 1
    shard.write_bytes(
        content.replace(b"00000002-00000-bird-2.png", b"\xee0000002-00000-bird-2.png")
    )
    list(Job(prompts, bundle, tmp_path / "whole", replace(options, verify=True)))
    assert made(tmp_path / "whole") == before


def test_a_record_that_is_none_is_one_sentence(bundle, tmp_path, plain_model, caplog):
    path = tmp_path / "p.txt"
    path.write_text("a bird\ntwo dogs\n")
    list(Job(PromptFile(path), bundle, tmp_path / "out"))
    before = made(tmp_path / "out")
    journal = tmp_path / "out" / ".job" / "parts" / "00000000.jsonl"
    journal.write_text('{"shards": 5}\n')
    list(Job(PromptFile(path), bundle, tmp_path / "out"))
    assert "is damaged after 0 entries: all other images are generated again" in caplog.text
    assert made(tmp_path / "out") == before

"""`galip-edge batch` as a user runs it."""

import json
import subprocess
import sys

import pytest

from runtime.bundle import default_bundle

pytestmark = pytest.mark.slow


def batch(*arguments, stdin=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "galip_edge", "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,n,note\na bird,2,x\n ,1,y\ntwo dogs,1,z\n")
    return path


def lines(out) -> list[dict]:
    return [
        json.loads(line)
        for line in (out / "__manifest__" / "manifest.jsonl").read_text().splitlines()
    ]


def test_a_job_from_a_file(prompts, tmp_path):
    out = tmp_path / "out"
    command = (prompts, "--out", out, "--model", default_bundle(), "--keep-column", "note")
    done = batch(*command)
    assert done.stdout.strip() == str(out / "__manifest__" / "manifest.jsonl")
    assert done.returncode == 1
    assert "1 of 4 images failed, " in done.stderr
    assert [(e["status"], e["note"]) for e in lines(out)] == [
        ("done", "x"),
        ("done", "x"),
        ("failed", "y"),
        ("done", "z"),
    ]
    again = batch(*command, "--json")
    told = json.loads(again.stdout)
    assert (told["kept"], told["failed"], told["all_failed"]) == (4, 0, 1)
    assert again.returncode == 1
    assert "1 row is invalid (correct the prompt file, then add --update)" in again.stderr
    assert "--retry-failed" not in again.stderr
    longer = json.loads(batch(*command, "-n", 2, "--json").stdout)  # each row has its own n
    assert (longer["kept"], longer["done"]) == (4, 0)
    changed = batch(*command, "--seed", 2)
    assert changed.returncode == 1
    assert "holds a job with another seed: choose another folder, or pass --force" in changed.stderr
    assert "Traceback" not in changed.stderr
    assert batch(*command, "--seed", 2, "--force").returncode == 1
    assert len(lines(out)) == 4


def test_a_job_grows_with_its_file_and_is_verified(prompts, tmp_path):
    out = tmp_path / "out"
    command = (prompts, "--out", out, "--model", default_bundle(), "--json")
    prompts.write_text("Caption;n\na bird;2\n")
    first = batch(*command)
    assert first.returncode == 0, first.stderr
    wanted = "CSV, UTF-8, delimiter semicolon, prompts in column 'Caption', also column n"
    assert first.stderr == f"{prompts}: {wanted}\n"  # and no stray newline
    prompts.write_text("Caption;n\na bird;2\ntwo dogs;1\n")
    longer = json.loads(batch(*command).stdout)
    assert (longer["kept"], longer["done"]) == (2, 1)
    prompts.write_text("Caption;n\na goose;2\ntwo dogs;1\n")
    refused = batch(*command)
    assert refused.returncode == 1
    assert "row 0 of" in refused.stderr
    assert json.loads(batch(*command, "--update").stdout)["done"] == 2
    assert "all 3 earlier results are intact" in batch(*command, "--verify").stderr
    file = out / lines(out)[0]["file"]
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)
    repaired = batch(*command, "--verify")
    assert "1 image was missing or damaged and was regenerated" in repaired.stderr
    assert json.loads(repaired.stdout)["lost"] == 1


def test_former_spellings_of_options(prompts, tmp_path):
    new = ("--output-format", "tar", "--shard-size", 2, "--image-format", "webp")
    old = ("--as", "tar", "--part", 2, "--image", "webp", "--engine", "local")
    command = (prompts, "--out", tmp_path / "out", "--model", default_bundle(), "--json")
    assert json.loads(batch(*command, *new, "--keep-column", "note").stdout)["done"] == 3
    assert json.loads(batch(*command, *old, "--carry", "note").stdout)["kept"] == 4
    shown = batch("--help").stdout
    for name in ("--as ", "--part ", "--image ", "--carry ", "--engine "):
        assert name not in shown
    for name in (
        "--output-format",
        "--shard-size",
        "--image-format",
        "--keep-column",
        "--executor",
    ):
        assert name in shown
    assert "'--shard-size'" in batch(*command, "--part", 0).stderr


def test_help_groups_the_options():
    shown = batch("--help").stdout
    titles = ("Examples:", "Input:", "Images:", "Output:", "Resuming:", "Execution:", "Reporting:")
    places = [shown.index(f"\n{' ' * 2 * (title == 'Examples:')}{title}\n") for title in titles]
    assert places == sorted(places)
    assert places[3] < shown.index("--sign-cert") < places[4]
    assert shown.index("--help") > shown.index("\nOptions:\n") > places[-1]


def test_standard_input(tmp_path):
    command = (
        "-",
        "--out",
        tmp_path / "out",
        "--model",
        default_bundle(),
        "--image-format",
        "jpeg",
    )
    done = batch(*command, stdin="a bird\ntwo dogs\n")
    assert done.returncode == 0, done.stderr
    assert [e["file"][-4:] for e in lines(tmp_path / "out")] == [".jpg"] * 2
    assert "has 1 rows, the job in" in batch(*command, stdin="a cat\n").stderr
    rows = '{"prompt": "a bird"}\n'
    done = batch("-", "--out", tmp_path / "o2", "--input-format", "jsonl", stdin=rows)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_makes_nothing(prompts, tmp_path):
    command = (prompts, "--out", tmp_path / "out", "--model", default_bundle(), "--dry-run")
    done = batch(*command, "--json")
    told = json.loads(done.stdout)
    assert (told["rows"], told["images"], told["refused"]) == (3, 3, 1)
    assert told["bytes"] > 0
    assert told["seconds"] > 0
    wanted = "3 images from 3 rows (1 invalid, 0 longer than the model reads), about"
    assert wanted in batch(*command).stdout
    prompts.write_text(f"prompt\na bird\n{'a bird ' * 40}\n{'a bird ' * 12}\n")
    told = json.loads(batch(*command, "--json").stdout)
    assert (told["rows"], told["cut"]) == (3, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv", "--out", "x"], "cannot read the prompts in missing.csv: No such file"),
        (["p.doc", "--out", "x"], "unknown format of p.doc"),
        (["p.xlsx", "--out", "x"], "save the sheet as CSV"),
        (["p.txt", "--out", "x", "--carry", "image"], "column 'image' cannot be kept"),
        (["p.txt", "--out", "x", "--carry", "file"], "column 'file' cannot be kept"),
        (["p.txt", "--out", "nowhere://x"], "needs fsspec and its package for nowhere"),
        (["p.txt", "--out", "x", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a bird\n")
    (tmp_path / "p.doc").write_text("a bird\n")
    done = batch(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()

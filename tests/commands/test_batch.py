"""`galip-edge batch` as a user runs it."""

import json
import subprocess
import sys

import pytest


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


def test_a_job_from_a_file(prompts, tiny_bundles, tmp_path):
    out = tmp_path / "out"
    command = (prompts, "--out", out, "--model", tiny_bundles["int8"], "--carry", "note")
    done = batch(*command)
    assert done.stdout.strip() == str(out / "__manifest__" / "manifest.jsonl")
    assert done.returncode == 1
    assert "1 of 4 failed: " in done.stderr
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
    changed = batch(*command, "-n", 2)
    assert changed.returncode == 1
    assert "holds a job with other n: choose another folder, or give --force" in changed.stderr
    assert "Traceback" not in changed.stderr
    assert batch(*command, "-n", 2, "--force").returncode == 1
    assert len(lines(out)) == 4


def test_standard_input(tiny_bundles, tmp_path):
    command = ("-", "--out", tmp_path / "out", "--model", tiny_bundles["int8"], "--image", "jpeg")
    done = batch(*command, stdin="a bird\ntwo dogs\n")
    assert done.returncode == 0, done.stderr
    assert [e["file"][-4:] for e in lines(tmp_path / "out")] == [".jpg"] * 2
    assert "other prompts" in batch(*command, stdin="a cat\n").stderr
    rows = '{"prompt": "a bird"}\n'
    done = batch("-", "--out", tmp_path / "o2", "--input-format", "jsonl", stdin=rows)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_makes_nothing(prompts, tiny_bundles, tmp_path):
    command = (prompts, "--out", tmp_path / "out", "--model", tiny_bundles["int8"], "--dry-run")
    done = batch(*command, "--json")
    told = json.loads(done.stdout)
    assert (told["rows"], told["images"], told["refused"]) == (3, 3, 1)
    assert told["bytes"] > 0
    assert told["seconds"] > 0
    wanted = "3 images from 3 rows (1 cannot be used, 0 longer than what the model reads), about"
    assert wanted in batch(*command).stdout
    prompts.write_text(f"prompt\na bird\n{'a bird ' * 40}\n{'a bird ' * 12}\n")
    told = json.loads(batch(*command, "--json").stdout)
    assert (told["rows"], told["cut"]) == (3, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv", "--out", "x"], "cannot read the prompts in missing.csv: No such file"),
        (["p.doc", "--out", "x"], "does not tell by its ending"),
        (["p.txt", "--out", "x", "--carry", "file"], "the manifest has a column 'file' of its own"),
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

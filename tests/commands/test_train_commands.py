"""`galip-edge data check` and `galip-edge train`, as a user with a folder of images meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def galip_edge(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "galip_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture number {i}\nnoise\n")
    return folder


def settings(photos: Path, run: Path) -> list[str]:
    values = {"data.root": photos, "output": run, "steps": 2, "batch_size": 4}
    return [argument for k, v in values.items() for argument in ("--set", f"{k}={v}")]


def test_data_check_counts_and_finds_what_is_broken(photos, tmp_path):
    arguments = ["data", "check", "tiny", *settings(photos, tmp_path / "run")]
    result = galip_edge(*arguments)
    assert result.returncode == 0, result.stderr
    assert "8 images, 16 captions" in result.stdout
    assert "no problems" in result.stdout
    (photos / "3.png").write_bytes(b"not an image")
    (photos / "4.txt").write_text("")
    result = galip_edge(*arguments, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["images"] == 6
    assert report["ok"] is False
    assert {kind: found["count"] for kind, found in report["problems"].items()} == {
        "unreadable image": 1,
        "empty captions": 1,
    }


def test_train_from_folder_to_bundle(photos, tmp_path):
    run = tmp_path / "run"
    dry = galip_edge("train", "tiny", *settings(photos, run), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert '"batch_size": 4' in dry.stdout
    assert not run.exists()
    result = galip_edge("train", "tiny", *settings(photos, run))
    assert result.returncode == 0, result.stderr
    model = Path(result.stdout.strip())
    assert model.is_file()
    again = galip_edge("train", "tiny", *settings(photos, run))  # finished: nothing to do
    assert again.returncode == 0, again.stderr
    bundle = tmp_path / "bundle"
    converted = galip_edge("convert", model, "--bf16", "-o", bundle)
    assert converted.returncode == 0, converted.stderr
    assert galip_edge("verify", bundle).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nothing.toml"], "cannot read nothing.toml"),
        (["train", "tiny", "--set", "batch_sise=3", "--set", "data.root=."], "batch_sise"),
        (["train", "tiny", "--set", "data.root=/nowhere"], "/nowhere"),
        (["data", "check", "tiny", "--set", "data.root=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_clear_sentence(arguments, words, tmp_path):
    result = galip_edge(*arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert words in result.stderr
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1

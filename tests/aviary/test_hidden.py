"""The package without the folder `galip_edge/aviary`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if (name + ".").startswith("galip_edge.aviary."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
SPINE = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "galip_edge").rglob("*.py"))
    if "aviary" not in path.parts and path.name != "__main__.py"
]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code], capture_output=True, text=True, check=False
    )


def run_cli(*arguments: object) -> subprocess.CompletedProcess:
    return run(f"from galip_edge.cli import main; main({list(map(str, arguments))!r})")


def test_every_other_module_imports():
    result = run(
        f"import importlib\nfor module in {SPINE!r}: importlib.import_module(module)\n"
        "print([name for name in sys.modules if name.startswith('galip_edge.aviary')])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_no_other_module_names_it_in_an_import():
    for module in SPINE:
        path = ROOT / Path(*module.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        for line in file.read_text().splitlines():
            assert not ("import" in line.split()[:1] + line.split()[2:3] and "aviary" in line), line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image number {i}\n")
    return folder


def test_training_and_evaluation_work(photos, tmp_path):
    settings = {"data.root": photos, "output": tmp_path / "run", "steps": 2, "batch_size": 4,
                "log.interval": 1, "threads": 1, "device": "cpu"}  # fmt: skip
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    result = run_cli("train", "tiny", *sets)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    result = run_cli(
        "evaluate", tmp_path / "run/model.safetensors", "--data", f"folder={photos}", "--count", 4,
        "--diversity-captions", 0, "--json", "--device", "cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "clip_score" in json.loads(result.stdout)["metrics"]


def test_its_commands_are_not_listed():
    listed = run_cli("--help").stdout
    assert "train-clip" in listed
    assert "train-classifier" not in listed
    assert "\n  draw " not in run_cli("data", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-classifier", "x.safetensors"), "needs galip_edge/aviary"),
        (("train", "tiny", "--set", "data.kind=aviary"), "kind must be one of cub"),
        (("train", "tiny", "--set", "pretraining.weight=1"), "needs galip_edge/aviary"),
        (("train-clip", "own", "--set", "words.steps=1"), "needs galip_edge/aviary"),
        (("data", "draw", "x"), "No such command"),
    ],
)
def test_what_needs_it_is_refused_in_one_sentence(arguments, message, tmp_path):
    result = run_cli(*arguments)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr

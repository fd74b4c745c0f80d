"""`galip-edge info IMAGE` of what the commands write, and of what strangers write."""

import functools
import io
import json
import shlex
import subprocess
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from certificates import write_pair
from embedded import renamed
from PIL import Image

from galip_edge.cli import main
from runtime.images import ImageFormat, ImageMetadata, read_metadata, save_png
from runtime.latent import Keyframe
from runtime.pipeline import Pipeline
from runtime.recipes import TRAINED_ALGORITHMIC_MEDIA, recipe_in

# Models are loaded once for all tests.
from_bundle = functools.cache(Pipeline.from_bundle)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    monkeypatch.setattr(Pipeline, "from_bundle", from_bundle)


def galip_edge(*arguments) -> subprocess.CompletedProcess:
    """The command in this process, which is faster than a separate one."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, done.value.code, out.getvalue(), err.getvalue())


def info(path) -> dict:
    done = galip_edge("info", path, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_the_command_makes_the_image_again(ending, tmp_path, monkeypatch):
    out = tmp_path / f"x.{ending}"
    assert galip_edge("generate", "a 'bird' $HOME", "--seed", 7, "--out", out).returncode == 0
    found = info(out)
    assert found["digital_source_type"] == TRAINED_ALGORITHMIC_MEDIA
    assert found["note"] is None
    name, *arguments = shlex.split(found["command"])
    assert name == "galip-edge"
    monkeypatch.chdir(tmp_path)
    printed = galip_edge(*arguments).stdout.strip()
    assert Path(printed).read_bytes() == out.read_bytes()
    text = galip_edge("info", out).stdout
    assert f"command      {found['command']}\n" in text
    assert "source type  trainedAlgorithmicMedia" in text


@pytest.mark.slow
def test_another_models_image_names_its_hash(tmp_path):
    model = ("--model", renamed(tmp_path / "bundle", "other"))
    done = galip_edge("generate", "a bird", "-n", 2, *model, "--grid", "--out", tmp_path / "out")
    first, second, sheet = done.stdout.splitlines()
    found = info(second)
    assert found["note"].startswith("the last of its 2 images; --model is the bundle with the hash")
    assert "--model other" in found["command"]
    assert info(first)["recipe"]["index"] == 0
    assert info(sheet)["command"].endswith("--seed 0 -n 2 --grid -- 'a bird'")


def test_explore_and_interpolate_keep_theirs_and_overwrite_nothing(tmp_path):
    jobs = {
        "s.png": ("explore", "a bird", "-n", 2, "--columns", 1),
        "w.gif": ("interpolate", "a bird", "a duck", "--steps", 2, "--loop"),
        "w.png": ("interpolate", "a bird", "--seed", 1, "--seed", 2, "--steps", 2),
        "frames": ("interpolate", "a bird", "a duck", "--steps", 2),
    }
    for name, arguments in jobs.items():
        out = tmp_path / name
        assert galip_edge(*arguments, "--out", out).returncode == 0
        file = out / "00001.png" if out.is_dir() else out
        content = file.read_bytes()
        again = galip_edge(*arguments, "--out", out)
        assert again.returncode == 1
        assert "choose another --out, or pass --force to replace" in again.stderr
        assert file.read_bytes() == content
        _, *command = shlex.split(info(file)["command"])
        assert command.count("--out") == (command[0] == "interpolate")
        if name == "w.png":
            assert "again.png" in command  # and no animation
        if "--out" in command:  # the test gives its own
            at = command.index("--out")
            del command[at : at + 2]
        done = galip_edge(*command[:1], "--out", out, "--force", *command[1:])
        assert done.returncode == 0, done.stderr
        assert file.read_bytes() == content


def test_frames_of_a_longer_run_do_not_stay(tmp_path):
    for steps in (4, 2):
        command = ("interpolate", "a", "b", "--steps", steps, "--force", "--out", tmp_path / "f")
        assert galip_edge(*command).returncode == 0
    assert len(list((tmp_path / "f").iterdir())) == 3


@pytest.mark.parametrize(
    ("form", "image_format"), [("folder", "webp"), ("tar", "jpeg"), ("parquet", "png")]
)
def test_all_forms_of_batch_have_the_recipe(form, image_format, tmp_path):
    (tmp_path / "p.txt").write_text("a bird\n")
    options = ("--output-format", form, "--image-format", image_format, "--seed", 5)
    done = galip_edge("batch", tmp_path / "p.txt", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    if form == "folder":
        (file,) = (tmp_path / "out" / "00000000").iterdir()
        content = file.read_bytes()
    elif form == "tar":
        with tarfile.open(tmp_path / "out" / "00000000.tar") as shard:
            name = next(it for it in shard.getnames() if not it.endswith(("txt", "json")))
            content = shard.extractfile(name).read()
    else:
        import pyarrow.parquet as pq

        content = pq.read_table(tmp_path / "out" / "00000000.parquet")["image"][0]["bytes"].as_py()
    stored = recipe_in(content)
    assert stored.format == image_format.upper()
    assert stored.source_type == TRAINED_ALGORITHMIC_MEDIA
    recipe = ImageMetadata.of_recorded(stored.recorded)
    assert (recipe.prompt, recipe.seed) == ("a bird", 5)


def test_commands_sign(tmp_path):
    c2pa = pytest.importorskip("c2pa")
    key, chain = write_pair(tmp_path)
    signing = ("--sign-key", key, "--sign-cert", chain)
    (tmp_path / "p.txt").write_text("a bird\n")
    model = {
        "one.webp": ("generate", "a bird"),
        "some": ("generate", "a bird"),
        "sheet.png": ("explore", "a bird", "-n", 2),
        "w.gif": ("interpolate", "a", "b", "--steps", 2),
        "frames": ("interpolate", "a", "b", "--steps", 1),
        "job": ("batch", tmp_path / "p.txt", "--image-format", "jpeg"),
    }
    for name, command in model.items():
        done = galip_edge(*command, *signing, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    endings = {".png": "png", ".webp": "webp", ".gif": "gif", ".jpg": "jpeg"}
    files = [it for name in model for it in ((tmp_path / name), *(tmp_path / name).rglob("*"))]
    files = [it for it in files if it.suffix in endings]
    assert len(files) == 7
    for file in files:
        data = io.BytesIO(file.read_bytes())
        found = json.loads(c2pa.Reader(f"image/{endings[file.suffix]}", data).json())
        assert found["validation_state"] == "Valid"
    done = galip_edge("generate", "a bird", "--sign-key", key, "--out", tmp_path / "x.png")
    assert done.returncode == 2
    assert "--sign-key and --sign-cert belong together" in done.stderr


def test_a_frame_that_is_no_png_is_made_again_among_its_frames(tmp_path):
    path, end = tmp_path / "x.webp", Keyframe("b", 1)
    frame = ImageMetadata("a", 0, 0, "m", "ab" * 32, end=end, sentence_share=0.5, noise_share=0.5)
    path.write_bytes(ImageFormat("webp").encode(np.zeros((8, 8, 3), np.uint8), frame))
    assert shlex.split(info(path)["command"]).count("--out") == 1


def test_images_of_strangers(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 1000)
    done = galip_edge("info", path)
    assert done.returncode == 1
    assert "not a PNG, JPEG, WebP, GIF or MP4, or damaged" in done.stderr
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    done = galip_edge("info", path)
    assert done.returncode == 0
    assert "no recipe of galip-edge" in done.stdout
    metadata = ImageMetadata("a", 0, 0, "m", "ab" * 32, psi=10**400)
    save_png(np.zeros((8, 8, 3), np.uint8), path, metadata)
    assert "no recipe of galip-edge" in galip_edge("info", path).stdout
    metadata = ImageMetadata("\x1b]0;owned\x07", 0, 0, "\x1b[31m", "ab" * 32)
    save_png(np.zeros((8, 8, 3), np.uint8), path, metadata)
    assert read_metadata(path) == metadata
    done = galip_edge("info", path)
    assert done.stdout.replace("\n", "").isprintable()
    assert "\\x1b]0;owned" in done.stdout
    text = tmp_path / "x.txt"
    text.write_text("text")
    assert "is a file, not a bundle" in galip_edge("info", text).stderr

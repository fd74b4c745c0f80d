"""The command line as a user meets it: in a separate process, with its exit code."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import bundle
from runtime.errors import BundleError
from runtime.images import read_metadata

pytestmark = pytest.mark.slow


def galip_edge(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "galip_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def assert_one_clear_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def test_generate_writes_images_that_say_how_they_were_made(tiny_bundles, tmp_path):
    out = tmp_path / "new" / "folder"
    result = galip_edge(
        "generate",
        "a bird on a branch",
        "two dogs",
        "-n",
        3,
        "--seed",
        7,
        "--grid",
        "--model",
        tiny_bundles["int8"],
        "--out",
        out,
    )
    assert result.returncode == 0, result.stderr
    paths = [Path(line) for line in result.stdout.splitlines()]
    *images, grid = paths
    assert sorted(os.listdir(out)) == sorted(path.name for path in paths)
    assert len(images) == 6
    metadata = [read_metadata(path) for path in images]
    assert [m.prompt for m in metadata] == ["a bird on a branch"] * 3 + ["two dogs"] * 3
    assert [m.index for m in metadata] == [0, 1, 2, 0, 1, 2]
    assert {m.seed for m in metadata} == {7}
    sheet = np.asarray(Image.open(grid))
    assert sheet.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    np.testing.assert_array_equal(sheet[4:68, 4:68], np.asarray(Image.open(images[0])))
    # One more row below, with the second prompt.
    np.testing.assert_array_equal(sheet[72:136, 72:136], np.asarray(Image.open(images[4])))


def test_same_seed_gives_the_same_bytes_alone_or_among_others(tiny_bundles, tmp_path):
    for name, arguments in {
        "one": ["-n", 1],
        "eight": ["-n", 8],
        "one-thread": ["-n", 2, "--threads", 1, "--no-cache"],
        "streams": ["-n", 8, "--streams", 2],
    }.items():
        result = galip_edge(
            "generate",
            "a bird",
            *arguments,
            "--model",
            tiny_bundles["int8"],
            "--out",
            tmp_path / name,
        )
        assert result.returncode == 0, result.stderr
    first = os.listdir(tmp_path / "one")[0]
    expected = (tmp_path / "one" / first).read_bytes()
    for name in ("eight", "one-thread", "streams"):
        assert (tmp_path / name / first).read_bytes() == expected


def test_json_is_for_programs(tiny_bundles, tmp_path):
    result = galip_edge(
        "generate", "a bird", "--json", "--model", tiny_bundles["int8"], "--out", tmp_path
    )
    (line,) = result.stdout.splitlines()
    item = json.loads(line)
    assert Path(item["path"]).is_file()
    assert (item["prompt"], item["seed"], item["index"]) == ("a bird", 0, 0)
    info = galip_edge("info", tiny_bundles["int8"], "--json")
    assert json.loads(info.stdout)["model_hash"] == item["model_hash"]


def test_truncation_is_recorded_and_has_names_of_its_own(tiny_bundles, tmp_path):
    command = ("generate", "a bird", "--model", tiny_bundles["int8"], "--out", tmp_path)
    plain = galip_edge(*command).stdout.strip()
    truncated = galip_edge(*command, "--psi", 0.5).stdout.strip()
    assert truncated == plain.replace(".png", "-psi0.5.png")
    assert (read_metadata(Path(plain)).psi, read_metadata(Path(truncated)).psi) == (1, 0.5)
    assert Path(plain).read_bytes() != Path(truncated).read_bytes()


def test_a_prompt_that_is_cut_is_announced(tiny_bundles, tmp_path):
    result = galip_edge(
        "generate", "word " * 100, "--model", tiny_bundles["int8"], "--out", tmp_path
    )
    assert result.returncode == 0
    assert "the prompt has 100 tokens, the model reads the first 75" in result.stderr


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "the prompt is empty"), ("  ", "the prompt is empty"), ("x" * 10_000, "10,000")],
)
def test_bad_prompt(prompt, words, tiny_bundles, tmp_path):
    result = galip_edge("generate", prompt, "--model", tiny_bundles["int8"], "--out", tmp_path)
    assert_one_clear_sentence(result, words)
    assert os.listdir(tmp_path) == []


def test_wrong_bundle_path(tmp_path):
    for command in (["generate", "a bird", "--model"], ["info"], ["verify"]):
        result = galip_edge(*command, tmp_path / "nothing")
        assert_one_clear_sentence(result, "no bundle at", "nothing")


def test_untrusted_text_in_an_error_cannot_command_the_terminal(tmp_path):
    result = galip_edge("info", tmp_path / "no\x1b[2Jthing\nError: forged")
    assert_one_clear_sentence(result, r"no\x1b[2Jthing Error: forged")
    assert "\x1b" not in result.stderr


def test_truncated_and_flipped_bundle(tiny_bundle, tmp_path):
    weights = tiny_bundle / "generator.bin"
    good = weights.read_bytes()
    for bad, words in ((good[:-7], "incomplete"), (good[:99] + b"!" + good[100:], "SHA-256")):
        weights.write_bytes(bad)
        for command in (["generate", "a bird", "--out", tmp_path / "o", "--model"], ["verify"]):
            assert_one_clear_sentence(galip_edge(*command, tiny_bundle), "generator.bin", words)
    assert not (tmp_path / "o").exists()


def test_without_a_model_the_embedded_one_is_used(tmp_path):
    result = galip_edge("generate", "a bird", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_metadata(Path(result.stdout.strip())).model == "aviary"


def test_where_none_is_embedded_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "bundle.py"))
    with pytest.raises(BundleError, match="--model .*galip-edge convert"):
        bundle.default_bundle()


def test_output_folder_that_is_a_file(tiny_bundles, tmp_path):
    (tmp_path / "file").write_text("")
    result = galip_edge(
        "generate", "a bird", "--model", tiny_bundles["int8"], "--out", tmp_path / "file" / "x"
    )
    assert_one_clear_sentence(result, "cannot write")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for a file system of its own; skipped where mounting is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", folder], capture_output=True, check=False)


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")


def test_read_only_output_folder(tiny_bundles, mounted):
    mount(mounted, "ro,size=1m")
    result = galip_edge("generate", "a bird", "--model", tiny_bundles["int8"], "--out", mounted)
    assert_one_clear_sentence(result, "cannot write", "Read-only file system")


def test_full_disk_keeps_what_was_finished(tiny_bundles, mounted):
    mount(mounted, "size=40k")
    result = galip_edge(
        "generate", "a bird", "-n", 40, "--model", tiny_bundles["int8"], "--out", mounted
    )
    assert_one_clear_sentence(result, "No space left on device", "free space")
    finished = [Path(line) for line in result.stdout.splitlines()]
    assert finished
    assert sorted(os.listdir(mounted)) == sorted(path.name for path in finished)
    for path in finished:
        Image.open(path).load()


def test_convert_from_a_damaged_or_hostile_checkpoint(tiny_checkpoint, tmp_path):
    import torch

    (tmp_path / "cut.safetensors").write_bytes(tiny_checkpoint.read_bytes()[:-100])
    result = galip_edge("convert", tmp_path / "cut.safetensors")
    assert_one_clear_sentence(result, "damaged or incomplete")

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {"netG": Bomb()}}, tmp_path / "bomb.pth")
    result = galip_edge("convert", tmp_path / "bomb.pth")
    assert_one_clear_sentence(result, "code hidden in it")
    assert not (tmp_path / "ran").exists()


def test_help_of_convert_groups_options_and_hides_former_spellings():
    text = galip_edge("convert", "--help").stdout
    for heading in ("Input:", "Precision:", "INT8 calibration:", "Output:", "Example:"):
        assert f"\n  {heading}\n" in text or f"\n{heading}\n" in text
    assert "--num-samples" in text
    assert "--samples" not in text
    assert "--mixed" not in text


def test_init_convert_generate_from_nothing(tmp_path):
    """The way of README's quick start, at the smallest size."""
    checkpoint, out = tmp_path / "tiny.safetensors", tmp_path / "bundle"
    assert galip_edge("init", checkpoint, "--preset", "tiny").returncode == 0
    assert_one_clear_sentence(galip_edge("init", checkpoint), "exists", "--force")
    result = galip_edge("convert", checkpoint, "--int8", "--samples", 4, "-o", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "bundle int8" in result.stderr
    again = galip_edge("convert", checkpoint, "--int8", "-o", out)
    assert_one_clear_sentence(again, "exists", "--force")
    assert galip_edge("verify", out).returncode == 0
    result = galip_edge("generate", "a bird", "-n", 2, "--model", out, "--out", tmp_path / "i")
    assert len(result.stdout.splitlines()) == 2


def test_debug_shows_the_traceback(tmp_path):
    for arguments in (["--debug", "info", tmp_path], ["info", tmp_path, "--debug"]):
        result = galip_edge(*arguments)
        assert result.returncode == 1
        assert "Traceback" in result.stderr


def test_version_names_openvino_and_instruction_sets():
    import openvino

    from runtime.cpu import instruction_sets
    from runtime.version import __version__

    out = galip_edge("--version").stdout
    assert f"galip-edge {__version__}" in out
    assert openvino.__version__.split("-")[0] in out
    assert all(name in out for name in instruction_sets())


def test_help_lists_every_command():
    from galip_edge.cli import COMMANDS

    out = galip_edge("--help").stdout
    assert all(name in out for name in COMMANDS)


def test_wrong_usage_exits_with_2():
    assert galip_edge("generate").returncode == 2
    assert galip_edge("generate", "a", "-n", "0").returncode == 2
    assert galip_edge("frobnicate").returncode == 2


def test_a_closed_pipe_is_no_error(tiny_bundles, tmp_path):
    command = [
        sys.executable,
        "-m",
        "galip_edge",
        "generate",
        "a",
        "-n",
        "30",
        "--model",
        str(tiny_bundles["int8"]),
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()

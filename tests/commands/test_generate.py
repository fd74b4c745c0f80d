"""`galip-edge generate` with prompts from standard input, and with one file as output."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def generate(*arguments, stdin=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "galip_edge", "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=stdin)


def test_prompts_from_standard_input(tmp_path):
    options = ("--out", tmp_path / "out")
    found = generate("-", *options, stdin="a røde bird\r\n\r\ntwo dogs\n".encode("utf-16"))
    assert found.returncode == 0, found.stderr
    assert b"Warning" not in found.stderr  # progress appears on a slow machine
    assert len(found.stdout.splitlines()) == 2
    again = generate("a røde bird", "two dogs", *options)
    assert again.stdout == found.stdout


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"\n\n", "standard input has no prompts"),
        (b"a bird\n" + b"x" * 3000, "line 2 of standard input: the prompt has 3,000 characters"),
    ],
)
def test_odd_standard_input_is_one_sentence(stdin, message, tmp_path):
    found = generate("-", "--out", tmp_path / "out", stdin=stdin)
    assert found.returncode == 1
    assert message in found.stderr.decode()
    assert not (tmp_path / "out").exists()


def test_one_file(tmp_path):
    folder = generate("a bird", "--out", tmp_path / "out")
    wanted = Path(folder.stdout.decode().strip()).read_bytes()
    single = generate("a bird", "--out", tmp_path / "new" / "x.png")
    assert single.stdout.decode().strip() == str(tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").read_bytes() == wanted
    streamed = generate("a bird", "--out", "-")
    assert streamed.stdout == wanted
    for name, kind in (("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.webp", "WEBP")):
        assert generate("a bird", "--out", tmp_path / name).returncode == 0
        assert Image.open(tmp_path / name).format == kind
    assert Image.open(io.BytesIO(streamed.stdout)).format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a bird", "-n", 2, "--out", "x.png"], "x.png takes one image, 2 were requested"),
        (["a bird", "two", "--out", "-"], "standard output takes one image, 2 were requested"),
        (["a bird", "--grid", "--out", "x.png"], "for --grid"),
        (["a bird", "--json", "--out", "-"], "omit --json"),
    ],
)
def test_more_than_one_file_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = generate(*arguments)
    assert found.returncode == 1
    assert message in found.stderr.decode()
    assert os.listdir(tmp_path) == []


def test_a_terminal_gets_no_image(tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "galip_edge", "generate", "a bird", "--out", "-"]
    found = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    os.close(ours)
    assert found.returncode == 1
    assert b"standard output is a terminal" in found.stderr

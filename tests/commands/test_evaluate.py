"""`galip-edge evaluate`: how many captions it takes."""

import json

import pytest
from click.testing import CliRunner

from galip_edge.cli import galip_edge

pytestmark = pytest.mark.slow


def evaluate(checkpoint, captions, *arguments):
    captions.write_text("a bird\na cat\na dog\n")
    arguments = ["evaluate", checkpoint, "--captions", captions, "--diversity-captions", 0,
                 "--device", "cpu", *arguments]  # fmt: skip
    return CliRunner().invoke(galip_edge, [*map(str, arguments)])


def test_fewer_captions_than_the_default_count_are_all_used(tiny_checkpoint, tmp_path):
    result = evaluate(tiny_checkpoint, tmp_path / "captions.txt", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["protocol"]["count"] == 3
    lines = evaluate(tiny_checkpoint, tmp_path / "captions.txt").stdout.splitlines()
    assert lines[0].split() == ["images", "3"]


def test_more_than_there_are_must_not_be_asked_for(tiny_checkpoint, tmp_path):
    result = evaluate(tiny_checkpoint, tmp_path / "captions.txt", "--count", 4)
    message = str(result.exception)
    assert "captions.txt has 3 captions, fewer than --count 4: pass --count 0 for all" in message


def test_one_caption_is_too_few(tiny_checkpoint, tmp_path):
    result = evaluate(tiny_checkpoint, tmp_path / "captions.txt", "--count", 0)
    assert result.exit_code == 0, result.output
    one = tmp_path / "one.txt"
    one.write_text("a bird\n")
    arguments = ["evaluate", str(tiny_checkpoint), "--captions", str(one), "--device", "cpu"]
    found = str(CliRunner().invoke(galip_edge, arguments).exception)
    assert "needs at least 2 captions" in found
    assert "one.txt has 1" in found

"""`evaluate` on the aviary, with its classifier, and the training of the classifier."""

import json

import pytest
from other_device import pretend_device

from galip_edge.aviary.classifier import AttributeClassifier, save_classifier
from galip_edge.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def elsewhere(monkeypatch):
    modules = ("galip_edge.devices", "galip_edge.aviary.commands.train_classifier")
    return pretend_device(monkeypatch, *(f"{module}.choose_device" for module in modules))


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


def test_diversity_is_compared_with_that_of_real_images(tiny_checkpoint, capsys):
    status, text, error = run(
        capsys, "evaluate", tiny_checkpoint, "--data", "aviary", "--count", 6,
        "--diversity-captions", 1, "--json",
    )  # fmt: skip
    assert status == 0, error
    assert json.loads(text)["metrics"]["diversity_pixels_real"] > 0


def test_everything_is_computed_on_the_device_that_is_asked_for(
    tiny_checkpoint, capsys, elsewhere, tmp_path
):
    judge = tmp_path / "judge.safetensors"
    save_classifier(AttributeClassifier(), judge)
    status, text, error = run(
        capsys, "evaluate", tiny_checkpoint, "--data", "aviary", "--count", 6,
        "--diversity-captions", 1, "--classifier", judge, "--device", "cuda", "--json",
    )  # fmt: skip
    assert status == 0, error
    assert json.loads(text)["metrics"].keys() >= {"clip_score", "cmmd", "attributes"}
    assert (6, 5) in elsewhere  # probabilities of the species


def test_the_classifier_is_trained_on_the_device_that_is_asked_for(capsys, elsewhere, tmp_path):
    status, _, error = run(
        capsys, "train-classifier", tmp_path / "judge.safetensors", "--samples", 64,
        "--epochs", 1, "--held-out", 2, "--device", "cuda",
    )  # fmt: skip
    assert status == 0, error
    assert (16, 3, 3, 3) in elsewhere  # its weights, to be saved


def test_the_aviary_has_no_folder(tiny_checkpoint, capsys):
    status, _, error = run(capsys, "evaluate", tiny_checkpoint, "--data", "aviary=images")
    assert status == 1
    assert "root='images' has no effect on data of kind 'aviary': omit it" in error

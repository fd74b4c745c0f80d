"""The judge of attributes: it learns, is kept, and counts only what captions state."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from galip_edge import devices
from galip_edge.aviary.classifier import (
    AttributeClassifier,
    ClassifierConfig,
    accuracy,
    agreement,
    load_classifier,
    save_classifier,
    train_classifier,
)
from galip_edge.aviary.data import ATTRIBUTES, AviaryConfig, AviarySource, Caption
from galip_edge.cli import main
from galip_edge.errors import CheckpointError


def source(samples, split="train") -> AviarySource:
    return AviarySource(AviaryConfig(image_size=64, samples=samples, split=split,
                                   variety="narrow", augment=False))  # fmt: skip


@pytest.fixture(scope="module")
def classifier() -> AttributeClassifier:
    return train_classifier(source(600), epochs=6, batch_size=32, config=ClassifierConfig())


def test_freed_memory_is_kept_during_training(monkeypatch):
    settings = []
    monkeypatch.setattr(devices, "_set_allocator", settings.append)
    train_classifier(source(4), epochs=1, batch_size=4, config=ClassifierConfig())
    assert settings == [devices._KEEPING, devices._DEFAULTS]


@pytest.mark.slow
def test_it_learns_from_a_few_pictures_what_is_plain_to_see(classifier):
    found = accuracy(classifier, source(200, "test"), 200)
    assert found["background"].right > 0.85  # by chance: 1/6
    assert found["pose"].right > 0.6  # by chance: 2/7
    assert found["body"].count == 200


class _Fixed(AttributeClassifier):
    """Finds value 1 of everything in bright images, and 0 in dark ones."""

    def classify(self, pixels, batch_size=64):
        return {name: (pixels.mean((1, 2, 3)) > 127).astype(int) for name in ATTRIBUTES}


def test_only_stated_attributes_count():
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    pixels[1:] = 255
    labels = [dict.fromkeys(ATTRIBUTES, value) for value in (0, 1, 0)]
    captions = [Caption("a", frozenset({"body"})), Caption("b", frozenset({"body", "pose"})),
                Caption("c", frozenset({"body", "size"}))]  # fmt: skip
    found = agreement(_Fixed(), pixels, labels, captions)
    assert (found["body"].right, found["body"].count) == (pytest.approx(2 / 3), 3)
    assert (found["pose"].right, found["pose"].count) == (1.0, 1)
    assert (found["size"].right, found["size"].count) == (0.0, 1)
    assert found["species"].count == 0
    assert np.isnan(found["species"].right)


def test_saved_and_loaded_it_judges_the_same(classifier, tmp_path):
    save_classifier(classifier, tmp_path / "judge.safetensors")
    loaded = load_classifier(tmp_path / "judge.safetensors")
    pixels = np.stack([np.asarray(source(40).image(i)) for i in range(40)])
    a, b = classifier.classify(pixels), loaded.classify(pixels)
    assert np.mean([a[name] == b[name] for name in ATTRIBUTES]) > 0.99  # float16
    whole, pieces = loaded.classify(pixels), loaded.classify(pixels, batch_size=7)
    assert np.mean([whole[name] == pieces[name] for name in ATTRIBUTES]) > 0.99


def test_dimensions_are_kept_with_the_weights(tmp_path):
    path = tmp_path / "judge.safetensors"
    config = ClassifierConfig(32, (4, 6, 8), layout=True)
    save_classifier(AttributeClassifier(config), path)
    loaded = load_classifier(path)
    assert loaded.config == config
    found = loaded.predict(np.zeros((2, 16, 16, 3), np.uint8))
    assert found["place"].shape == (2, 2)
    assert found["facing"].sum(1) == pytest.approx([1, 1], abs=1e-3)
    # Files of earlier versions do not state theirs.
    load_classifier(Path(__file__).parents[2] / "models/aviary-classifier.safetensors")


def test_files_that_are_no_classifier_are_refused(classifier, tmp_path):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(CheckpointError, match=r"judge\.safetensors"):
        load_classifier(path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match=r"judge\.safetensors"):
        load_classifier(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="other attributes"):
        load_classifier(path)
    known = {"attributes": json.dumps(ATTRIBUTES)}
    save_file({"x": torch.zeros(1)}, path, {**known, "config": '{"size": "x"}'})
    with pytest.raises(CheckpointError, match=r"judge\.safetensors"):
        load_classifier(path)
    save_file({"x": torch.zeros(1)}, path, known)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_classifier(path)


@pytest.mark.slow
def test_the_command_trains_writes_and_tests(tmp_path, capsys):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(SystemExit) as exit_:
        main(["train-classifier", str(path), "--samples", "128", "--epochs", "1", "--held-out",
              "20", "--json"])  # fmt: skip
    assert exit_.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["output"] == str(path)
    assert set(result["held_out"]) == {*ATTRIBUTES, "facing"}
    assert result["held_out"]["pose"]["count"] == 20
    load_classifier(path)

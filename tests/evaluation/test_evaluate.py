"""The whole evaluation, from a checkpoint to named figures."""

import json

import numpy as np
import pytest
import torch
from clip_runs import write_images
from other_device import pretend_device

from galip_edge import devices
from galip_edge.cli import main
from galip_edge.evaluation.evaluate import psnr
from galip_edge.evaluation.models import CheckpointModel
from runtime.errors import GalipEdgeError
from runtime.noise import draw_noise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images", 12)


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


def test_a_model_compared_with_itself_is_the_same(tiny_checkpoint, images, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    arguments = (tiny_checkpoint, "--reference", tiny_checkpoint, "--data", f"folder={images}",
                 "--count", 12, "--diversity-captions", 2)  # fmt: skip
    status, text, error = run(capsys, *arguments, "--out", out, "--json")
    assert status == 0, error
    result = json.loads(text)
    assert result["metrics"] == result["reference"]["metrics"]
    assert result["reference"]["psnr_db"]["worst"] > 100
    assert result["metrics"]["cmmd"] > 0
    assert result["metrics"]["diversity_pixels"] > 0
    assert json.loads(out.read_text()) == result
    assert run(capsys, *arguments, "--out", out)[0] == 0
    assert len(out.read_text().splitlines()) == 2


def test_the_batch_size_changes_no_figure(tiny_checkpoint, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"bird number {i}" for i in range(12)))
    figures = []
    for size in (1, 5):
        status, text, _ = run(
            capsys, tiny_checkpoint, "--captions", captions, "--count", 12, "--batch-size", size,
            "--diversity-captions", 2, "--json",
        )  # fmt: skip
        assert status == 0
        figures.append(json.loads(text)["metrics"])
    for name, value in figures[0].items():
        assert value == pytest.approx(figures[1][name], rel=1e-3), name


def test_freed_memory_is_kept_only_meanwhile(tiny_checkpoint, images, capsys, monkeypatch):
    settings = []
    monkeypatch.setattr(devices, "_set_allocator", settings.append)
    options = ("--data", f"folder={images}", "--count", 4, "--diversity-captions", 0)
    assert run(capsys, tiny_checkpoint, *options)[0] == 0
    assert settings == [devices._KEEPING, devices._DEFAULTS]


def test_images_have_the_noise_of_generate(tiny_checkpoint):
    model = CheckpointModel(tiny_checkpoint)
    config = model.model.config
    with torch.inference_mode():
        tokens = torch.from_numpy(model._tokenize(["a bird"]))
        noise = torch.from_numpy(draw_noise(3, "a bird", 2, config.noise_dim)[None])
        image = model.model.generator(noise, model.model.text_encoder(tokens)).clamp(-1, 1)
    expected = ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(model.images(["a bird"], [2], 3), expected)


def test_psnr_of_known_errors():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    other = images.copy()
    other[1] += 10
    assert psnr(images, other)["worst"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(images, other)["pooled"] == pytest.approx(10 * np.log10(255**2 / 50))
    with pytest.raises(GalipEdgeError, match="cannot be compared"):
        psnr(images, images[:, :2])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--data or --captions"),
        (("--captions", "missing.txt"), "missing.txt"),
        (("--data", "folder=nowhere"), "nowhere"),
        (("--data", "nonsense"), "nonsense"),
    ],
)
def test_mistakes_get_a_sentence(tiny_checkpoint, capsys, arguments, sentence):
    status, _, error = run(capsys, tiny_checkpoint, *arguments)
    assert status != 0
    assert sentence in error
    assert "Traceback" not in error


def test_too_few_captions(tiny_checkpoint, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("a bird\ntwo birds\n")
    status, _, error = run(capsys, tiny_checkpoint, "--captions", captions, "--count", 5)
    assert status == 1
    assert "captions.txt has 2 captions, fewer than --count 5" in error


def test_everything_is_computed_on_the_device_that_is_asked_for(
    tiny_checkpoint, images, capsys, monkeypatch
):
    elsewhere = pretend_device(monkeypatch, "galip_edge.devices.choose_device")
    status, text, error = run(
        capsys, tiny_checkpoint, "--data", f"folder={images}", "--count", 6,
        "--diversity-captions", 1, "--device", "cuda", "--json",
    )  # fmt: skip
    assert status == 0, error
    assert json.loads(text)["metrics"].keys() >= {"clip_score", "cmmd"}
    assert (6, 64, 64, 3) in elsewhere  # images
    assert (6, 32) in elsewhere  # embeddings

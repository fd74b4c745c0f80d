"""fid_published against a computation written from the protocol's description alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from galip_edge.cli import main
from galip_edge.evaluation.models import CheckpointModel
from galip_edge.evaluation.published import captions_of_passes, load_statistics
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torchvision's Inception with random weights, and its file."""
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), path


@pytest.fixture
def photos(tmp_path):
    """Three images with two captions each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image {i}\nphotograph {i}\n")
    return folder


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "real.npz"
    rng = np.random.default_rng(0)
    rows = rng.normal(0.3, 0.05, (100, 2048))
    np.savez(path, mu=rows.mean(0), sigma=np.cov(rows.T) + 1e-3 * np.eye(2048))
    return path


def independent(network, images, statistics) -> float:
    """From the description: [0,1], bilinear to 299, transform_input's arithmetic, FID."""
    unit = (torch.from_numpy(images) + 1) / 2
    large = torch.nn.functional.interpolate(unit, (299, 299), mode="bilinear")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    shown = large.numpy() * (std / 0.5)[:, None, None] + ((mean - 0.5) / 0.5)[:, None, None]
    assert shown[:, 0].min() >= -0.031
    assert shown[:, 2].max() <= 0.263
    seen = []
    hook = network.avgpool.register_forward_hook(lambda _, __, out: seen.append(out.flatten(1)))
    with torch.no_grad():
        network(torch.from_numpy(shown).float())
    hook.remove()
    features = torch.cat(seen).numpy().astype(np.float64)
    file = np.load(statistics)
    mu, sigma = file["mu"], file["sigma"]
    centred = features - features.mean(0)
    # tr (S1 S2)^1/2 for S2 = X'X / (N-1): the eigenvalues of the small matrix X S1 X' / (N-1).
    small = centred @ sigma @ centred.T / (len(features) - 1)
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(small), 0)).sum()
    ours = np.square(centred).sum() / (len(features) - 1)
    return np.square(features.mean(0) - mu).sum() + ours + np.trace(sigma) - 2 * overlap


def test_it_equals_the_formula_on_the_same_images(
    inception, tiny_checkpoint, photos, statistics, capsys
):
    network, weights = inception
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "evaluate", str(tiny_checkpoint), "--data", f"folder={photos}", "--count", "0",
                "--statistics", str(statistics), "--inception-torchvision", str(weights),
                "--per-caption", "--diversity-captions", "0", "--seed", "4", "--json",
            ]
        )  # fmt: skip
    output = capsys.readouterr()
    assert exit_.value.code == 0, output.err
    result = json.loads(output.out)
    assert result["published"]["images"] == 6
    captions = [f"{word} {i}" for i in range(3) for word in ("image", "photograph")]
    model = CheckpointModel(tiny_checkpoint)
    images = model.float_images(captions, range(6), 4).numpy()
    wanted = independent(network, images, statistics)
    assert result["metrics"]["fid_published"] == pytest.approx(wanted, rel=1e-6)
    assert result["metrics"]["fid_torchvision"] != pytest.approx(wanted, rel=1e-3)


def test_each_pass_draws_a_caption_of_every_image():
    captions = [("a", "b", "c"), ("d", "e"), ("f",)]
    drawn = list(captions_of_passes(captions, 50, seed=1))
    assert len(drawn) == 150
    assert all(caption in captions[i % 3] for i, caption in enumerate(drawn))
    assert set(drawn) == set("abcdef")
    assert drawn == list(captions_of_passes(captions, 50, seed=1))
    assert drawn != list(captions_of_passes(captions, 50, seed=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*real.npz"),
        (b"not an archive", "not a file of statistics"),
        ({"mu": np.zeros(2048)}, "must be an .npz with mu and sigma"),
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "of another network"),
        ({"mu": np.zeros(2048), "sigma": np.full((2048, 2048), np.nan)}, "non-finite"),
        ({"mu": np.array([{}]), "sigma": np.eye(2)}, "not a file of statistics"),  # pickled
    ],
)
def test_files_that_are_no_statistics_are_refused(tmp_path, content, message):
    path = tmp_path / "real.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(GalipEdgeError, match=message):
        load_statistics(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--statistics", "x.npz"], "needs --inception-torchvision"),
        (["--passes", "2"], "apply only to fid_published"),
        (
            ["--statistics", "x.npz", "--inception-torchvision", "y", "--passes", "2",
             "--per-caption"],
            "either --passes or --per-caption",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(tiny_checkpoint, tmp_path, capsys, options, message):
    (tmp_path / "x.npz").touch()
    options = [str(tmp_path / "x.npz") if option == "x.npz" else option for option in options]
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tiny_checkpoint), "--data", "folder=images", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err

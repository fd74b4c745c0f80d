"""Both Inceptions, with weights that we make: names, preparation, and files that are no weights."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from galip_edge.errors import CheckpointError
from galip_edge.evaluation import inception
from galip_edge.evaluation.inception import InceptionTF, InceptionTorchvision, fetch_weights
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torchvision_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "torchvision.pth"
    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tf_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "tf.pth"
    with pytest.MonkeyPatch.context() as patch:
        # The network without its weights: nothing is downloaded, nothing loaded.
        module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(module, lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("made", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def pixels(count, size=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_torchvision_prepares_images_as_published(torchvision_weights):
    features = InceptionTorchvision(torchvision_weights)(pixels(2))
    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    network.load_state_dict(torch.load(torchvision_weights, weights_only=True))
    seen = []
    network.avgpool.register_forward_hook(lambda _, __, out: seen.append(out.flatten(1)))
    images = torch.from_numpy(pixels(2)).permute(0, 3, 1, 2) / 255.0
    images = torch.nn.functional.interpolate(images, (299, 299), mode="bilinear") * 2 - 1
    with torch.no_grad():
        network.eval()(images)
    assert features.shape == (2, 2048)
    np.testing.assert_allclose(features, seen[0].numpy(), rtol=1e-3, atol=1e-4)


def test_tf_is_torch_fidelitys(tf_weights):
    network = FeatureExtractorInceptionV3(
        "known", ["2048"], feature_extractor_weights_path=str(tf_weights)
    )
    with torch.no_grad():
        wanted = network(torch.from_numpy(pixels(1)).permute(0, 3, 1, 2))[0]
    found = InceptionTF(tf_weights)(pixels(1))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("judge", [InceptionTF, InceptionTorchvision])
def test_weights_of_another_network_are_refused(judge, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        judge(path)


class _Hostile:
    def __reduce__(self):
        return (open, ("touched", "w"))


@pytest.mark.parametrize("judge", [InceptionTF, InceptionTorchvision])
def test_a_pickle_is_never_run(judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(_Hostile()))
    with pytest.raises(CheckpointError, match="not a file of Inception weights"):
        judge(path)
    torch.save({"model": _Hostile()}, path)
    with pytest.raises(CheckpointError, match="not a file of Inception weights"):
        judge(path)
    assert not (tmp_path / "touched").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        InceptionTorchvision(tmp_path / "none.pth")


def test_fetched_weights_are_checked_kept_and_used_again(tmp_path, monkeypatch):
    served = tmp_path / "served" / "weights.pth"
    served.parent.mkdir()
    served.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    monkeypatch.setitem(
        inception.WEIGHTS, "tf", inception.InceptionWeights(served.as_uri(), digest)
    )
    path = fetch_weights("tf", tmp_path / "cache")
    assert path.read_bytes() == b"weights"
    served.unlink()
    assert fetch_weights("tf", tmp_path / "cache") == path


@pytest.mark.parametrize("content", [None, b"something else"])
def test_what_cannot_be_fetched_is_explained(content, tmp_path, monkeypatch):
    served = tmp_path / "weights.pth"
    if content is not None:
        served.write_bytes(content)
    weights = inception.InceptionWeights(served.as_uri(), "00000000")
    monkeypatch.setitem(inception.WEIGHTS, "torchvision", weights)
    with pytest.raises(GalipEdgeError, match=r"weights\.pth.*--inception-torchvision FILE"):
        fetch_weights("torchvision", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())

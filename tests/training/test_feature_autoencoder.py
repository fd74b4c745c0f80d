"""The autoencoder of features: sizes, scales, and reproducible noise."""

import pytest
import torch

from galip_edge.models import ModelConfig
from galip_edge.training.feature_autoencoder import FeatureEncoder, feature_noise


def test_noise_on_features_belongs_to_the_sample():
    whole = feature_noise(1, 7, 0, torch.Size((4, 3, 2, 2)))
    assert torch.equal(whole[2:], feature_noise(1, 7, 2, torch.Size((2, 3, 2, 2))))
    assert not torch.equal(whole, feature_noise(1, 8, 0, torch.Size((4, 3, 2, 2))))
    many = feature_noise(1, 7, 0, torch.Size((8, 64, 8, 8)))
    assert abs(many.mean()) < 0.02
    assert many.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_encoder_has_the_size_and_scale_of_features(size):
    tiny = ModelConfig.from_dict(
        {"clip": {"image_size": 64, "patch_size": 16, "vision_width": 32, "vision_heads": 2},
         "block_sizes": [size], "block_channels": [24, 8]}
    )  # fmt: skip
    features = FeatureEncoder(tiny)(torch.rand(2, 3, size, size) * 2 - 1)
    assert features.shape == (2, 24, 4, 4)
    assert features.square().mean(1).detach() == pytest.approx(torch.ones(2, 4, 4), abs=1e-3)

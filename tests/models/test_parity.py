"""Our networks against what the original implementation computed with the same weights."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.full_size


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    difference = ours.detach().double().numpy() - theirs
    return float(np.linalg.norm(difference) / np.linalg.norm(theirs))


@pytest.fixture(scope="module")
def computed(full_size_model, parity):
    model, noise = full_size_model, torch.from_numpy(parity["z"])
    with torch.no_grad():
        sentence = model.text_encoder(torch.from_numpy(parity["tokens"]))
        condition = torch.cat([noise, sentence], dim=1)
        out = {"sentence": sentence, "bridge": model.generator.visual_features(noise, condition)}
        x = out["bridge"]
        for i, block in enumerate(model.generator.upsampling):
            x = block(x, condition)
            out[f"block{i}_mean_std"] = torch.stack([x.mean(), x.std()])
        out["image"] = model.generator(noise, sentence)
        real = torch.from_numpy(parity["real"].repeat(8, axis=2).repeat(8, axis=3))
        features, out["real_clip_embedding"] = model.image_encoder(real)
        out["real_clip_features"] = features[:, :, ::16]
        extracted = model.discriminator.extract(features)
        out["real_d_features"] = extracted[:, ::8]
        out["pred_real"] = model.discriminator.score(extracted, sentence)
    return out


@pytest.mark.parametrize(
    "entry",
    [
        "sentence",
        "bridge",
        *(f"block{i}_mean_std" for i in range(6)),
        "real_clip_embedding",
        "real_clip_features",
        "real_d_features",
        "pred_real",
    ],
)
def test_entry_is_reproduced(entry, computed, parity):
    assert computed[entry].shape == parity[entry].shape
    assert relative(computed[entry], parity[entry]) < 1e-4


def test_image_is_reproduced(computed, parity):
    # The reference is stored in float16: rounded alike, all but a few values are equal.
    assert relative(computed["image"].half(), parity["image"].astype(np.float64)) < 1e-4

"""The losses against what the authors' code computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.models import GALIP, PRESETS
from galip_edge.training.losses import LossConfig, discriminator_loss, generator_loss, hinge


@pytest.mark.full_size
def test_losses_and_gradients_equal_the_original(parity, full_size_files):
    expected = parity
    model = load_checkpoint(full_size_files["galip"], full_size_files["clip"]).model
    assert model.config.clip_input == "original"
    real = torch.from_numpy(expected["real"]).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.from_numpy(expected["z"])
    config = LossConfig()
    with torch.no_grad():
        sentence = model.text_encoder(torch.from_numpy(expected["tokens"]))
        features, _ = model.image_encoder(real)

    fake, embedding = model.image_encoder(model.generator(noise, sentence))
    d_loss = discriminator_loss(
        model.discriminator, features, fake, sentence, sentence.roll(-1, 0), config
    )
    d_loss.total.backward()
    d_norm = gradient_norm(model.discriminator)
    model.discriminator.requires_grad_(False)
    g_loss = generator_loss(model.discriminator, fake, embedding, sentence, config)
    g_loss.total.backward()

    actual = {
        "err_real": d_loss.real,
        "err_mismatch": d_loss.mismatch,
        "err_fake": d_loss.fake,
        "gradient_norm": d_loss.gradient_norm,
        "penalty": d_loss.penalty,
        "d_loss": d_loss.total,
        "similarity": g_loss.similarity,
        "g_loss": g_loss.total,
        "d_grad_norm": d_norm,
        "g_grad_norm": gradient_norm(model.generator),
    }
    for name, value in actual.items():
        np.testing.assert_allclose(value.detach().numpy(), expected[name], rtol=1e-3, err_msg=name)


def gradient_norm(module: torch.nn.Module) -> torch.Tensor:
    """In float64: a float32 sum over 50 million squares is 0.4 % off."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return sum(gradient.double().square().sum() for gradient in gradients).sqrt().float()


def test_hinge():
    scores = torch.tensor([-2.0, 0.0, 2.0])
    assert hinge(scores, real=True) == pytest.approx((3 + 1 + 0) / 3)
    assert hinge(scores, real=False) == pytest.approx((0 + 1 + 3) / 3)


def tiny_losses(scale: float = 1.0, **weights: float):
    torch.manual_seed(0)
    model = GALIP(PRESETS["tiny"])
    features, embedding = model.image_encoder(torch.rand(3, 3, 64, 64))
    fake = features.flip(0) * 0.9
    sentence = torch.randn(3, 32)
    config = LossConfig(**weights)
    arguments = (model.discriminator, features, fake, sentence, sentence.roll(-1, 0), config)
    return discriminator_loss(*arguments, scale), generator_loss(
        model.discriminator, fake, embedding, sentence, config
    )


def test_penalty_is_the_mean_power_of_the_gradient_norm():
    loss, _ = tiny_losses(penalty_weight=3.0, penalty_power=4.0)
    assert loss.penalty.item() == pytest.approx(3 * loss.gradient_norm.pow(4).mean().item())
    assert loss.total.item() == pytest.approx(
        (loss.real + (loss.fake + loss.mismatch) / 2 + loss.penalty).item()
    )


def test_gradient_scale_changes_nothing():
    plain, scaled = tiny_losses()[0], tiny_losses(scale=1024.0)[0]
    torch.testing.assert_close(plain.gradient_norm, scaled.gradient_norm)
    torch.testing.assert_close(plain.total, scaled.total)


def test_weights_of_zero_leave_terms_out():
    d_loss, g_loss = tiny_losses(penalty_weight=0.0, similarity_weight=0.0)
    assert d_loss.penalty == 0
    assert torch.equal(g_loss.total, g_loss.adversarial)


def test_penalty_has_a_finite_derivative_where_the_gradient_vanishes():
    model = GALIP(PRESETS["tiny"])
    torch.nn.init.zeros_(model.discriminator.to_score.weight)
    features = torch.randn(2, 3, 32, 4, 4)
    sentence = torch.randn(2, 32)
    loss = discriminator_loss(
        model.discriminator, features, features, sentence, sentence.roll(-1, 0), LossConfig()
    )
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in model.discriminator.parameters())


@pytest.mark.parametrize(
    ("name", "value"), [("penalty_weight", -1.0), ("similarity_weight", -2.0), ("penalty_power", 1)]
)
def test_bad_weights_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        LossConfig(**{name: value})

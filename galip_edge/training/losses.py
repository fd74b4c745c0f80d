"""GALIP's objective: both losses, term by term (paper, section 3.4).

Every term is a mean over samples, so the loss of a batch is the mean of the losses of equal
micro-batches, on any processes; only mismatched sentences must be selected from the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from galip_edge.config import check_not_negative
from galip_edge.models import Discriminator


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objective. The defaults are the authors'.

    Attributes:
        penalty_weight: of the matching-aware gradient penalty (k in L_D); 0 disables it.
        penalty_power: exponent of the gradient norm (p in L_D).
        similarity_weight: of CLIP similarity in the generator's loss (lambda in L_G); 0
            disables it.
    """

    penalty_weight: float = 2.0
    penalty_power: float = 6.0
    similarity_weight: float = 4.0

    def __post_init__(self) -> None:
        check_not_negative(self, "penalty_weight", "similarity_weight")
        if self.penalty_power < 2:  # otherwise the derivative diverges at a zero gradient
            raise ValueError(f"penalty_power must be at least 2, got {self.penalty_power!r}")


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's loss and its terms: scalars, except `gradient_norm` (B,)."""

    total: Tensor
    real: Tensor
    mismatch: Tensor
    fake: Tensor
    penalty: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True)
class GeneratorLoss:
    """The generator's loss and its terms, scalars; `similarity` is a mean cosine in [-1,1]."""

    total: Tensor
    adversarial: Tensor
    similarity: Tensor


def hinge(scores: Tensor, real: bool, weights: Tensor | None = None) -> Tensor:
    """Hinge loss: mean of max(0, 1 - score) for real images, of max(0, 1 + score) for others.

    Args:
        scores: (B,1,1,1).
        real: True if high scores are correct.
        weights: (B,) factors of the samples. Default: 1.
    """
    each = F.relu(1 - scores if real else 1 + scores).float()
    return each.mean() if weights is None else (each.flatten() * weights).mean()


def discriminator_loss(
    discriminator: Discriminator,
    real: Tensor,
    fake: Tensor,
    sentence: Tensor,
    mismatched: Tensor,
    config: LossConfig,
    gradient_scale: float | Tensor = 1.0,
    mismatch_weights: Tensor | None = None,
) -> DiscriminatorLoss:
    """L_D: hinge losses of real, mismatched and generated images, and gradient penalty.

    The inner derivative is functional (`torch.func`), because torch.compile does not support the
    second derivative of a compiled module.

    Args:
        discriminator: with parameters that require gradients.
        real, fake: its inputs for real and generated images, (B,...); gradients do not reach them.
        sentence: (B,E) sentence embeddings of both.
        mismatched: (B,E) sentence embeddings of other images.
        config: weights.
        gradient_scale: factor of the scores when they are differentiated for the penalty, against
            underflow in float16.
        mismatch_weights: (B,), 0 for samples without a mismatched sentence. Default: all 1.
    """

    def scaled_score(real: Tensor, sentence: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        extracted = discriminator.extract(real)
        score = discriminator.score(extracted, sentence)
        return score.sum() * gradient_scale, (score, extracted)

    # Real images with their own, and with mismatched sentences.
    differentiate = torch.func.grad(scaled_score, argnums=(0, 1), has_aux=True)
    gradients, (score, extracted) = differentiate(real.detach(), sentence.detach())
    real_loss = hinge(score, real=True)
    mismatch_score = discriminator.score(extracted, mismatched)
    mismatch_loss = hinge(mismatch_score, real=False, weights=mismatch_weights)

    # Generated images with the sentences they were generated from.
    fake_loss = hinge(discriminator(fake.detach(), sentence.detach()), real=False)

    # Matching-aware gradient penalty: smooth scores around matching images and sentences.
    squared_norm = _squared_norm(gradients, gradient_scale)
    penalty = config.penalty_weight * (squared_norm ** (config.penalty_power / 2)).mean()

    total = real_loss + (fake_loss + mismatch_loss) / 2 + penalty
    norm = squared_norm.detach().sqrt()
    return DiscriminatorLoss(total, real_loss, mismatch_loss, fake_loss, penalty, norm)


def _squared_norm(gradients: tuple[Tensor, ...], scale: float | Tensor) -> Tensor:
    """Squared norm (B,) of each sample's gradients, in float32.

    Squared, because the square root has no derivative at zero.
    """
    flat = torch.cat([g.float().flatten(1) for g in gradients], dim=1) / scale
    return flat.square().sum(dim=1)


def generator_loss(
    discriminator: Discriminator,
    fake: Tensor,
    embedding: Tensor,
    sentence: Tensor,
    config: LossConfig,
) -> GeneratorLoss:
    """L_G: negative score of generated images, minus weighted CLIP similarity.

    Args:
        discriminator: its parameters need no gradients here.
        fake: its input for generated images, (B,...), with gradients.
        embedding: (B,E) CLIP image embeddings of the same images, with gradients.
        sentence: (B,E) sentence embeddings that the images were generated from.
        config: weights.
    """
    adversarial = -discriminator(fake, sentence).float().mean()
    similarity = F.cosine_similarity(embedding.float(), sentence.float()).mean()
    total = adversarial - config.similarity_weight * similarity
    return GeneratorLoss(total, adversarial, similarity)

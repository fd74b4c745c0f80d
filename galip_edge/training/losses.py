"""GALIP's objective: both losses, term by term (paper, section 3.4).

Every term is a mean over samples. The loss of a large batch is therefore the mean of the losses of
its equal parts, wherever those are computed; only the mismatched sentences must have been taken
from the whole batch before it was split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from galip_edge.models import Discriminator


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objective. The defaults are the authors'.

    Attributes:
        penalty_weight: of the matching-aware gradient penalty; 0 leaves it out.
        penalty_power: of the gradient's norm in it.
        similarity_weight: of the CLIP similarity in the generator's loss; 0 leaves it out.
    """

    penalty_weight: float = 2.0
    penalty_power: float = 6.0
    similarity_weight: float = 4.0

    def __post_init__(self) -> None:
        for name in ("penalty_weight", "similarity_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if self.penalty_power < 2:  # below, the derivative has a pole at a vanishing gradient
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
    """Mean of max(0, 1 - score) for what should pass as real, of max(0, 1 + score) otherwise.

    Args:
        scores: (B,1,1,1).
        real: whether they should be high.
        weights: (B,) factors of the samples; by default 1.
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
    """Tell real images from generated ones, and from real ones with another image's sentence.

    The inner derivative is taken functionally (`torch.func`), so that torch.compile can compile
    the whole: it does not support the second derivative of a compiled module.

    Args:
        discriminator: with its parameters requiring gradients.
        real, fake: what it reads of real and of generated images, (B,...), without history.
        sentence: (B,E) sentence embeddings of both.
        mismatched: (B,E) sentence embeddings of other images.
        config: weights.
        gradient_scale: factor on the scores while they are differentiated for the penalty, so
            that the gradients do not vanish in float16.
        mismatch_weights: (B,), 0 for samples without a mismatched sentence; by default all 1.
    """

    def scaled_score(real: Tensor, sentence: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        extracted = discriminator.extract(real)
        score = discriminator.score(extracted, sentence)
        return score.sum() * gradient_scale, (score, extracted)

    # Real images with their own sentences, and with others'.
    differentiate = torch.func.grad(scaled_score, argnums=(0, 1), has_aux=True)
    gradients, (score, extracted) = differentiate(real.detach(), sentence.detach())
    real_loss = hinge(score, real=True)
    mismatch_score = discriminator.score(extracted, mismatched)
    mismatch_loss = hinge(mismatch_score, real=False, weights=mismatch_weights)

    # Generated images with the sentences they were generated from.
    fake_loss = hinge(discriminator(fake.detach(), sentence.detach()), real=False)

    # Matching-aware gradient penalty: the score is to be smooth where image and sentence match.
    squared_norm = _squared_norm(gradients, gradient_scale)
    penalty = config.penalty_weight * (squared_norm ** (config.penalty_power / 2)).mean()

    total = real_loss + (fake_loss + mismatch_loss) / 2 + penalty
    norm = squared_norm.detach().sqrt()
    return DiscriminatorLoss(total, real_loss, mismatch_loss, fake_loss, penalty, norm)


def _squared_norm(gradients: tuple[Tensor, ...], scale: float | Tensor) -> Tensor:
    """Squared norm (B,) of each sample's gradients, in float32.

    It is kept squared, because the root has no derivative at zero.
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
    """Be taken for real, and be what the sentence says in CLIP's eyes.

    Args:
        discriminator: judges; its own parameters need no gradients here.
        fake: what it reads of generated images, (B,...), with history.
        embedding: (B,E) CLIP image embeddings of the same images, with history.
        sentence: (B,E) sentence embeddings they were generated from.
        config: weights.
    """
    adversarial = -discriminator(fake, sentence).float().mean()
    similarity = F.cosine_similarity(embedding.float(), sentence.float()).mean()
    total = adversarial - config.similarity_weight * similarity
    return GeneratorLoss(total, adversarial, similarity)

"""A second discriminator, on frozen features of a network trained on ImageNet.

A small CLIP discards much of an image: a ViT with patches of 16 projects 768 pixel values to 192,
and a discriminator behind it cannot detect what is lost. Additional heads score the images by
features of EfficientNet-Lite0 at four scales (projected GANs, Sauer et al. 2021,
https://arxiv.org/abs/2111.01007; conditional as in StyleGAN-T, https://arxiv.org/abs/2301.09515).
The section `[projected]` of a training configuration enables them; they are not part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.config import check_integers, check_not_negative, check_positive
from galip_edge.errors import CheckpointError
from galip_edge.models.efficientnet import EfficientNetLite, FeaturePyramid, folded_weights
from galip_edge.training.losses import hinge
from galip_edge.training.micro_batch import same_sentences

_SLOPE = 0.2
_GRID = 4  # largest side of a head's grid of scores

MATCHER = "matcher."  # prefix of its tensors among those of the heads
QUEUE = f"{MATCHER}recent"  # of negatives, whose length may change

# The contrastive loss: number of attention maps that pool the result of a head, length of the
# embeddings that it compares, and the largest factor of their cosine, as in CLIP.
_MAPS, _MATCHED, _LARGEST_SCALE = 4, 256, 100.0


@dataclass(frozen=True)
class ProjectedConfig:
    """Settings of the discriminator. The default disables it, as published.

    Attributes:
        weight: of its score in the generator's loss, relative to the CLIP-based discriminator.
        matching_weight: of the contrastive loss between images and sentences, in the losses of
            heads and generator; 0 disables it. A single mismatched sentence mostly differs in the
            largest attributes, so the scores alone neglect small ones. In the generator's loss it
            counts as far as an image is recognized worse than the real image of its sentence.
        negatives: number of sentences of previous batches among which the contrastive loss seeks an
            image's own, in addition to those of the batch. The more, the more differ in a detail
            alone (a queue as in MoCo, He et al. 2020, https://arxiv.org/abs/1911.05722).
        learning_rate: of the heads.
        width, projection: channels of each head, and of its fixed random input projection.
        features: file of EfficientNet-Lite0's weights, written by `benchmarks/gpu_pack.py`.
            Default: those of the package.
    """

    weight: float = 0.0
    matching_weight: float = 0.0
    negatives: int = 0
    learning_rate: float = 2e-4
    width: int = 96
    projection: int = 64
    features: str | None = None

    def __post_init__(self) -> None:
        check_not_negative(self, "weight", "matching_weight")
        check_positive(self, "learning_rate")
        check_integers(self, 1, "width", "projection")
        check_integers(self, 0, "negatives")
        if self.negatives and not self.matching_weight:
            raise ValueError(
                f"negatives is {self.negatives}, but there is no contrastive loss: set "
                "matching_weight"
            )


@dataclass(frozen=True)
class ProjectedLoss:
    """Loss of the heads and its terms, scalars: means over samples, positions and heads.

    `matching` is the unweighted contrastive loss of real images, in nats; 0 if it is disabled.
    `matching_each` (B,), detached, is its value for each of them.
    """

    total: Tensor
    real: Tensor
    mismatch: Tensor
    fake: Tensor
    matching: Tensor
    matching_each: Tensor


class _Head(nn.Module):
    """Features at one scale and a sentence embedding to a grid of scores."""

    def __init__(self, channels: int, grid: int, sentence: int, config: ProjectedConfig) -> None:
        super().__init__()
        projection = torch.randn(config.projection, channels, 1, 1) / math.sqrt(channels)
        self.register_buffer("projection", projection)
        width, halvings = config.width, max(0, (grid // _GRID).bit_length() - 1)
        layers: list[nn.Module] = []
        before = config.projection
        for kernel, stride in (*[(4, 2)] * min(2, halvings), (3, 1)):
            layers.append(spectral_norm(nn.Conv2d(before, width, kernel, stride, 1)))
            layers.append(nn.LeakyReLU(_SLOPE))
            before = width
        self.layers = nn.Sequential(*layers)
        self.to_score = spectral_norm(nn.Conv2d(width, 1, 1))
        self.to_direction = spectral_norm(nn.Linear(sentence, width))
        self.projection: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Features (B,C,h,w) -> (B,width,h',w').

        They are divided by their root mean square, because scales differ in magnitude, and the
        largest would dominate the generator's gradient.
        """
        square = features.float().square().mean((1, 2, 3), keepdim=True)
        features = features * torch.rsqrt(square + 1e-6).to(features.dtype)
        found: Tensor = self.layers(nn.functional.conv2d(features, self.projection))
        return found

    def score(self, found: Tensor, sentence: Tensor) -> Tensor:
        """The result of `forward`, and (B,E) sentence embeddings -> (B,1,h',w')."""
        direction = self.to_direction(sentence)[:, :, None, None]
        matching = (found * direction).sum(1, keepdim=True) / math.sqrt(found.shape[1])
        score: Tensor = self.to_score(found) + matching
        return score


class _Matcher(nn.Module):
    """Similarity of images and sentences, from the results of all heads.

    Learned attention maps pool these results: a mean over positions hides details.

    Args:
        heads: number of heads.
        width: channels of each.
        sentence: length of sentence embeddings.
        negatives: length of the queue.

    Attributes:
        recent: (negatives,E) sentence embeddings of previous batches, the newest first; rows that
            are not filled yet are zero.
    """

    recent: Tensor

    def __init__(self, heads: int, width: int, sentence: int, negatives: int) -> None:
        super().__init__()
        self.register_buffer("recent", torch.zeros(negatives, sentence))
        self.to_maps = nn.ModuleList(nn.Conv2d(width, _MAPS, 1) for _ in range(heads))
        self.to_image = nn.Linear(heads * width * _MAPS, _MATCHED)
        self.to_sentence = nn.Linear(sentence, _MATCHED)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, found: Sequence[Tensor], sentences: Tensor) -> Tensor:
        """Results of the heads (B,width,h,w), and sentence embeddings (S,E) -> logits (B,S).

        In float32, because a cosine is multiplied by a large factor.
        """
        with torch.autocast(sentences.device.type, enabled=False):
            pooled = [_pool(each.float(), to_maps) for each, to_maps in zip(found, self.to_maps)]
            images = nn.functional.normalize(self.to_image(torch.cat(pooled, dim=1)), dim=1)
            texts = nn.functional.normalize(self.to_sentence(sentences.float()), dim=1)
            return self.log_scale.exp().clamp(max=_LARGEST_SCALE) * images @ texts.T


def _pool(found: Tensor, to_maps: nn.Module) -> Tensor:
    """Features (B,C,h,w) -> (B,maps*C): means over positions, weighted by attention maps."""
    weights = to_maps(found).flatten(2).softmax(dim=2)
    return (weights @ found.flatten(2).transpose(1, 2)).flatten(1)


class _Heads(nn.ModuleList):
    """Heads from the finest scale to the coarsest.

    Attributes:
        matcher: None without a contrastive loss.
    """

    def __init__(self, heads: Iterable[_Head], matcher: _Matcher | None) -> None:
        super().__init__(heads)
        self.matcher = matcher

    def __iter__(self) -> Iterator[_Head]:
        return (module for module in super().__iter__() if isinstance(module, _Head))


class ProjectedDiscriminator(nn.Module):
    """Heads on the frozen features of EfficientNet-Lite0 at strides 4, 8, 16 and 32.

    Spectral norms are estimated once per step (`refine_norms`), not in every forward pass, so a
    step does not depend on the division of its batch.

    Args:
        image_size: side of the images in pixels, a multiple of 32.
        sentence: length of sentence embeddings.
        config: dimensions.
        seed: of the initial weights and the fixed projections.

    Raises:
        GalipEdgeError: EfficientNet-Lite0 is not installed.
        ValueError: `image_size` is not a multiple of 32.
    """

    def __init__(self, image_size: int, sentence: int, config: ProjectedConfig, seed: int) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(
                f"projected.weight needs an image size that is a multiple of 32, got {image_size}"
            )
        self.backbone = _read_pyramid(config.features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = [
                _Head(channels, image_size >> (2 + scale), sentence, config)
                for scale, channels in enumerate(self.backbone.channels)
            ]
            matcher = (
                _Matcher(len(heads), config.width, sentence, config.negatives)
                if config.matching_weight
                else None
            )
        self.heads = _Heads(heads, matcher)
        self._matching_weight = config.matching_weight
        self.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> features at four scales; gradients reach the images."""
        found: list[Tensor] = self.backbone(images)
        return found

    @torch.no_grad()
    def refine_norms(self) -> None:
        """One power iteration for every spectral norm."""
        self.heads.train()
        for layer in self.heads.modules():
            if is_parametrized(layer):
                _ = layer.weight  # computing it iterates
        self.heads.eval()

    def discriminator_loss(
        self,
        real: Sequence[Tensor],
        fake: Sequence[Tensor],
        sentence: Tensor,
        mismatched: Tensor,
        mismatch_weights: Tensor | None = None,
        others: Tensor | None = None,
    ) -> ProjectedLoss:
        """Hinge losses as of the CLIP-based discriminator, without the gradient penalty.

        Args:
            real, fake: features at four scales; gradients do not reach them.
            sentence, mismatched: (B,E) sentence embeddings of both, and of other images.
            mismatch_weights: (B,), 0 for samples without a mismatched sentence. Default: all 1.
            others: (S,E) sentence embeddings for the contrastive loss. Default: `sentence`.
        """
        terms = []
        matched_by: list[Tensor] = []
        for head, a, b in zip(self.heads, real, fake):
            matched_by.append(found := head(a.detach()))
            other = head.score(found, mismatched)
            weights = mismatch_weights
            if weights is not None:
                weights = weights[:, None].expand(-1, other[0].numel()).flatten()
            terms.append(
                torch.stack(
                    [
                        hinge(head.score(found, sentence), real=True),
                        hinge(other, real=False, weights=weights),
                        hinge(head.score(head(b.detach()), sentence), real=False),
                    ]
                )
            )
        matched, mismatch, generated = torch.stack(terms).mean(0)
        each = self._matching(matched_by, sentence, others)
        matching = each.mean()
        total = matched + (mismatch + generated) / 2 + self._matching_weight * matching
        return ProjectedLoss(total, matched, mismatch, generated, matching, each.detach())

    @torch.no_grad()
    def remember(self, sentences: Tensor) -> None:
        """Keep the sentence embeddings (S,E) of a batch as negatives for the next ones.

        Non-finite ones, whose step is skipped, become zero, as rows that are not filled yet.
        """
        if self.heads.matcher is not None:
            recent = self.heads.matcher.recent
            finite = sentences.isfinite().all(1, keepdim=True)
            kept = torch.where(finite, sentences, 0).to(recent)
            recent.copy_(torch.cat([kept, recent])[: len(recent)])

    def adversarial(self, fake: Sequence[Tensor], sentence: Tensor) -> Tensor:
        """The generator's loss: the negative mean score of generated images, a scalar."""
        scores = [
            head.score(head(features), sentence).float().mean()
            for head, features in zip(self.heads, fake)
        ]
        return -torch.stack(scores).mean()

    def matching(
        self, fake: Sequence[Tensor], sentence: Tensor, others: Tensor, real: Tensor
    ) -> Tensor:
        """The generator's contrastive loss in nats, a scalar; 0 if it is disabled.

        A real image of a terse sentence matches more specific sentences better. Without a bound,
        the generator would avoid all that a sentence leaves open, such as any color with a name.

        Args:
            fake: features at four scales.
            sentence: (B,E) embeddings of the sentences that they were generated from.
            others: (S,E) other sentence embeddings.
            real: (B,) losses of the real images of the same sentences, as lower bounds.
        """
        found = [head(features) for head, features in zip(self.heads, fake)]
        return torch.relu(self._matching(found, sentence, others) - real).mean()

    def _matching(self, found: Sequence[Tensor], sentence: Tensor, others: Tensor | None) -> Tensor:
        """Cross entropy (B,) of images' own sentences among their own and all others."""
        if self.heads.matcher is None:
            return sentence.new_zeros(len(sentence))
        recent = self.heads.matcher.recent
        others = torch.cat([sentence if others is None else others, recent.to(sentence)])
        logits = self.heads.matcher(found, torch.cat([sentence, others]))
        own = torch.diagonal(logits)
        left_out = same_sentences(sentence, others) | (others == 0).all(1)
        rest = logits[:, len(sentence) :].masked_fill(left_out, -torch.inf)
        loss: Tensor = torch.cat([own[:, None], rest], dim=1).logsumexp(1) - own
        return loss


def _read_pyramid(file: str | None) -> FeaturePyramid:
    if file is None:
        return FeaturePyramid(folded_weights(EfficientNetLite(0)))
    tensors, _ = read_weights(Path(file))
    try:
        return FeaturePyramid(tensors)
    except KeyError as error:
        raise CheckpointError(
            f"{file} has no tensor {error}: not a file of EfficientNet-Lite0's features; write one "
            "with python benchmarks/gpu_pack.py"
        ) from error

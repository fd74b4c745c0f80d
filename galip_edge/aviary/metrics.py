"""Metrics of generated birds, from the attributes that the classifier recognizes.

Accuracy is measured on the attributes that captions state. Models of low diversity are detected by
the others: the values of attributes that captions leave open, the layouts of images of one caption,
and the share of images that are mixtures of two values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from galip_edge.aviary.classifier import FACING, AttributeClassifier, agreement, load_classifier
from galip_edge.aviary.data import ATTRIBUTES, NOISE_DIM, AviarySource, Caption
from galip_edge.evaluation.clip_space import CLIPScorer, diversity
from runtime.arrays import Floats, Images
from runtime.errors import GalipEdgeError

Probabilities = Mapping[str, Floats]

# Images with a lower top probability of body or background count as mixtures.
_CLEAR = 0.8

# Components of a layout, in addition to the place.
_CHOICES = ("facing", "species", "pose", "body", "background")


class AviaryMetrics:
    """The metrics of images generated from the aviary's captions: `ExtraMetrics` of `evaluate`.

    Args:
        source: of captions and real images.
        scorer: CLIP.
        classifier: without it, only diversity is measured.
    """

    def __init__(
        self,
        source: AviarySource,
        scorer: CLIPScorer,
        classifier: AttributeClassifier | None = None,
    ) -> None:
        self._source, self._scorer, self._classifier = source, scorer, classifier
        self._second = source.with_seed(1)

    @classmethod
    def with_classifier(
        cls, source: AviarySource, scorer: CLIPScorer, path: Path, device: torch.device
    ) -> AviaryMetrics:
        """Metrics with the classifier of a file. Raises CheckpointError."""
        return cls(source, scorer, load_classifier(path).to(device))

    def second_real(self, index: int) -> Images:
        """Real image `index` (H,W,3) of a second set from the same distribution."""
        return np.asarray(self._second.image(index))

    def measure(self, pixels: Images, captions: Sequence[str]) -> dict[str, Any]:
        """Accuracy of stated attributes, distribution of the others, and share of mixtures.

        Raises GalipEdgeError if the captions are not the first ones of the source.
        """
        if self._classifier is None:
            return {}
        described = self._described(len(captions))
        if [caption.text for caption in described] != list(captions):
            raise GalipEdgeError("attributes can only be checked for the aviary's own captions")
        labels = [self._source.scene(i).labels() for i in range(len(captions))]
        right = agreement(self._classifier, pixels, labels, described)
        found = self._classifier.predict(pixels)
        return {
            "attributes": {name: asdict(value) for name, value in right.items() if value.count},
            "mixed": mixed_share(found),
            "unstated": unstated_shares(found, described),
        }

    def diversity(self, groups: list[Images], seed: int) -> dict[str, Any]:
        """Diversity of real images of the same captions, and of layouts."""
        rng, (k, size) = np.random.default_rng(seed), groups[0].shape[:2]
        real_groups = []
        for i in range(len(groups)):
            noises = rng.standard_normal((k, NOISE_DIM), dtype=np.float32)
            drawn = [self._source.another(i, noise, size)[1] for noise in noises]
            real_groups.append(np.stack([np.asarray(image) for image in drawn]))
        embedding, rms = diversity(real_groups, self._scorer)
        metrics: dict[str, Any] = {"diversity_clip_real": embedding, "diversity_pixels_real": rms}
        if self._classifier is not None and self._classifier.config.layout:
            described = self._described(len(groups))
            for suffix, images in (("", groups), ("_real", real_groups)):
                found = [self._classifier.predict(pixels) for pixels in images]
                metrics[f"diversity_layout{suffix}"] = layout_diversity(found, described)
        return metrics

    def _described(self, count: int) -> list[Caption]:
        return [self._source.described(i)[0] for i in range(count)]


def mixed_share(found: Probabilities) -> float:
    """Share of images with a top probability of body or background below 0.8.

    Args:
        found: probabilities (N,values) by attribute.
    """
    clear = [found[name].max(axis=1) >= _CLEAR for name in ("body", "background")]
    return float(1 - np.mean(clear[0] & clear[1]))


def unstated_shares(
    found: Probabilities, captions: Sequence[Caption]
) -> dict[str, dict[str, float]]:
    """Distribution of each attribute over images whose captions leave it open.

    Args:
        found: probabilities (N,values) by attribute; captions never state `facing`.
        captions: N, of the images.

    Returns:
        Shares by attribute and value, without attributes that every caption states.
    """
    result = {}
    for name, values in {**ATTRIBUTES, "facing": FACING}.items():
        rows = [i for i, caption in enumerate(captions) if name not in caption.states]
        if name in found and rows:
            chosen = found[name][rows].argmax(axis=1)
            result[name] = {v: float(np.mean(chosen == k)) for k, v in enumerate(values)}
    return result


def layout_diversity(
    groups: Sequence[Probabilities], captions: Sequence[Caption]
) -> dict[str, float]:
    """Difference between layouts of images of one caption, mean over captions and pairs.

    Args:
        groups: for each caption, probabilities (K,values) and `place` (K,2) of its images.
        captions: one for each group; attributes that it states are not compared.

    Returns:
        The share of differing pairs for facing, species, pose, body and background, and for `place`
        the distance in image widths.
    """
    apart: dict[str, list[float]] = {}
    for found, caption in zip(groups, captions, strict=True):
        for name in _CHOICES:
            if name in found and name not in caption.states:
                chosen = found[name].argmax(axis=1)
                differ = [a != b for a, b in combinations(chosen.tolist(), 2)]
                apart.setdefault(name, []).append(float(np.mean(differ)))
        if "place" in found:
            gaps = [np.linalg.norm(a - b) for a, b in combinations(found["place"], 2)]
            apart.setdefault("place", []).append(float(np.mean(gaps)))
    return {name: float(np.mean(values)) for name, values in apart.items()}

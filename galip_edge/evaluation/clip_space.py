"""Metrics in CLIP's embedding space: agreement with captions, and diversity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from galip_edge.models import GALIP
from galip_edge.models.clip import CLIPImageEncoder
from galip_edge.models.config import CLIPInput
from galip_edge.tokenizer import build_tokenizer
from runtime.arrays import Floats, Images


class CLIPScorer:
    """CLIP embeddings of images and captions. Scores of different CLIPs are not comparable.

    Args:
        model: its CLIP is used, on its device.
    """

    def __init__(self, model: GALIP) -> None:
        self._model = model
        self._device = next(model.clip.parameters()).device
        self._tokenize = build_tokenizer(model.config.clip)
        self._encoders = {
            form: CLIPImageEncoder(model.clip.visual, model.config.clip, (), form)
            for form in ("standard", "original")
        }

    @torch.inference_mode()
    def images(self, pixels: Images, form: CLIPInput = "standard") -> Floats:
        """(N,H,W,3) uint8 -> normalized image embeddings (N,E)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        _, embedding = self._encoders[form](images)
        return torch.nn.functional.normalize(embedding, dim=1).cpu().numpy()

    @torch.inference_mode()
    def sentences(self, captions: Sequence[str]) -> Floats:
        """Normalized sentence embeddings (N,E)."""
        rows = []
        for at in range(0, len(captions), 64):
            tokens = torch.from_numpy(self._tokenize(list(captions[at : at + 64])))
            embeddings = self._model.text_encoder(tokens.to(self._device))
            rows.append(torch.nn.functional.normalize(embeddings, dim=1).cpu())
        return torch.cat(rows).numpy()


def clip_score(images: Floats, sentences: Floats) -> float:
    """Mean cosine similarity of normalized image and sentence embeddings (N,E)."""
    return float((images.astype(np.float64) * sentences).sum(axis=1).mean())


def r_precision(
    images: Floats,
    sentences: Floats,
    captions: Sequence[str],
    seed: int = 0,
    candidates: int = 100,
) -> float:
    """Share of images whose own caption is nearer than 99 random ones (Xu et al. 2018).

    Args:
        images, sentences: (N,E) normalized.
        captions: of the images; equal captions are never used as negatives.
        seed: for drawing negatives.
        candidates: number of captions, or all distinct ones if there are fewer.

    Raises:
        ValueError: all captions are equal.
    """
    distinct = {caption: i for i, caption in enumerate(captions)}
    rows = np.fromiter(distinct.values(), dtype=int)
    number = {caption: k for k, caption in enumerate(distinct)}
    if len(rows) < 2:
        raise ValueError("R-precision needs at least 2 different captions")
    rng, wrong = np.random.default_rng(seed), min(candidates, len(rows)) - 1
    right = 0
    for i, caption in enumerate(captions):
        drawn = rng.choice(len(rows) - 1, size=wrong, replace=False)
        others = rows[drawn + (drawn >= number[caption])]
        right += bool(images[i] @ sentences[i] > (sentences[others] @ images[i]).max())
    return right / len(captions)


def diversity(groups: Sequence[Images], scorer: CLIPScorer) -> tuple[float, float]:
    """Difference between images of one caption, mean over captions and pairs.

    Args:
        groups: for each caption, images (K,H,W,3), K at least 2.
        scorer: CLIP.

    Returns:
        1 - cosine of their CLIP embeddings, and the root mean square difference of pixels in
        [0,1].

    Raises:
        ValueError: a group has fewer than 2 images.
    """
    far, apart = [], []
    for pixels in groups:
        if len(pixels) < 2:
            raise ValueError(f"diversity needs 2 images of a caption, got {len(pixels)}")
        embeddings, values = scorer.images(pixels), pixels.astype(np.float32) / 255
        for i in range(len(pixels)):
            for j in range(i):
                far.append(1 - float(embeddings[i] @ embeddings[j]))
                apart.append(float(np.sqrt(np.square(values[i] - values[j]).mean())))
    return float(np.mean(far)), float(np.mean(apart))

"""Measures in CLIP's embedding space: do images say what their captions say, and how varied?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from galip_edge.models import GALIP
from galip_edge.models.clip import CLIPImageEncoder
from galip_edge.models.config import CLIPInput
from galip_edge.tokenizer import build_tokenizer

Floats = npt.NDArray[np.float32]


class CLIPScorer:
    """The CLIP that scores images. Figures are comparable only where the same CLIP gave them.

    Args:
        model: on any device, where its CLIP then computes.
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
    def images(self, pixels: npt.NDArray[np.uint8], form: CLIPInput = "standard") -> Floats:
        """(N,H,W,3) uint8 -> image embeddings (N,E) of length 1."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        _, embedding = self._encoders[form](images)
        return torch.nn.functional.normalize(embedding, dim=1).cpu().numpy()

    @torch.inference_mode()
    def sentences(self, captions: Sequence[str]) -> Floats:
        """Sentence embeddings (N,E) of length 1."""
        rows = []
        for at in range(0, len(captions), 64):
            tokens = torch.from_numpy(self._tokenize(list(captions[at : at + 64])))
            embeddings = self._model.text_encoder(tokens.to(self._device))
            rows.append(torch.nn.functional.normalize(embeddings, dim=1).cpu())
        return torch.cat(rows).numpy()


def clip_score(images: Floats, sentences: Floats) -> float:
    """Mean cosine of image and sentence embeddings (N,E), each of length 1."""
    return float((images.astype(np.float64) * sentences).sum(axis=1).mean())


def r_precision(
    images: Floats,
    sentences: Floats,
    captions: Sequence[str],
    seed: int = 0,
    candidates: int = 100,
) -> float:
    """How often an image's own caption is nearer than all of 99 others (Xu et al. 2018).

    Args:
        images, sentences: (N,E) of length 1.
        captions: of the images; one with the same text is never drawn as a wrong one.
        seed: of the drawing.
        candidates: the right caption and the wrong ones; fewer if there are not so many.

    Raises:
        ValueError: all captions are the same.
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


def diversity(groups: Sequence[npt.NDArray[np.uint8]], scorer: CLIPScorer) -> tuple[float, float]:
    """How different images of the same caption are, mean over captions and pairs.

    Args:
        groups: for each caption its images (K,H,W,3), K at least 2.
        scorer: the CLIP.

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

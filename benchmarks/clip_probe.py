"""Probe a CLIP on the aviary: R-precision on real images, and linear classifiers on its taps and
sentence embeddings.

    python benchmarks/clip_probe.py CHECKPOINT [--clip FILE] [--images 800]

Images cannot show what sentence embeddings do not encode, and the CLIP-based discriminator cannot
judge details that the taps do not encode.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from galip_edge.aviary.data import ATTRIBUTES, AviaryConfig, AviarySource
from galip_edge.checkpoints.format import fill, load_checkpoint, read_clip
from galip_edge.evaluation.clip_space import CLIPScorer, clip_score, r_precision

_RIDGE = 300.0  # few images, many features
_CAPTIONS = 4000


def probe(checkpoint: Path, clip: Path | None, count: int, cache: str | None) -> dict[str, object]:
    model = load_checkpoint(checkpoint).model
    if clip:
        tensors = read_clip(clip, model.config.clip)
        fill(model.clip, model.clip.state_dict(), tensors, str(clip))
    size = model.config.image_size
    source = AviarySource(AviaryConfig(split="test", image_size=size, augment=False, cache=cache))
    pixels = np.stack([np.asarray(source.image(i)) for i in range(count)])
    captions = [source.captions(i)[0] for i in range(count)]
    parts = [pixels[at : at + 64] for at in range(0, count, 64)]
    scorer = CLIPScorer(model)
    images = np.concatenate([scorer.images(part) for part in parts])
    sentences = scorer.sentences(captions)
    features = _normalized(torch.cat([_pooled(model.image_encoder, part) for part in parts]))
    train = 3 * count // 4
    labels = [source.scene(i).labels() for i in range(count)]
    found = {
        name: _accuracy(features, torch.tensor([row[name] for row in labels]), len(values), train)
        for name, values in ATTRIBUTES.items()
    }
    return {
        "images": count,
        "r_precision": round(r_precision(images, sentences, captions), 4),
        "clip_score": round(clip_score(images, sentences), 4),
        "linear_on_taps": found,
        "linear_on_sentences": _of_sentences(source, scorer),
    }


def _of_sentences(source: AviarySource, scorer: CLIPScorer) -> dict[str, float]:
    """Accuracy of the attributes that captions state, from their embeddings."""
    described = [source.described(i)[0] for i in range(_CAPTIONS)]
    embeddings = _normalized(torch.from_numpy(scorer.sentences([c.text for c in described])))
    labels = [source.scene(i).labels() for i in range(_CAPTIONS)]
    found = {}
    for name, values in ATTRIBUTES.items():
        rows = [i for i, caption in enumerate(described) if name in caption.states]
        right = torch.tensor([labels[i][name] for i in rows])
        found[name] = _accuracy(embeddings[rows], right, len(values), 3 * len(rows) // 4)
    return found


def _accuracy(features: Tensor, right: Tensor, values: int, train: int) -> float:
    """Accuracy of a linear classifier, on features (N,D) and labels (N,) from row `train` on."""
    known, wanted = features[:train], F.one_hot(right[:train], values).double()
    weights = torch.linalg.solve(
        known.T @ known + _RIDGE * torch.eye(known.shape[1]), known.T @ wanted
    )
    guesses = (features[train:] @ weights).argmax(1)
    return round((guesses == right[train:]).double().mean().item(), 3)


@torch.inference_mode()
def _pooled(encoder: torch.nn.Module, pixels: np.ndarray) -> Tensor:
    """Mean and maximum over positions of every tap."""
    taps, _ = encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return torch.cat([taps.flatten(3).mean(3).flatten(1), taps.flatten(3).amax(3).flatten(1)], 1)


def _normalized(features: Tensor) -> Tensor:
    features = features.double()
    features = (features - features.mean(0)) / features.std(0)
    return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clip", type=Path, help="another CLIP of the same dimensions")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--cache", help="folder where drawn images are kept")
    given = parser.parse_args()
    result = probe(given.checkpoint, given.clip, given.images, given.cache)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

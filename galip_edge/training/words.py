"""Teaching a small CLIP's text transformer its captions' words, from captions alone.

Contrast teaches the text transformer only what the image transformer can see. A small CLIP that has
seen few images overlooks much (whether a bird is a duck or a heron), and a generator would never
hear of it. So at last, with its image transformer as it is, a linear layer has to tell from the
sentence embedding which words and which pairs of neighbouring words are in the caption; pairs tell
"a red bird with blue wings" from "a blue bird with red wings". Meanwhile the embedding is held near
to what it was, where images expect it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.data.records import Source
from galip_edge.training.frozen import with_fast_attention
from galip_edge.training.precision import Precision, autocast
from galip_edge.training.sentences import sentence_embeddings
from runtime.tokenizer import Tokenizer

# Words and pairs are hashed; few of them fall together.
_BUCKETS = 4096
_FACTOR = 40503

_PART = 64  # captions that are computed together


@dataclass(frozen=True)
class WordsConfig:
    """The steps in which words are taught. The defaults leave them out.

    Attributes:
        steps, batch_size: how long, with how many captions each.
        learning_rate, warmup: its peak, and the steps until it is reached; then it falls along a
            half cosine.
        keep_weight: of the cosine distance from the embedding as it was.
    """

    steps: int = 0
    batch_size: int = 40
    learning_rate: float = 2e-3
    warmup: int = 40
    keep_weight: float = 4.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 1), ("warmup", 1), ("keep_weight", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}")


class WordReader(nn.Module):
    """Reads words and pairs of words off sentence embeddings; serves training alone."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.head = nn.Linear(embedding_dim, _BUCKETS)
        nn.init.constant_(self.head.bias, -5.0)  # nearly all are absent

    def forward(self, sentence: Tensor, tokens: Tensor) -> Tensor:
        """Binary cross entropy, summed over words and pairs, for each that is there.

        Args:
            sentence: (B,E) sentence embeddings, of any length.
            tokens: (B,L) prompt tokens, the end of text being the highest.
        """
        logits = self.head(F.layer_norm(sentence, (self.embedding_dim,)))
        present = present_words(tokens)
        loss = F.binary_cross_entropy_with_logits(logits, present, reduction="sum")
        return loss / present.sum()


def present_words(tokens: Tensor) -> Tensor:
    """tokens (B,L) -> (B,4096), 1 for each word and each pair of neighbours that is there."""
    end = tokens.argmax(dim=1, keepdim=True)
    places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
    pairs = (tokens[:, :-1] * _FACTOR + tokens[:, 1:]) % _BUCKETS
    words = tokens[:, 1:] % _BUCKETS
    outside = places >= end  # a bucket of its own, dropped at last
    found = torch.zeros(len(tokens), _BUCKETS + 1, device=tokens.device)
    for hashed in (pairs, words):
        found.scatter_(1, hashed.masked_fill(outside, _BUCKETS), 1.0)
    return found[:, :_BUCKETS]


def endless_captions(source: Source, seed: int) -> Iterator[str]:
    """Captions of random images of `source`."""
    random = np.random.default_rng(seed)
    while True:
        captions = source.captions(int(random.integers(len(source))))
        yield captions[int(random.integers(len(captions)))]


def teach_words(
    clip: Any,
    captions: Iterator[str],
    tokenize: Tokenizer,
    config: WordsConfig,
    seed: int = 0,
    precision: Precision = "float32",
    report: Callable[[int, float, float], None] = lambda step, words, distance: None,
) -> None:
    """Train the text transformer of `clip` in place.

    Args:
        clip: an `open_clip.CLIP`; only its text transformer is changed.
        captions: without end.
        tokenize: its tokenizer.
        config: how long and how fast.
        seed: of the reader's first weights.
        precision: of the transformers; the reader has float32.
        report: told of the step, the words' loss, and the cosine distance from before.
    """
    torch.manual_seed(seed)
    device = clip.text_projection.device
    reader = WordReader(clip.text_projection.shape[1]).to(device)
    clip.requires_grad_(True)
    clip.visual.requires_grad_(False)
    clip.logit_scale.requires_grad_(False)
    learner = with_fast_attention(clip)
    before = with_fast_attention(copy.deepcopy(clip)).requires_grad_(False)
    trained = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "weight_decay": 0.01},
            {"params": reader.parameters(), "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        drawn = [next(captions) for _ in range(config.batch_size)]
        tokens = torch.from_numpy(tokenize(drawn))
        optimizer.zero_grad()
        losses = torch.zeros(2, device=device)
        for part in _of_like_length(tokens):
            with autocast(device, precision):
                sentence = sentence_embeddings(learner, part).float()
                with torch.no_grad():
                    known = sentence_embeddings(before, part).float()
            words = reader(sentence, part.to(device))
            distance = 1 - F.cosine_similarity(sentence, known).mean()
            share = len(part) / len(tokens)
            torch.autograd.backward(share * (words + config.keep_weight * distance))
            losses += share * torch.stack([words.detach(), distance.detach()])
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        report(step + 1, *losses.tolist())


def _of_like_length(tokens: Tensor) -> list[Tensor]:
    """The rows in parts, so that short captions are not computed as long as the longest."""
    rows = tokens[tokens.argmax(dim=1).argsort()]
    return [rows[at : at + _PART] for at in range(0, len(rows), _PART)]


def _rate(step: int, config: WordsConfig) -> float:
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * (1 + math.cos(math.pi * step / config.steps)) / 2

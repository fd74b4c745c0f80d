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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.data.errors import DataError, SampleError
from galip_edge.data.records import Source
from galip_edge.data.samples import generator_for
from galip_edge.training.frozen import with_fast_attention
from galip_edge.training.precision import Precision, autocast
from galip_edge.training.sentences import sentence_embeddings
from runtime.tokenizer import Tokenizer

# Words and pairs are hashed; few of them fall together.
_BUCKETS = 4096
_FACTOR = 40503

# With half of all captions missing, one sample in four thousand million fails this often.
_ATTEMPTS = 32

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


def endless_captions(source: Source, seed: int, skip: int = 0) -> Iterator[str]:
    """Captions of random images of `source`, without the first `skip`.

    Images without a usable caption are replaced. Raises DataError if many in a row have none.
    """
    for number in count(skip):
        random = generator_for("words", seed, number)
        for _ in range(_ATTEMPTS):
            try:
                captions = source.captions(int(random.integers(len(source))))
            except SampleError as error:
                problem = error.problem
                continue
            yield captions[int(random.integers(len(captions)))]
            break
        else:
            raise DataError(
                f"{_ATTEMPTS} images in a row have no usable caption, the last because of "
                f"{problem}; run galip-edge data check to see what is wrong"
            )


class WordTeaching:
    """Training of the text transformer of a CLIP, in place, from any step on.

    Args:
        clip: an `open_clip.CLIP`; only its text transformer is changed.
        tokenize: its tokenizer.
        config: how long and how fast.
        seed: of the reader's first weights.
        precision: of the transformers; the reader has float32.

    Attributes:
        steps_done: number of finished steps.
    """

    def __init__(
        self,
        clip: Any,
        tokenize: Tokenizer,
        config: WordsConfig,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> None:
        self.steps_done = 0
        self._tokenize, self._config, self._precision = tokenize, config, precision
        torch.manual_seed(seed)
        self._device = clip.text_projection.device
        self._reader = WordReader(clip.text_projection.shape[1]).to(self._device)
        clip.requires_grad_(True)
        clip.visual.requires_grad_(False)
        clip.logit_scale.requires_grad_(False)
        self._learner = with_fast_attention(clip)
        self._before = copy.deepcopy(clip).requires_grad_(False)
        self._reference = with_fast_attention(self._before)
        self._trained = [p for p in clip.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._trained, "weight_decay": 0.01},
                {"params": self._reader.parameters(), "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-6,
        )

    @property
    def finished(self) -> bool:
        """Whether all steps of the configuration are done."""
        return self.steps_done >= self._config.steps

    def step(self, captions: Sequence[str]) -> tuple[float, float]:
        """One update from a batch of captions.

        Returns:
            The words' loss, and the cosine distance from the embedding as it was.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = _rate(self.steps_done, self._config)
        tokens = torch.from_numpy(self._tokenize(captions))
        self._optimizer.zero_grad()
        losses = torch.zeros(2, device=self._device)
        for part in _of_like_length(tokens):
            with autocast(self._device, self._precision):
                sentence = sentence_embeddings(self._learner, part).float()
                with torch.no_grad():
                    known = sentence_embeddings(self._reference, part).float()
            words = self._reader(sentence, part.to(self._device))
            distance = 1 - F.cosine_similarity(sentence, known).mean()
            share = len(part) / len(tokens)
            torch.autograd.backward(share * (words + self._config.keep_weight * distance))
            losses += share * torch.stack([words.detach(), distance.detach()])
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self.steps_done += 1
        words_loss, cosine_distance = losses.tolist()
        return words_loss, cosine_distance

    def state_dict(self) -> dict[str, Any]:
        """All that a step reads or changes, except the CLIP itself."""
        return {
            "steps_done": self.steps_done,
            "reader": self._reader.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "before": {
                name: tensor
                for name, tensor in self._before.state_dict().items()
                if not name.startswith("visual.")
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; the CLIP must have the weights that it had with this state.

        Raises KeyError or RuntimeError if the state is of another CLIP, or incomplete.
        """
        self._reader.load_state_dict(state["reader"])
        self._optimizer.load_state_dict(state["optimizer"])
        visual = {n: t for n, t in self._before.state_dict().items() if n.startswith("visual.")}
        self._before.load_state_dict({**visual, **state["before"]})
        self.steps_done = state["steps_done"]


def _of_like_length(tokens: Tensor) -> list[Tensor]:
    """The rows in parts, so that short captions are not computed as long as the longest."""
    rows = tokens[tokens.argmax(dim=1).argsort()]
    return [rows[at : at + _PART] for at in range(0, len(rows), _PART)]


def _rate(step: int, config: WordsConfig) -> float:
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * (1 + math.cos(math.pi * step / config.steps)) / 2

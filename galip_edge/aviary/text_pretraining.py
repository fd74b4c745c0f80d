"""Training a small CLIP's text transformer on words, from captions alone.

Contrastive training teaches the text transformer only what the image transformer distinguishes. A
small CLIP trained on few images misses details (whether a bird is a duck or a heron), so its
embeddings do not convey them to a generator. This stage freezes the image transformer, and trains a
linear layer to predict from the sentence embedding the words and the pairs of adjacent words of the
caption; pairs distinguish "a red bird with blue wings" from "a blue bird with red wings". A penalty
keeps the embedding close to the one that images were matched with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.config import check_integers, check_not_negative, check_positive
from galip_edge.data.errors import DataError, SampleError
from galip_edge.data.records import Source
from galip_edge.data.samples import generator_for
from galip_edge.training.contrastive import TextPretrainingConfig
from galip_edge.training.fast_attention import with_fast_attention
from galip_edge.training.precision import Precision, autocast
from galip_edge.training.text_cache import sentence_embeddings
from galip_edge.training.words import WordReader
from runtime.tokenizer import Tokenizer

# With half of all captions missing, one sample in four billion exhausts them.
_ATTEMPTS = 32

_MICRO_BATCH = 64  # captions


@dataclass(frozen=True)
class WordsConfig(TextPretrainingConfig):
    """Settings of the stage.

    Attributes:
        batch_size: captions per step.
        learning_rate, warmup: peak of the learning rate, and the steps of its linear rise; then
            it follows a half cosine.
        keep_weight: of the cosine distance from the original embedding.
    """

    batch_size: int = 40
    learning_rate: float = 2e-3
    warmup: int = 40
    keep_weight: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, 1, "batch_size", "warmup")
        check_not_negative(self, "keep_weight")
        check_positive(self, "learning_rate")

    def build(
        self, clip: Any, tokenize: Tokenizer, source: Source, seed: int, precision: Precision
    ) -> WordTraining:
        """The stage for `clip`, with captions of `source`."""
        return WordTraining(clip, tokenize, source, self, seed, precision)


def endless_captions(source: Source, seed: int, skip: int = 0) -> Iterator[str]:
    """Yield captions of random images of `source`, without the first `skip`.

    Images without a valid caption are replaced. Raises DataError if many in a row have none.
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
                f"{_ATTEMPTS} images in a row have no valid caption, the last because of "
                f"{problem}; run galip-edge data check for a full list"
            )


class WordTraining:
    """Trains the text transformer of a CLIP in place, and can resume at any step.

    Args:
        clip: an `open_clip.CLIP`; only its text transformer is changed.
        tokenize: its tokenizer.
        source: of the captions.
        config: number of steps and learning rate.
        seed: of the captions, and of the linear layer's initial weights.
        precision: of the transformers; the linear layer has float32.

    Attributes:
        steps_done: number of finished steps.
    """

    def __init__(
        self,
        clip: Any,
        tokenize: Tokenizer,
        source: Source,
        config: WordsConfig,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> None:
        self.steps_done = 0
        self._tokenize, self._config, self._precision = tokenize, config, precision
        self._source, self._seed = source, seed
        self._captions: Iterator[str] | None = None
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
        """True if all steps are done."""
        return self.steps_done >= self._config.steps

    def step(self) -> dict[str, float]:
        """Update from the next batch of captions.

        Returns:
            The loss of the words, and the cosine distance from the original embedding.
        """
        count = self._config.batch_size
        if self._captions is None:
            self._captions = endless_captions(self._source, self._seed, count * self.steps_done)
        captions = list(islice(self._captions, count))
        for group in self._optimizer.param_groups:
            group["lr"] = _rate(self.steps_done, self._config)
        tokens = torch.from_numpy(self._tokenize(captions))
        self._optimizer.zero_grad()
        losses = torch.zeros(2, device=self._device)
        for part in _by_length(tokens):
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
        return dict(zip(("words", "distance"), losses.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All state of a step, except the CLIP itself."""
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
        """Resume; the CLIP must have the weights that were saved with this state.

        Raises KeyError or RuntimeError if the state is incomplete, or belongs to another CLIP.
        """
        self._reader.load_state_dict(state["reader"])
        self._optimizer.load_state_dict(state["optimizer"])
        visual = {n: t for n, t in self._before.state_dict().items() if n.startswith("visual.")}
        self._before.load_state_dict({**visual, **state["before"]})
        self.steps_done = state["steps_done"]


def _by_length(tokens: Tensor) -> list[Tensor]:
    """Micro-batches of captions of similar length, which need little padding."""
    rows = tokens[tokens.argmax(dim=1).argsort()]
    return [rows[at : at + _MICRO_BATCH] for at in range(0, len(rows), _MICRO_BATCH)]


def _rate(step: int, config: WordsConfig) -> float:
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * (1 + math.cos(math.pi * step / config.steps)) / 2

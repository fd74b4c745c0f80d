"""Predicting a caption's words from an embedding (Joulin et al. 2016, arXiv:1511.02251)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Words and pairs are hashed; few of them collide.
_BUCKETS = 4096
_FACTOR = 40503


class WordReader(nn.Module):
    """Linear classifier of the words and word pairs of a caption, used in training only."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.head = nn.Linear(embedding_dim, _BUCKETS)
        nn.init.constant_(self.head.bias, -5.0)  # nearly all words are absent

    def forward(self, sentence: Tensor, tokens: Tensor) -> Tensor:
        """Binary cross entropy summed over words and pairs, per present word or pair.

        Args:
            sentence: (B,E) embeddings of any norm.
            tokens: (B,L) prompt tokens; the end-of-text token has the highest id.
        """
        logits = self.head(F.layer_norm(sentence, (self.embedding_dim,)))
        present = present_words(tokens)
        loss = F.binary_cross_entropy_with_logits(logits, present, reduction="sum")
        return loss / present.sum()


def present_words(tokens: Tensor) -> Tensor:
    """tokens (B,L) -> (B,4096), 1 for each word and each pair of adjacent words."""
    end = tokens.argmax(dim=1, keepdim=True)
    places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
    pairs = (tokens[:, :-1] * _FACTOR + tokens[:, 1:]) % _BUCKETS
    words = tokens[:, 1:] % _BUCKETS
    outside = places >= end  # an extra bucket, dropped at the end
    found = torch.zeros(len(tokens), _BUCKETS + 1, device=tokens.device)
    for hashed in (pairs, words):
        found.scatter_(1, hashed.masked_fill(outside, _BUCKETS), 1.0)
    return found[:, :_BUCKETS]

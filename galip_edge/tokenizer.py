"""CLIP's tokenizer for a model of any vocabulary size."""

from __future__ import annotations

import gzip
from pathlib import Path

import open_clip

from galip_edge.models import CLIPConfig
from runtime.tokenizer import Tokenizer

# 256 byte characters, the same at the end of a word, start and end of text.
_WITHOUT_MERGES = 514


def build_tokenizer(config: CLIPConfig) -> Tokenizer:
    """The tokenizer whose vocabulary has `config.vocabulary_size` tokens.

    The merges are CLIP's, which open_clip includes; a smaller vocabulary uses the first of them.

    Raises ValueError if CLIP has fewer.
    """
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    count = config.vocabulary_size - _WITHOUT_MERGES
    if not 0 <= count <= 49408 - _WITHOUT_MERGES:
        raise ValueError(
            f"vocabulary_size must be between {_WITHOUT_MERGES} and 49408, "
            f"got {config.vocabulary_size}"
        )
    return Tokenizer(lines[1 : count + 1], config.context_length)

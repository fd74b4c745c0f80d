"""CLIP's byte-pair tokenizer, without torch."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import regex

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_WORDS = regex.compile(
    rf"{regex.escape(_START)}|{regex.escape(_END)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|"
    r"[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte: itself where printable, else one from 256 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in characters]
    return characters | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def clean(text: str) -> str:
    """Mend mojibake, resolve HTML entities, collapse white space and lower the case."""
    import ftfy  # not above: it takes 40 ms, which pass while the generator is compiled

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Prompts to token ids.

    The vocabulary is the 256 byte characters, the same at the end of a word, one token for each
    merge, and the two that start and end a text. With CLIP's 48,894 merges it is CLIP's own; a
    smaller model may use the first few thousand of them.

    Args:
        merges: pairs of token texts separated by a space, in order of priority.
        context_length: tokens in a row of the result, start and end included.

    Raises:
        ValueError: a merge is not a pair of known tokens, or the context length is below 3.
    """

    def __init__(self, merges: Iterable[str], context_length: int = 77) -> None:
        if context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {context_length}")
        self.context_length = context_length
        self.merges = tuple(merges)
        self._byte_characters = _byte_characters()
        # The order of the ids: printable bytes first, as in the published vocabulary.
        vocabulary = list(self._byte_characters.values())
        vocabulary += [character + _WORD_END for character in vocabulary]
        vocabulary += [merge.replace(" ", "", 1) for merge in self.merges]
        self._ids = {token: i for i, token in enumerate(vocabulary)}
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            if left not in self._ids or right not in self._ids:
                raise ValueError(f"not a merge of two known tokens: {merge!r}")
        # By the merge's text: a tuple for each would take 20 MB.
        self._ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        self.start_id, self.end_id = len(vocabulary), len(vocabulary) + 1
        self._merge = lru_cache(maxsize=1 << 14)(self._merge_uncached)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, start and end included."""
        return self.end_id + 1

    @property
    def room(self) -> int:
        """Ids of a text that fit beside start and end."""
        return self.context_length - 2

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end."""
        ids: list[int] = []
        for word in _WORDS.findall(clean(text)):
            if word == _START:
                ids.append(self.start_id)
            elif word == _END:
                ids.append(self.end_id)
            else:
                ids.extend(self._merge(word))
        return ids

    def cut(self, text: str) -> str | None:
        """In words how much of a text is read, if that is not all of it."""
        length = len(self.encode(text))
        if length <= self.room:
            return None
        return f"{length} tokens, the model reads the first {self.room}"

    def __call__(self, texts: str | Sequence[str]) -> npt.NDArray[np.int64]:
        """Token ids, zero after the end of text; a longer text is cut and keeps its end token.

        Returns:
            (len(texts), context_length) int64.
        """
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, text in zip(tokens, texts):
            ids = self.encode(text)[: self.room]
            row[: len(ids) + 2] = [self.start_id, *ids, self.end_id]
        return tokens

    def _merge_uncached(self, word: str) -> tuple[int, ...]:
        """Merge the neighbours of the best rank, all at once, until none can be merged."""
        parts = [self._byte_characters[byte] for byte in word.encode("utf-8", "replace")]
        parts[-1] += _WORD_END
        unknown = len(self._ranks)
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda p: self._ranks.get(" ".join(p), unknown))
            if " ".join(best) not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                # `merged[-1]` may itself be a fresh merge, but never equals half of its own pair.
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return tuple(self._ids[part] for part in parts)

"""CLIP's byte-pair tokenizer, without torch."""

from __future__ import annotations

import heapq
import html
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# Pieces of a text, in lower case.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_WORDS = regex.compile(rf"{regex.escape(START)}|{regex.escape(END)}|{WORDS}", regex.IGNORECASE)

# Only words of natural length are cached: 8,192 of them take at most 5 MB, whatever is sent.
_CACHED_WORDS = 1 << 13
_CACHED_BYTES = 24


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte: itself where printable, else one from 256 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in characters]
    return characters | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def clean(text: str) -> str:
    """Fix mojibake, resolve HTML entities, collapse white space, convert to lower case."""
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
        vocabulary += [character + WORD_END for character in vocabulary]
        vocabulary += [merge.replace(" ", "", 1) for merge in self.merges]
        self._ids = {token: i for i, token in enumerate(vocabulary)}
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            if left not in self._ids or right not in self._ids:
                raise ValueError(f"not a merge of two known tokens: {merge!r}")
        # By the merge's text: a tuple for each would take 20 MB.
        self._ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        self.start_id, self.end_id = len(vocabulary), len(vocabulary) + 1
        self._merge_cached = lru_cache(maxsize=_CACHED_WORDS)(self._merge)

    @property
    def vocabulary(self) -> list[str]:
        """Texts of the tokens by their ids, without start and end."""
        return list(self._ids)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, start and end included."""
        return self.end_id + 1

    @property
    def room(self) -> int:
        """Maximum number of ids, start and end excluded."""
        return self.context_length - 2

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end."""
        return [token for word in self._encoded_words(text) for token in word]

    def _encoded_words(self, text: str) -> Iterator[tuple[int, ...]]:
        """Ids of one word after the other; words are merged lazily."""
        for match in _WORDS.finditer(clean(text)):
            word = match[0]
            if word == START:
                yield (self.start_id,)
            elif word == END:
                yield (self.end_id,)
            elif len(word.encode("utf-8", "replace")) > _CACHED_BYTES:
                yield self._merge(word)
            else:
                yield self._merge_cached(word)

    def _first_ids(self, text: str) -> list[int]:
        """The ids that fit into a row; words after them are not merged."""
        ids: list[int] = []
        for word in self._encoded_words(text):
            ids.extend(word)
            if len(ids) >= self.room:
                break
        return ids[: self.room]

    def cut(self, text: str) -> str | None:
        """Description of the truncation of a text, or None if it fits."""
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
            ids = self._first_ids(text)
            row[: len(ids) + 2] = [self.start_id, *ids, self.end_id]
        return tokens

    def _merge(self, word: str) -> tuple[int, ...]:
        """Merge the neighbours of the best rank, all at once, until none can be merged.

        A heap of mergeable neighbours makes this O(n log n) for the n bytes of a word, up to 8,000.
        """
        parts = [self._byte_characters[byte] for byte in word.encode("utf-8", "replace")]
        parts[-1] += WORD_END
        # A doubly linked list of the parts that are left; an empty text marks a part merged away.
        end = len(parts)
        following, previous = list(range(1, end + 1)), list(range(-1, end - 1))

        def rank_at(left: int) -> int | None:
            if left < 0 or following[left] >= end:
                return None
            return self._ranks.get(f"{parts[left]} {parts[following[left]]}")

        # (rank, position of the left part)
        pairs = [(rank, left) for left in range(end) if (rank := rank_at(left)) is not None]
        heapq.heapify(pairs)
        while pairs:
            best = pairs[0][0]
            changed = []
            while pairs and pairs[0][0] == best:  # from left to right
                _, left = heapq.heappop(pairs)
                if not parts[left] or rank_at(left) != best:
                    continue  # one of the two was merged meanwhile
                right = following[left]
                parts[left] += parts[right]
                parts[right] = ""
                following[left] = following[right]
                if following[right] < end:
                    previous[following[right]] = left
                changed += [previous[left], left]
            # Pairs with a fresh part wait for their turn, whatever their rank.
            for left in dict.fromkeys(changed):
                if left >= 0 and parts[left] and (rank := rank_at(left)) is not None:
                    heapq.heappush(pairs, (rank, left))
        return tuple(self._ids[part] for part in parts if part)

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from runtime.tokenizer import Tokenizer, clean

DATA = Path(__file__).parent.parent / "data"
REFERENCE = json.loads((DATA / "tokens.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    from galip_edge.models import CLIPConfig
    from galip_edge.tokenizer import build_tokenizer

    return build_tokenizer(CLIPConfig())


@pytest.mark.parametrize("entry", REFERENCE, ids=lambda e: repr(e["text"][:24]))
def test_tokens_are_those_of_the_reference(entry, tokenizer):
    assert tokenizer(entry["text"])[0].tolist() == entry["ids"]


def test_against_open_clip_on_random_text(tokenizer):
    import open_clip

    theirs = open_clip.SimpleTokenizer()
    letters = "aaabbccddeeffghhiijklmmnnoopqrrssttuuvwxyz   '.,-!?&;0123456789éßñ漢字🐦Ωж\n\t"
    random = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(random.choice(list(letters), random.integers(0, 80)))
        assert tokenizer(text)[0].tolist() == theirs(text)[0].tolist(), repr(text)


def test_repeated_pairs_merge_as_in_the_reference(tokenizer):
    import open_clip

    theirs = open_clip.SimpleTokenizer()
    for text in ("aaaaaaa", "abababab", "hahahahaha", "zzzzzzzzzzz", "tototototo"):
        assert tokenizer(text)[0].tolist() == theirs(text)[0].tolist()


def test_long_text_is_cut_and_keeps_its_end_token(tokenizer):
    tokens = tokenizer("word " * 500)
    assert tokens.shape == (1, 77)
    assert tokens[0, 0] == tokenizer.start_id
    assert tokens[0, -1] == tokenizer.end_id
    assert tokens[0].argmax() == 76
    assert tokenizer.cut("word " * 75) is None
    assert tokenizer.cut("word " * 76) == "76 tokens, the model reads the first 75"


def merged_pair_by_pair(tokenizer: Tokenizer, word: str) -> list[int]:
    """The definition: merge the neighbours of the best rank, all at once, until none is left."""
    parts = [tokenizer._byte_characters[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while True:
        ranks = [tokenizer._ranks.get(f"{a} {b}", 1 << 30) for a, b in pairwise(parts)]
        if not ranks or min(ranks) == 1 << 30:
            return [tokenizer._ids[part] for part in parts]
        left, right = tokenizer.merges[min(ranks)].split(" ")
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == (left, right):
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged


@pytest.mark.parametrize("alphabet", ["ab", "hao", "etaoinshrdlu", "漢字漣波", "ß漢a"])
def test_long_words_are_merged_by_the_definition(alphabet, tokenizer):
    random = np.random.default_rng(0)
    for length in (1, 2, 3, 25, 26, 60, 150):
        word = "".join(random.choice(list(alphabet), length))
        assert tokenizer.encode(word) == merged_pair_by_pair(tokenizer, word), word


def test_long_words_are_not_cached_and_not_merged_without_need(tokenizer, monkeypatch):
    """2,000 characters beyond the BMP took 72 KB each for good."""
    merged = []
    whole = tokenizer._merge
    monkeypatch.setattr(tokenizer, "_merge", lambda word: merged.append(word) or whole(word))
    before = tokenizer._merge_cached.cache_info().currsize
    hostile = "".join(chr(0x20000 + 7 * i) for i in range(2000))
    words = " ".join(f"{chr(0x20000 + i) * 30}" for i in range(60))
    assert (tokenizer([hostile, words])[:, -1] == tokenizer.end_id).all()
    assert tokenizer._merge_cached.cache_info().currsize == before
    assert 1 < len(merged) < 30  # of 61 words


def test_the_cache_of_words_is_bounded(tokenizer):
    import tracemalloc

    text = " ".join(chr(0x20000 + i) * 6 for i in range(10_000))
    tracemalloc.start()
    tokenizer.encode(text)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 6e6
    assert tokenizer._merge_cached.cache_info().currsize < 10_000


def test_the_end_token_has_the_highest_id(tokenizer):
    assert tokenizer.vocabulary_size == 49408
    assert (tokenizer.start_id, tokenizer.end_id) == (49406, 49407)


def test_a_smaller_vocabulary_spells_what_it_cannot_merge():
    from dataclasses import replace

    from galip_edge.models import CLIPConfig
    from galip_edge.tokenizer import build_tokenizer

    small = build_tokenizer(replace(CLIPConfig(), vocabulary_size=1000, context_length=20))
    tokens = small(["a bird on a branch", "ornithology of the extraordinary"])
    assert tokens.shape == (2, 20)
    assert tokens.max() == small.end_id == 999
    assert len(small.encode("bird")) > 1


def test_cleaning_mends_and_lowers():
    assert clean("  Tom &amp;amp; Ã©LAN\n\n “x”  ") == 'tom & élan "x"'


def test_bad_merges_are_named():
    with pytest.raises(ValueError, match="not a merge of two known tokens: 'qq zz'"):
        Tokenizer(["a b", "qq zz"])
    with pytest.raises(ValueError, match="context_length must be at least 3, got 2"):
        Tokenizer([], context_length=2)

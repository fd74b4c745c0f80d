"""Sentence embeddings and their cache."""

from __future__ import annotations

import pytest
import torch

from galip_edge.models import GALIP, PRESETS
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.text_cache import SentenceEncoder, clip_hash, sentence_embeddings


@pytest.fixture(scope="module")
def model() -> GALIP:
    torch.manual_seed(0)
    return GALIP(PRESETS["tiny"])


@pytest.mark.parametrize("cached", [True, False])
def test_embeddings_are_clips(model, tmp_path, cached):
    captions = ["a bird", "a red bus", "a bird", "étoile 🌟"]
    encode = SentenceEncoder(model, tmp_path if cached else None, "0" * 64)
    tokens = torch.from_numpy(build_tokenizer(model.config.clip)(captions))
    with torch.no_grad():
        expected = model.text_encoder(tokens)
    torch.testing.assert_close(encode(captions), expected)
    torch.testing.assert_close(encode(captions), expected)
    assert any(tmp_path.iterdir()) == cached


def test_cached_captions_are_not_computed_again(model, tmp_path, monkeypatch):
    SentenceEncoder(model, tmp_path, "a" * 64)(["a bird", "a bus"])
    again = SentenceEncoder(model, tmp_path, "a" * 64)
    calls = []
    monkeypatch.setattr(
        "galip_edge.training.text_cache.sentence_embeddings",
        lambda clip, tokens: (calls.append(len(tokens)), sentence_embeddings(clip, tokens))[1],
    )
    again(["a bus", "a bird"])
    assert calls == []
    again(["a bus", "a car"])
    assert calls == [1]
    SentenceEncoder(model, tmp_path, "b" * 64)(["a bus"])  # another CLIP
    assert calls == [1, 1]


def test_unusable_cache_is_a_warning(model, tmp_path, caplog):
    (tmp_path / ("c" * 32 + ".sqlite")).write_bytes(b"not a database" * 100)
    encode = SentenceEncoder(model, tmp_path, "c" * 64)
    assert encode(["a bird"]).shape == (1, 32)
    assert "not cached" in caplog.text


def test_hash_is_of_clip_alone():
    torch.manual_seed(1)
    model = GALIP(PRESETS["tiny"])
    before = clip_hash(model)
    torch.nn.init.zeros_(model.generator.to_rgb.weight)
    assert clip_hash(model) == before
    model.clip.text_projection.data[0, 0] += 1
    assert clip_hash(model) != before


def test_memory_is_bounded_and_changes_no_embedding(model, tmp_path, monkeypatch):
    monkeypatch.setattr("galip_edge.training.text_cache._REMEMBERED", 5 * 32 * 4)
    monkeypatch.setattr("galip_edge.training.text_cache._QUERIED", 2)
    captions = [f"bird number {i}" for i in range(12)]
    once = SentenceEncoder(model, None, "d" * 64)
    expected = {caption: once([caption])[0] for caption in captions}
    for folder in (None, tmp_path, tmp_path):  # the second time all are on disk
        encode = SentenceEncoder(model, folder, "d" * 64)
        for batch in (captions[:3], captions[2:5], captions[4:8], captions[::2], captions[:1] * 4):
            torch.testing.assert_close(
                encode(batch), torch.stack([expected[caption] for caption in batch])
            )
            assert len(encode._rows) <= 6  # of the largest batch

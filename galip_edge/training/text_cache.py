"""Sentence embeddings of captions, computed once and cached on disk, as CLIP is frozen."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from galip_edge.models import GALIP
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.fast_attention import with_fast_attention

_log = logging.getLogger(__name__)

# Bytes of embeddings in memory: 65,536 captions with ViT-B/32.
_REMEMBERED = 128 * 2**20

# Captions per query; older versions of SQLite allow 999 parameters.
_QUERIED = 900


def clip_hash(model: GALIP) -> str:
    """SHA-256 of the names, dtypes, shapes and values of all of CLIP's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.clip.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def sentence_embeddings(clip: Any, tokens: Tensor) -> Tensor:
    """Sentence embeddings (B,E) of tokens (B,77), computed up to the last end of text only.

    Exact, because attention is causal; training is twice as fast for short captions. Tokens on the
    CPU are copied to the device of `clip` without synchronization.
    """
    end = tokens.argmax(dim=1)
    length = int(end.max()) + 1
    device = clip.text_projection.device
    tokens, end = tokens[:, :length].to(device), end.to(device)
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    out: Tensor = x[torch.arange(len(x), device=device), end] @ clip.text_projection
    return out


class SentenceEncoder:
    """Captions to sentence embeddings (B,E) in float32, with a cache in `folder`, if given.

    The cache is one SQLite file per CLIP. Processes may share it, and a killed process leaves it
    intact. Recent embeddings stay on the model's device, so a batch is one lookup there. Without a
    usable cache (reported once), the sentences of each batch are always computed together, because
    rounding depends on the batch, and a resumed run must repeat it.
    """

    def __init__(self, model: GALIP, folder: Path | None, clip_sha256: str) -> None:
        self._model = model
        self._clip = with_fast_attention(model.clip)
        self._tokenize = build_tokenizer(model.config.clip)
        self._cache = _Cache(folder / f"{clip_sha256[:32]}.sqlite") if folder else None
        self._rows: dict[str, int] = {}  # of the table, by caption
        self._table: Tensor | None = None

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Embeddings (B,E), not normalised, on the model's device."""
        if self._cache is None or not self._cache.usable:
            self._rows, self._table = {}, None
        if any(caption not in self._rows for caption in captions):
            self._remember(list(dict.fromkeys(captions)))
        assert self._table is not None
        rows = torch.tensor([self._rows[caption] for caption in captions])
        return self._table[rows.to(self._table.device)]

    def _remember(self, captions: list[str]) -> None:
        """Add `captions` to the table in memory, which is cleared when it is full."""
        new = [caption for caption in captions if caption not in self._rows]
        width = self._clip.text_projection.shape[1]
        if len(self._rows) + len(new) > _REMEMBERED // (4 * width):
            self._rows, self._table, new = {}, None, captions
        known = self._cache.read(new) if self._cache else {}
        if unknown := [caption for caption in new if caption not in known]:
            tokens = torch.from_numpy(self._tokenize(unknown))
            computed = sentence_embeddings(self._clip, tokens).float().cpu().numpy()
            known |= (fresh := dict(zip(unknown, computed, strict=True)))
            if self._cache:
                self._cache.write(fresh)
        added = torch.from_numpy(np.stack([known[caption] for caption in new]))
        first = len(self._rows)
        self._rows |= {caption: first + i for i, caption in enumerate(new)}
        if self._table is None:
            self._table = added.to(next(self._model.parameters()).device)
            return
        if len(self._rows) > len(self._table):  # doubled, to copy it rarely
            room = self._table.new_empty(max(len(new), len(self._table)), added.shape[1])
            self._table = torch.cat([self._table, room])
        self._table[first : len(self._rows)] = added.to(self._table.device)


class _Cache:
    """A table of caption hashes and embeddings."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS sentences (caption BLOB PRIMARY KEY, embedding BLOB) "
                "WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    @property
    def usable(self) -> bool:
        """False after an error."""
        return self._database is not None

    def read(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Cached embeddings of `captions`."""
        if self._database is None:
            return {}
        by_key = {_key(caption): caption for caption in captions}
        keys, found = list(by_key), {}
        try:
            for at in range(0, len(keys), _QUERIED):
                some = keys[at : at + _QUERIED]
                places = ", ".join("?" * len(some))
                for key, row in self._database.execute(
                    f"SELECT caption, embedding FROM sentences WHERE caption IN ({places})", some
                ):
                    found[by_key[key]] = np.frombuffer(row, dtype="<f4")
        except sqlite3.Error as error:
            self._give_up(error)
        return found

    def write(self, embeddings: dict[str, np.ndarray]) -> None:
        """Store `embeddings` atomically."""
        if self._database is None:
            return
        rows = [(_key(c), e.astype("<f4").tobytes()) for c, e in embeddings.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR IGNORE INTO sentences VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        _log.warning("sentence embeddings are not cached: cannot use %s (%s)", self._path, error)
        self._database = None


def _key(caption: str) -> bytes:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()

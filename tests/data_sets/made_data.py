"""Small files of the kinds that real data sets are made of."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from galip_edge.data import Batch, Loader


def picture(number: int, width: int = 60, height: int = 40) -> Image.Image:
    """A noisy image whose content says which it is."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def jpeg(number: int, width: int = 60, height: int = 40) -> bytes:
    file = io.BytesIO()
    picture(number, width, height).save(file, "JPEG", quality=95)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def write_pickle(path: Path, keys: object, protocol: int = 2) -> Path:
    return write(path, pickle.dumps(keys, protocol=protocol))


def python2_pickle(keys: Iterable[str]) -> bytes:
    """What Python 2's pickle.dump(list_of_str, file) writes, in its default protocol 0."""
    lines = b"".join(f"S'{key}'\n".encode() + b"a" for key in keys)
    return b"(lp0\n" + lines + b"."


CUB_KEYS = [f"{n:03}.Bird_{n}/Bird_{n}_{m:04}" for n in (1, 2, 3, 4) for m in (1, 2)]


def write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def shard_samples(shard: int, count: int = 10) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (
            f"{shard:05}{n:04}",
            {
                "jpg": jpeg(100 * shard + n),
                "json": json.dumps({"caption": f"web {shard} {n}", "status": "success"}).encode(),
                "txt": f"web {shard} {n}".encode(),
            },
        )
        for n in range(count)
    ]


def endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def batches(loader: Loader, count: int) -> list[Batch]:
    return list(islice(endless(loader), count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and a.captions == b.captions and a.keys == b.keys
        for a, b in zip(first, second, strict=True)
    )

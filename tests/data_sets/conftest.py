"""Small data sets in the layouts of the real ones, made afresh by every test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_data import (
    CUB_KEYS,
    jpeg,
    python2_pickle,
    shard_samples,
    write,
    write_pickle,
    write_shard,
)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """CUB in the family's layout: 6 images to train on, 2 to test on."""
    root = tmp_path / "birds"
    official = root / "CUB_200_2011"
    for number, key in enumerate(CUB_KEYS):
        write(official / "images" / f"{key}.jpg", jpeg(number))
        write(root / "text" / f"{key}.txt", f"a bird {number}.\nit has a beak.\n\n")
    names = enumerate(CUB_KEYS, start=1)
    write(official / "images.txt", "".join(f"{n} {key}.jpg\n" for n, key in names))
    write(
        official / "bounding_boxes.txt",
        "".join(f"{n} 10.0 5.0 20.0 16.0\n" for n in range(1, len(CUB_KEYS) + 1)),
    )
    write(root / "train" / "filenames.pickle", python2_pickle(CUB_KEYS[:6]))
    write_pickle(root / "test" / "filenames.pickle", CUB_KEYS[6:])
    return root


@pytest.fixture
def coco_family(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for split, part in (("train", "train2014"), ("test", "val2014")):
        keys = [f"COCO_{part}_{n:012}" for n in range(5)]
        for number, key in enumerate(keys):
            write(root / "images" / part / "jpg" / f"{key}.jpg", jpeg(number))
            write(root / "text" / f"{key}.txt", f"thing {number} in {split}\nanother caption\n")
        write_pickle(root / split / "filenames.pickle", keys)
    return root


@pytest.fixture(params=["cc3m", "cc12m"])
def conceptual(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """CC3M or CC12M in the family's layout; two images share a file of captions."""
    root = tmp_path / request.param
    for split, first in (("train", 0), ("test", 10)):
        keys = [f"{n:09}_{n % 2}" for n in range(first, first + 4)] + [f"{first:09}_7"]
        part = split if request.param == "cc3m" else ""
        for number, key in enumerate(keys):
            write(root / "images" / part / f"{key}.jpg", jpeg(first + number))
            caption = root / "text" / part / f"{key[:9]}.txt"
            write(caption, f"web image {int(key[:9])}\n")
        write_pickle(root / split / "filenames.pickle", keys)
    return root


@pytest.fixture
def coco_official(tmp_path: Path) -> Path:
    root = tmp_path / "coco_official"
    for part in ("train2014", "val2014"):
        images, annotations = [], []
        for n in range(4):
            name = f"COCO_{part}_{n:012}.jpg"
            write(root / part / name, jpeg(n))
            images.append({"id": n, "file_name": name, "width": 60, "height": 40})
            annotations += [
                {"id": 10 * n + m, "image_id": n, "caption": f"thing {n},\n view {m} "}
                for m in range(5)
            ]
        content = json.dumps({"info": {}, "images": images, "annotations": annotations})
        write(root / "annotations" / f"captions_{part}.json", content)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images with two captions each."""
    root = tmp_path / "mine"
    for n in range(12):
        write(root / f"{n:02}.jpg", jpeg(n))
        write(root / f"{n:02}.txt", f"caption {n} one\ncaption {n} two\n")
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of ten samples, as img2dataset writes them."""
    root = tmp_path / "cc12m"
    for shard in range(4):
        write_shard(root / f"{shard:05}.tar", shard_samples(shard))
        write(root / f"{shard:05}_stats.json", json.dumps({"count": 12, "successes": 10}))
    return root

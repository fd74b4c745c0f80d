from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from made_data import batches, jpeg, picture, same, shard_samples, write, write_shard
from PIL import Image

from galip_edge.data import (
    CaptionedImages,
    DataConfig,
    DataError,
    Loader,
    Position,
    WebShards,
    build_loader,
    check,
)
from galip_edge.data.check import Spread
from galip_edge.data.shards import list_shards
from galip_edge.data.sources import build_dataset

pytest.importorskip("webdataset")


def config_of(root: Path | str, **settings: object) -> DataConfig:
    values = {"image_size": 16, "seed": 5, "workers": 0, "shuffle_block": 4, **settings}
    return DataConfig("webdataset", str(root), **values)  # type: ignore[arg-type]


def loader_of(root: Path, batch_size: int = 4, workers: int = 0, **options: int) -> Loader:
    return build_loader(config_of(root, workers=workers), batch_size, **options)  # type: ignore[arg-type]


def keys_of(loader: Loader, count: int) -> list[str]:
    return [key for batch in batches(loader, count) for key in batch.keys]


ALL_KEYS = sorted(key for shard in range(4) for key, _ in shard_samples(shard))


def test_an_epoch_is_what_img2dataset_counted(shards: Path) -> None:
    loader = loader_of(shards)
    assert len(loader) == 10
    first, second = keys_of(loader, 10), keys_of(loader, 10)
    assert sorted(first) == sorted(second) == ALL_KEYS
    assert first != second != ALL_KEYS
    assert loader.position == Position(2, 0)


def test_captions_belong_to_their_images(shards: Path) -> None:
    for batch in loader_of(shards):
        assert batch.images.shape == (4, 3, 16, 16)
        for key, caption in zip(batch.keys, batch.captions, strict=True):
            assert caption == f"web {int(key[:5])} {int(key[5:])}"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_readers_share_the_shards(shards: Path, world_size: int, workers: int) -> None:
    count = 5 // world_size
    keys = [
        key
        for rank in range(world_size)
        for key in keys_of(loader_of(shards, 4, workers, rank=rank, world_size=world_size), count)
    ]
    assert len(set(keys)) == len(keys) == 4 * count * world_size


def test_unshuffled(shards: Path) -> None:
    dataset = build_dataset(config_of(shards))
    assert isinstance(dataset, WebShards)
    samples = islice(dataset.samples(0, 0, 1, shuffle=False), 40)
    assert [sample.key for sample in samples] == ALL_KEYS


def test_each_line_is_a_caption(tmp_path: Path) -> None:
    lists = json.dumps({"caption": ["one", None, " ", "t w o"]}).encode()
    write_shard(
        tmp_path / "0.tar",
        [
            ("a", {"jpg": jpeg(1), "txt": b"\xef\xbb\xbffirst\r\n\r\n the  second\rthird\n"}),
            ("b", {"jpg": jpeg(2), "json": lists}),
        ],
    )
    config = config_of(tmp_path, samples_per_epoch=2)
    dataset = build_dataset(config)
    assert isinstance(dataset, WebShards)
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    for epoch in range(30):
        for sample in islice(dataset.samples(epoch, 0, 1), 2):
            seen[sample.key].add(sample.caption)
    assert seen == {"a": {"first", "the second", "third"}, "b": {"one", "t w o"}}
    report = check(config)
    assert (report.captions, report.distinct_captions) == (5, 5)
    assert report.captions_per_image == Spread(2, 2, 3)


def test_images_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = BytesIO()
    picture(6, 60, 40).save(file, "JPEG", exif=exif)
    write_shard(tmp_path / "0.tar", [("a", {"jpg": file.getvalue(), "txt": b"x"})])
    report = check(config_of(tmp_path, samples_per_epoch=1))
    assert (report.width, report.height) == (Spread(40, 40, 40), Spread(60, 60, 60))
    settings = {"augment": False, "image_size": 40}
    dataset = build_dataset(config_of(tmp_path, samples_per_epoch=1, **settings))
    assert isinstance(dataset, WebShards)
    (sample,) = islice(dataset.samples(0, 0, 1), 1)
    write(tmp_path / "folder" / "a.jpg", file.getvalue())
    write(tmp_path / "folder" / "a.txt", "x")
    same_file = build_dataset(DataConfig("folder", str(tmp_path / "folder"), **settings))
    assert isinstance(same_file, CaptionedImages)
    assert torch.equal(sample.image, same_file[0].image)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.slow
def test_resume_is_exact(shards: Path, workers: int) -> None:
    (shards / "00002.tar").write_bytes((shards / "00002.tar").read_bytes()[:-13000])
    write_shard(
        shards / "00001.tar",
        [
            (k, {**f, "jpg": b"broken"}) if n == 5 else (k, f)
            for n, (k, f) in enumerate(shard_samples(1))
        ],
    )
    undisturbed = batches(loader_of(shards, 3, workers), 30)  # 13 an epoch
    assert {p.kind for batch in undisturbed for p in batch.skipped} >= {
        "broken shard",
        "unreadable image",
    }
    for done in (1, 2, 7, 12, 13, 20, 26):
        loader = loader_of(shards, 3, workers)
        loader.resume(Position(done // 13, 3 * (done % 13)))
        assert same(batches(loader, 30 - done)[:4], undisturbed[done : done + 4])


def test_a_reader_starts_over_when_its_shards_end_early(shards: Path) -> None:
    write_shard(shards / "00003.tar", shard_samples(3, 2))
    loader = build_loader(config_of(shards, samples_per_epoch=80), 8)
    keys = keys_of(loader, 10)
    assert len(keys) == 80
    assert len(set(keys)) == 32


def test_truncated_shard_is_counted_and_the_rest_is_used(shards: Path) -> None:
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:9000])
    loader = loader_of(shards)
    keys = set(keys_of(loader, 10))
    (problem,) = loader.skips.examples["broken shard"][:1]
    assert problem.key == "00001.tar"
    assert "unexpected end of data" in problem.detail
    assert {key for key in ALL_KEYS if not key.startswith("00001")} <= keys
    assert any(key.startswith("00001") for key in keys)


@pytest.mark.parametrize("content", [None, b"", b"this is no tar file" * 100])
def test_unreadable_shard_is_counted(shards: Path, content: bytes | None) -> None:
    dataset = build_dataset(config_of(shards))
    assert isinstance(dataset, WebShards)
    if content is None:
        (shards / "00001.tar").unlink()
    else:
        (shards / "00001.tar").write_bytes(content)
    samples = list(islice(dataset.samples(0, 0, 1), 40))
    assert {p.key for s in samples for p in s.skipped if p.kind == "broken shard"} == {"00001.tar"}


def test_broken_samples_are_replaced_and_named(shards: Path) -> None:
    files = dict(shard_samples(0))
    broken = {
        "000000001": {"jpg": jpeg(1)[:200], "txt": b"x"},
        "000000002": {"jpg": jpeg(1), "txt": b" \n"},
        "000000003": {"jpg": jpeg(1)},
        "000000004": {"txt": b"x"},
        "000000005": {"jpg": jpeg(1), "json": b'{"caption": null}'},
        "000000006": {"jpg": jpeg(1), "json": b'{"caption": "from json"}'},
        "000000007": {"png": files["000000007"]["jpg"], "txt": b"a  b\nc"},
    }
    write_shard(shards / "00000.tar", {**files, **broken}.items())
    loader = loader_of(shards)
    seen = batches(loader, 10)
    captions = {k: c for b in seen for k, c in zip(b.keys, b.captions, strict=True)}
    assert all(len(batch) == 4 for batch in seen)
    assert captions["000000006"] == "from json"
    assert captions["000000007"] in ("a b", "c")
    assert {(p.kind, p.key) for batch in seen for p in batch.skipped} == {
        ("unreadable image", "000000001"),
        ("empty captions", "000000002"),
        ("missing captions", "000000003"),
        ("missing image", "000000004"),
        ("empty captions", "000000005"),
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_one_clear_sentence(shards: Path, workers: int) -> None:
    for path in shards.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^no valid sample in 4 shard\(s\), first .*data check"
    ) as e:
        batches(loader_of(shards, 4, workers), 1)
    assert "\n" not in str(e.value)


def test_more_readers_than_shards_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="4 shards are too few for 6 readers"):
        batches(loader_of(shards, 2, 2, world_size=3), 1)


def test_unknown_number_of_samples(shards: Path) -> None:
    (shards / "00002_stats.json").write_text(json.dumps({"count": 1}))
    with pytest.raises(DataError, match=r"00002_stats.json \(KeyError\); set samples_per_epoch"):
        build_dataset(config_of(shards))
    assert len(build_dataset(config_of(shards, samples_per_epoch=7))) == 7


def test_shards_by_name(shards: Path) -> None:
    assert [Path(s).name for s in list_shards(config_of(shards, shards="{00001..00003}.tar"))] == [
        "00001.tar",
        "00002.tar",
        "00003.tar",
    ]
    url = config_of("https://host/cc/", shards="{00..01}.tar")
    assert list_shards(url) == ["https://host/cc/00.tar", "https://host/cc/01.tar"]
    write(shards / "sub" / "x.tar", b"")
    assert len(list_shards(config_of(shards, shards="*/*.tar"))) == 1


@pytest.mark.parametrize(
    ("root", "pattern", "message"),
    [
        ("pipe:touch /tmp/x", "a.tar", "cannot be read from pipe:touch"),
        ("s3://bucket", "a.tar", "expected a folder or a URL starting with http://"),
        ("https://host", "*.tar", "cannot be listed at a URL"),
    ],
)
def test_urls_that_are_refused(root: str, pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_shards(config_of(root, shards=pattern))


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards in .*matches \*\.tar"):
        build_dataset(config_of(tmp_path))


class Files(SimpleHTTPRequestHandler):
    """Serves a folder; breaks off in the middle of 00002.tar."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[:9000] if self.path.endswith("00002.tar") else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset downloads with curl")
def test_shards_over_http(shards: Path) -> None:
    (shards / "00003.tar").unlink()
    handler = partial(Files, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = config_of(
            f"http://127.0.0.1:{server.server_port}",
            shards="{00000..00003}.tar",
            samples_per_epoch=24,
        )
        loader = build_loader(config, 8)
        keys = [key for batch in loader for key in batch.keys]
        server.shutdown()
    assert len(keys) == 24
    assert {"00000", "00001"} <= {key[:5] for key in keys}
    assert {p.key for p in loader.skips.examples["broken shard"]} == {"00002.tar", "00003.tar"}

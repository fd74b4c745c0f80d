from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_data import CUB_KEYS, jpeg, shard_samples, write, write_pickle, write_shard

from galip_edge.data import DataConfig, DataError, check
from galip_edge.data.check import Spread


def test_sound_data(folder: Path) -> None:
    write(folder / "12.jpg", jpeg(12, 500, 400))
    write(folder / "12.txt", "only one")
    calls: list[tuple[int, int]] = []
    config = DataConfig("folder", str(folder))
    report = check(config, lambda done, total: calls.append((done, total)))
    assert report.ok
    assert (report.images, report.captions, report.enlarged, report.shards) == (13, 25, 12, 0)
    assert report.captions_per_image == Spread(1, 2, 2)
    assert (report.width, report.height) == (Spread(60, 60, 500), Spread(40, 40, 400))
    assert report.samples == [("00", "caption 0 one")]
    assert calls == [(13, 13)]
    values = json.loads(json.dumps(report.to_dict()))
    assert values["ok"] is True
    assert values["problems"] == {}
    assert values["width"] == {"minimum": 60, "median": 60, "maximum": 500}


def test_distinct_captions_are_counted(folder: Path, shards: Path) -> None:
    for n in range(6):
        write(folder / f"{n:02}.txt", "a bird\n a  bird \nthe same")
    report = check(DataConfig("folder", str(folder)))
    assert (report.captions, report.distinct_captions) == (18 + 12, 2 + 12)
    assert report.to_dict()["distinct_captions"] == 14
    write_shard(shards / "00001.tar", shard_samples(0))
    report = check(DataConfig("webdataset", str(shards)))
    assert (report.captions, report.distinct_captions) == (40, 30)


def test_every_breakage_of_cub_is_found(cub: Path) -> None:
    images = cub / "CUB_200_2011" / "images"
    (images / f"{CUB_KEYS[0]}.jpg").unlink()
    write(images / f"{CUB_KEYS[1]}.jpg", jpeg(1)[:400])
    write(cub / "text" / f"{CUB_KEYS[2]}.txt", "")
    (cub / "text" / f"{CUB_KEYS[3]}.txt").unlink()
    boxes = cub / "CUB_200_2011" / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("5 10.0 5.0", "5 500.0 500.0"))
    write_pickle(cub / "train" / "filenames.pickle", [*CUB_KEYS[:6], CUB_KEYS[5], "no/such"])
    report = check(DataConfig("cub", str(cub)))
    assert not report.ok
    assert report.images == 2
    found = report.to_dict()["problems"]
    assert {kind: [e["key"] for e in found[kind]["examples"]] for kind in found} == {
        "missing image": [CUB_KEYS[0]],
        "unreadable image": [CUB_KEYS[1]],
        "empty captions": [CUB_KEYS[2]],
        "missing captions": [CUB_KEYS[3]],
        "bad bounding box": [CUB_KEYS[4]],
        "duplicate key": [CUB_KEYS[5]],
        "unknown image": ["no/such"],
    }


def test_examples_are_limited_but_counts_are_not(folder: Path) -> None:
    for n in range(9):
        write(folder / f"{n:02}.jpg", b"")
    problems = check(DataConfig("folder", str(folder))).to_dict()["problems"]
    assert problems["unreadable image"]["count"] == 9
    assert [e["key"] for e in problems["unreadable image"]["examples"]] == [
        f"{n:02}" for n in range(5)
    ]


def test_limit(folder: Path, shards: Path) -> None:
    assert check(DataConfig("folder", str(folder)), limit=4).images == 4
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        check(DataConfig("folder", str(folder)), limit=0)
    pytest.importorskip("webdataset")
    report = check(DataConfig("webdataset", str(shards)), limit=2)
    assert (report.shards, report.images) == (2, 20)


def test_shards(shards: Path) -> None:
    pytest.importorskip("webdataset")
    tars = [shards / f"{n:05}.tar" for n in range(4)]
    tars[0].write_bytes(tars[0].read_bytes()[:9000])
    # Cut exactly after a file: only the missing end mark shows it.
    whole = write_shard(tars[1], shard_samples(1, 9)).read_bytes().rstrip(b"\0")
    tars[1].write_bytes(whole + bytes(-len(whole) % 512))
    tars[2].write_bytes(b"")
    samples = shard_samples(3)
    write_shard(tars[3], [*samples, samples[4]])
    report = check(DataConfig("webdataset", str(shards)))
    found = report.to_dict()["problems"]
    broken = {e["key"]: e["detail"] for e in found["broken shard"]["examples"]}
    assert broken.keys() == {"00000.tar", "00001.tar", "00002.tar"}
    assert "unexpected end of data" in broken["00000.tar"]
    assert "no end mark" in broken["00001.tar"]
    assert [e["key"] for e in found["duplicate key"]["examples"]] == ["000030004"]
    assert report.shards == 4


def test_what_makes_all_data_unusable_is_raised(cub: Path) -> None:
    write(cub / "train" / "filenames.pickle", b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match="is unsafe"):
        check(DataConfig("cub", str(cub)))

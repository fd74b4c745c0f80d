from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_data import CUB_KEYS, jpeg, picture, write, write_pickle

from galip_edge.data import CaptionedImages, DataConfig, DataError, build_dataset, check
from galip_edge.data.errors import SampleError
from galip_edge.data.records import Source


def source_of(kind: str, root: Path, **settings: Any) -> Source:
    dataset = build_dataset(DataConfig(kind, str(root), image_size=32, **settings))
    assert isinstance(dataset, CaptionedImages)
    sample = dataset[0]
    assert sample.image.shape == (3, 32, 32)
    assert -1 <= sample.image.min() < sample.image.max() <= 1
    assert sample.caption in dataset.source.captions(0)
    assert sample.key == dataset.source.key(0)
    return dataset.source


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def refused(message: str, kind: str, root: Path, **settings: Any) -> None:
    with pytest.raises(DataError, match=message) as raised:
        build_dataset(DataConfig(kind, str(root), **settings))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["cub", "coco", "cc3m", "cc12m", "folder", "table", "webdataset"])
def test_missing_root(kind: str) -> None:
    settings = {"table": "t.csv"} if kind == "table" else {}
    refused("no such folder: /nowhere; set root", kind, Path("/nowhere"), **settings)


# CUB


def test_cub_in_the_familys_layout(cub: Path) -> None:
    source = source_of("cub", cub)
    assert keys(source) == CUB_KEYS[:6]
    assert source.captions(1) == ("a bird 1.", "it has a beak.")
    # Bounding box 20x16 at (10,5): radius 15 around (20,13), clipped above.
    assert source.image(1).size == (30, 28)
    assert keys(source_of("cub", cub, split="test")) == CUB_KEYS[6:]


@pytest.mark.parametrize("root", ["birds", "birds/CUB_200_2011"])
def test_cub_in_the_official_layout(cub: Path, root: str) -> None:
    shutil.rmtree(cub / "train")
    shutil.rmtree(cub / "test")
    official = cub / "CUB_200_2011"
    (cub / "text").rename(official / "text_c10")
    split = "".join(f"{n} {n % 2}\n" for n in range(1, 9))
    write(official / "train_test_split.txt", split)
    source = source_of("cub", cub.parent / root)
    assert keys(source) == CUB_KEYS[0::2]
    assert source.captions(0) == ("a bird 0.", "it has a beak.")
    assert keys(source_of("cub", cub.parent / root, split="test")) == CUB_KEYS[1::2]


def test_cub_errors(cub: Path) -> None:
    (cub / "text").rename(cub / "sentences")
    refused("no folder of captions for CUB: none of .*text_c10", "cub", cub)
    assert source_of("cub", cub, text="sentences").captions(0)
    boxes = cub / "CUB_200_2011" / "bounding_boxes.txt"
    boxes.write_text("1 1 2 3 4\n2 1 2 3\n")
    refused("bounding_boxes.txt is damaged at line 2: expected 5 columns", "cub", cub)
    boxes.write_text("1 1 2 3 nan\n")
    refused("bounding_boxes.txt is damaged: cannot convert", "cub", cub)
    boxes.unlink()
    refused("cannot read .*bounding_boxes.txt: No such file", "cub", cub)


def test_cub_without_a_split(cub: Path) -> None:
    shutil.rmtree(cub / "train")
    refused("neither .*train/filenames.pickle nor .*train_test_split.txt exists", "cub", cub)


def test_cub_key_that_is_nowhere(cub: Path) -> None:
    write_pickle(cub / "train" / "filenames.pickle", [*CUB_KEYS[:2], "009.None/None_1"])
    source = source_of("cub", cub)
    with pytest.raises(SampleError, match=r"unknown image: 009.None/None_1 .*images.txt"):
        source.image(2)


# COCO


def test_coco_in_the_familys_layout(coco_family: Path) -> None:
    source = source_of("coco", coco_family)
    assert keys(source) == [f"COCO_train2014_{n:012}" for n in range(5)]
    assert source.captions(3) == ("thing 3 in train", "another caption")
    test = source_of("coco", coco_family, split="test")
    assert test.captions(0) == ("thing 0 in test", "another caption")


@pytest.mark.parametrize("folder", ["images/train2014", "images", "train2014"])
def test_coco_images_are_found_where_people_put_them(coco_family: Path, folder: str) -> None:
    images = coco_family / "images" / "train2014" / "jpg"
    moved = images.rename(coco_family / "moved")
    shutil.rmtree(coco_family / "images")
    (coco_family / folder).parent.mkdir(exist_ok=True)
    moved.rename(coco_family / folder)
    assert len(source_of("coco", coco_family)) == 5


def test_coco_in_the_official_layout(coco_official: Path) -> None:
    source = source_of("coco", coco_official)
    assert keys(source) == [f"COCO_train2014_{n:012}" for n in range(4)]
    assert source.captions(2) == tuple(f"thing 2, view {m}" for m in range(5))
    assert source_of("coco", coco_official, split="test").key(0).startswith("COCO_val2014")


def test_coco_format_of_other_data(coco_official: Path) -> None:
    annotations = coco_official / "annotations"
    shutil.copy(annotations / "captions_val2014.json", annotations / "captions_val2017.json")
    refused("several lists of captions .*annotations setting", "coco", coco_official, split="test")
    chosen = {"split": "test", "annotations": "annotations/captions_val2014.json"}
    assert len(source_of("coco", coco_official, **chosen)) == 4
    (annotations / "captions_val2014.json").rename(coco_official / "mine.json")
    (coco_official / "val2014").rename(coco_official / "images")
    assert len(source_of("coco", coco_official, annotations="mine.json")) == 4


def test_coco_images_without_captions_and_captions_without_images(coco_official: Path) -> None:
    path = coco_official / "annotations" / "captions_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    content["annotations"].append({"image_id": 77, "caption": "lost"})
    path.write_text(json.dumps(content))
    source = source_of("coco", coco_official)
    with pytest.raises(SampleError, match=r"empty captions: COCO_train2014_000000000003"):
        source.captions(3)
    with pytest.raises(SampleError, match=r"unknown image: 77 .*does not list it"):
        source.captions(4)


def test_coco_errors(coco_family: Path, coco_official: Path) -> None:
    refused("cannot read .*no.json", "coco", coco_official, annotations="no.json")
    path = coco_official / "annotations" / "captions_train2014.json"
    path.write_text('{"images": [{"id": 1}]}')
    refused(r"not in COCO's caption format \(KeyError: 'file_name'\)", "coco", coco_official)
    path.write_text('{"images": [')
    refused("not in COCO's caption format", "coco", coco_official)
    path.unlink()
    refused(r"neither .*filenames.pickle nor annotations/captions_train\*", "coco", coco_official)
    shutil.rmtree(coco_family / "text")
    refused("no such folder: .*text; .*COCO's captions", "coco", coco_family)
    shutil.rmtree(coco_family / "images")
    refused("no image of COCO found: COCO_train2014_0", "coco", coco_family)


# CC3M and CC12M


def test_conceptual_captions_in_the_familys_layout(conceptual: Path) -> None:
    kind = conceptual.name
    source = source_of(kind, conceptual)
    assert keys(source) == [*(f"{n:09}_{n % 2}" for n in range(4)), f"{0:09}_7"]
    captions = [source.captions(index) for index in range(5)]
    assert captions == [*((f"web image {n}",) for n in range(4)), ("web image 0",)]
    test = source_of(kind, conceptual, split="test")
    assert test.captions(0) == ("web image 10",)
    assert source.image(0).size == (60, 40)
    report = check(DataConfig(kind, str(conceptual)))
    assert report.ok
    assert (report.images, report.captions, report.distinct_captions) == (5, 5, 4)


def test_conceptual_captions_errors(conceptual: Path) -> None:
    kind = conceptual.name
    shutil.rmtree(conceptual / "text")
    refused(f"no such folder: .*text.*{kind.upper()}'s captions.*webdataset", kind, conceptual)
    shutil.rmtree(conceptual / "images")
    refused(f"no such folder: .*images.*{kind.upper()}'s images", kind, conceptual)
    (conceptual / "train" / "filenames.pickle").unlink()
    refused("cannot read .*train/filenames.pickle", kind, conceptual)


# Folders and tables


def test_folder(folder: Path) -> None:
    picture(99).save(folder / "z.png")
    write(folder / "z.txt", "\ufeffwith a mark\r\n\r\n  and   spaces \rold Mac\r\n")
    write(folder / "deeper" / "a.b.JPG", jpeg(98))
    write(folder / "deeper" / "a.b.txt", b"caf\xc3\xa9\nbroken \xff byte")
    write(folder / ".hidden.jpg", b"")
    write(folder / ".cache" / "x.jpg", b"")
    source = source_of("folder", folder)
    assert keys(source) == [*(f"{n:02}" for n in range(12)), "z", "deeper/a.b"]
    assert source.captions(12) == ("with a mark", "and spaces", "old Mac")
    assert source.captions(13) == ("café", "broken byte")


def test_empty_folder(tmp_path: Path) -> None:
    refused("no images in .*: expected files ending in .jpg", "folder", tmp_path)


ROWS = [("01.jpg", "one, first"), ("02.jpg", "two"), ("01.jpg", "one, second")]


def write_table(path: Path, image: str = "image", caption: str = "caption") -> Path:
    rows = [{image: name, caption: text, "other": "x"} for name, text in ROWS]
    if path.suffix == ".jsonl":
        return write(path, "\n".join(map(json.dumps, rows)) + "\n\n")
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [[image, caption, "other"], *([name, f'"{text}"', "x"] for name, text in ROWS)]
    return write(path, "\n".join(separator.join(line) for line in lines))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_table(folder: Path, suffix: str) -> None:
    write_table(folder / f"t.{suffix}")
    source = source_of("table", folder, table=f"t.{suffix}")
    assert keys(source) == ["01.jpg", "02.jpg"]
    assert [source.captions(n) for n in (0, 1)] == [("one, first", "one, second"), ("two",)]
    write_table(folder / f"u.{suffix}", "file", "text")
    columns = {"image_column": "file", "caption_column": "text"}
    assert len(source_of("table", folder, table=f"u.{suffix}", **columns)) == 2
    refused("no column 'image', it has 'file', 'text'", "table", folder, table=f"u.{suffix}")


def test_table_with_lists_and_gaps(folder: Path) -> None:
    write(
        folder / "t.jsonl",
        '{"image": "01.jpg", "caption": ["a", " ", "b"]}\n{"image": "02.jpg", "caption": null}',
    )
    source = source_of("table", folder, table="t.jsonl")
    assert source.captions(0) == ("a", "b")
    with pytest.raises(SampleError, match=r"empty captions: 02.jpg"):
        source.captions(1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "has no rows"),
        ("t.csv", "image,caption\n", "has no rows"),
        ("t.csv", "image,caption\na.jpg,one, two\n", "more cells than the header.*in quotes"),
        ("t.csv", "image,caption\n,hello\n", "a row without an image"),
        ("t.csv", b"image,caption\na.jpg,\xff\n", "is damaged: .*utf-8"),
        ("t.jsonl", '{"image": "a", "caption": "b"}\n{"image"', "is damaged: line 2: "),
        ("t.jsonl", "[1]", "line 1: expected an object"),
        ("t.parquet", b"PAR1 not really", "is damaged|cannot read"),
        ("t.txt", "x", "is not a table: expected a file ending in .csv"),
    ],
)
def test_table_errors(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    write(tmp_path / name, content)
    refused(message, "table", tmp_path, table=name)


def test_table_with_a_date_that_python_cannot_hold(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    dates = pyarrow.array([2**62], pyarrow.timestamp("us"))  # of the year 148,000
    table = pyarrow.table({"image": ["01.jpg"], "caption": ["one"], "taken": dates})
    parquet.write_table(table, folder / "t.parquet")
    assert keys(source_of("table", folder, table="t.parquet")) == ["01.jpg"]  # it is not needed
    message = "t.parquet is damaged: date value out"
    refused(message, "table", folder, table="t.parquet", caption_column="taken")


def test_missing_table(tmp_path: Path) -> None:
    refused("cannot read .*t.csv: No such file", "table", tmp_path, table="t.csv")

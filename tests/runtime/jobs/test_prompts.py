import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.errors import JobError
from runtime.jobs.prompts import PromptFile


def rows(tmp_path, name, content, **settings):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(PromptFile(path, **settings).rows())


def test_lines(tmp_path):
    found = rows(tmp_path, "p.txt", "a bird\n\n  two dogs \r\nlast", count=3, seed=7)
    assert [row.prompt for row in found] == ["a bird", "two dogs", "last"]
    assert [(row.number, row.id, row.count, row.seed) for row in found] == [
        (0, "00000000", 3, 7),
        (1, "00000001", 3, 7),
        (2, "00000002", 3, 7),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'id,prompt,n,seed,colour\na,"a bird, red",2,5,red\nb,two dogs,,,\n'),
        ("p.tsv", "id\tprompt\tn\tseed\tcolour\na\ta bird, red\t2\t5\tred\nb\ttwo dogs\t\t\t\n"),
        (
            "p.jsonl",
            '{"id": "a", "prompt": "a bird, red", "n": 2, "seed": 5, "colour": "red"}\n'
            '{"id": "b", "prompt": "two dogs", "colour": ""}\n',
        ),
        ("p.csv", '\ufeffid,Prompt,N,seed,colour\r\na,"a bird, red",2,5,red\r\nb,two dogs,,,\r\n'),
    ],
)
def test_columns(name, content, tmp_path):
    first, second = rows(tmp_path, name, content, keep_columns=("colour",))
    assert (first.id, first.prompt, first.count, first.seed) == ("a", "a bird, red", 2, 5)
    assert first.columns == {"colour": "red"}
    assert (second.id, second.prompt, second.count, second.seed) == ("b", "two dogs", 1, 0)
    assert first.error is second.error is None


def test_parquet(tmp_path):
    table = pa.table({"prompt": ["a bird", None], "n": [2, 1], "when": [1.5, None]})
    pq.write_table(table, tmp_path / "p.parquet")
    good, bad = PromptFile(tmp_path / "p.parquet", keep_columns=("when",)).rows()
    assert (good.prompt, good.count, good.columns) == ("a bird", 2, {"when": 1.5})
    assert "must be text, got None" in bad.error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a \xff bird", "not valid UTF-8 text at character 2"),
        ("p.txt", b"a \0 bird", "NUL character"),
        ("p.txt", b"x" * 3000, "3,000 characters, at most 2,000"),
        ("p.txt", b"x" * (1 << 21), "over 1,048,576 characters"),
        ("p.csv", b"prompt\n" + b"x" * (1 << 21), "over 1,048,576 characters"),
        ("p.csv", b"prompt\n" + b"x" * 200_000, "field larger than field limit"),
        ("p.csv", b"prompt,n\n ,1", "the prompt is empty"),
        ("p.csv", b"prompt,n\na,two", "n must be an integer from 1 to .* got 'two'"),
        ("p.csv", b"prompt,n\na,0", "n must be an integer .* got '0'"),
        ("p.csv", b"prompt,seed\na,-1", "seed must be an integer from 0 .* got '-1'"),
        ("p.csv", b"prompt,n\na,1,2", "the row has 3 columns, the header 2"),
        ("p.csv", b"id,prompt\n\xff,a bird", "not valid UTF-8"),
        ("p.jsonl", b"{", "invalid JSON"),
        ("p.jsonl", b"[" * 100_000, "invalid JSON"),
        ("p.jsonl", b"[1]", "expected a JSON object, got"),
        ("p.jsonl", b'{"url": "a"}', "no key 'prompt'"),
        ("p.jsonl", b'{"prompt": 5}', "must be text, got 5"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "not valid UTF-8"),
        ("p.jsonl", b'{"prompt": "a", "n": 1.5}', "n must be an integer .* got 1.5"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_in_that_row(name, content, message, tmp_path):
    good = {"txt": b"two dogs", "csv": b"two dogs", "jsonl": b'{"prompt": "two dogs"}'}
    if name == "p.csv" and content.startswith((b"id", b"prompt,")):
        columns = content.split(b"\n")[0].split(b",")
        good["csv"] = b",".join(b"two dogs" if c == b"prompt" else b"" for c in columns)
    found = rows(tmp_path, name, content + b"\n" + good[name[2:]] + b"\n")
    assert len(found) == 2
    import re

    assert re.search(message, found[0].error)
    assert (found[1].prompt, found[1].error) == ("two dogs", None)
    for row in found:  # can be written everywhere
        json.dumps(vars(row), ensure_ascii=False).encode()


def test_an_id_is_given_once(tmp_path):
    content = "id,prompt\na,one\nb,two\na,three\n,four\n,five\n"
    found = rows(tmp_path, "p.csv", content)
    assert [row.error for row in found] == [
        *(None, None),
        "duplicate id 'a' (first used in row 0)",
        *(None, None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"url\na bird\n", "no column 'prompt', only 'url'"),
        ("p.dat", b"a bird\n", "--input-format"),
        ("p.parquet", b"a bird\n", "damaged or not a Parquet file"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(name, content, message, tmp_path):
    with pytest.raises(JobError, match=message):
        rows(tmp_path, name, content)


@pytest.mark.parametrize("column", ["prompt", "kind"])
def test_parquet_values_that_python_cannot_hold_are_one_sentence(column, tmp_path):
    raw = pa.array([b"a bird", b"\xee\xff"])
    prompts = pa.StringArray.from_buffers(2, *raw.buffers()[1:])  # not UTF-8
    dates = pa.array([0, 2**62], pa.timestamp("us"))  # of the year 148,000
    table = {"prompt": prompts} if column == "prompt" else {"prompt": ["a", "b"], "kind": dates}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    keep = ("kind",) if column == "kind" else ()
    with pytest.raises(JobError, match=r"p.parquet has a value that Python cannot hold \("):
        list(PromptFile(tmp_path / "p.parquet", keep_columns=keep).rows())


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(JobError, match=r"cannot read the prompts in .*: No such file"):
        list(PromptFile(tmp_path / "p.txt").rows())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "xlsx"}, "format must be one of txt, .* got 'xlsx'"),
        ({"count": 0}, "count must be from 1 to 1,000,000, got 0"),
        ({"seed": -1}, "seed must be from 0 to .* got -1"),
        ({"keep_columns": ("file",)}, "column 'file' cannot be kept"),
    ],
)
def test_invalid_settings_are_named(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PromptFile(tmp_path / "p.txt", **settings)


TABLE = "prompt;seed\na rød bird;3\ntwo dogs;\n"


def compressed(suffix: str, content: bytes) -> bytes:
    import bz2
    import gzip
    import lzma

    compress = {
        "": bytes,
        ".gz": lambda data: gzip.compress(data, mtime=0),
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }
    return compress[suffix](content)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
def test_files_as_spreadsheets_write_them(delimiter, encoding, suffix, tmp_path):
    content = TABLE.replace(";", delimiter).replace("\n", "\r\n").encode(encoding)
    found = rows(tmp_path, f"p.csv{suffix}", compressed(suffix, content))
    assert [(row.prompt, row.seed, row.error) for row in found] == [
        ("a rød bird", 3, None),
        ("two dogs", 0, None),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_and_json_in_any_encoding(encoding, suffix, tmp_path):
    lines = compressed(suffix, "a rød bird\ntwo dogs\n".encode(encoding))
    assert [r.prompt for r in rows(tmp_path, f"p.txt{suffix}", lines)] == ["a rød bird", "two dogs"]
    lines = compressed(suffix, '{"Caption": "a rød bird"}\n'.encode(encoding))
    assert [r.prompt for r in rows(tmp_path, f"p.jsonl{suffix}", lines)] == ["a rød bird"]


@pytest.mark.parametrize("name", ["prompt", "Prompt", "CAPTION", "caption", "Text", "TEXT"])
def test_the_column_of_prompts_is_found(name, tmp_path):
    pq.write_table(pa.table({name: ["a bird"], "SEED": [3]}), tmp_path / "p.parquet")
    found = {
        "parquet": list(PromptFile(tmp_path / "p.parquet").rows()),
        "csv": rows(tmp_path, "p.csv", f"{name},SEED\na bird,3\n"),
        "tsv": rows(tmp_path, "p.tsv", f"{name}\tSEED\na bird\t3\n"),
        "jsonl": rows(tmp_path, "p.jsonl", f'{{"{name}": "a bird", "SEED": 3}}\n'),
        "json": rows(tmp_path, "p.json", f'[\n {{"{name}": "a bird",\n  "SEED": 3}}\n]\n'),
    }
    for kind, (row,) in found.items():
        assert (row.prompt, row.seed) == ("a bird", 3), kind


def test_another_column_of_prompts(tmp_path):
    for name, content in (
        ("p.csv", "text,Title\nx,a bird\n"),
        ("p.jsonl", '{"text": "x", "Title": "a bird"}\n'),
    ):
        (row,) = rows(tmp_path, name, content, prompt_column="title")
        assert row.prompt == "a bird"
        with pytest.raises(JobError, match=r"no (column|key) 'name', only .*--prompt-column"):
            rows(tmp_path, name, content, prompt_column="name")


@pytest.mark.parametrize("value", ["3", "3.0", " 3 ", "3."])
def test_integers_as_data_frames_write_them(value, tmp_path):
    (row,) = rows(tmp_path, "p.csv", f"prompt,n,seed\na bird,{value},{value}\n")
    assert (row.count, row.seed, row.error) == (3, 3, None)


def test_floats_of_data_frames(tmp_path):
    table = pa.table({"prompt": ["a", "b", "c"], "seed": [3.0, float("nan"), 1.5]})
    pq.write_table(table, tmp_path / "p.parquet")
    found = list(PromptFile(tmp_path / "p.parquet").rows())
    assert [row.seed for row in found[:2]] == [3, 0]
    assert "seed must be an integer" in found[2].error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.xlsx", b"PK\3\4", "workbook, which is not supported: save the sheet as CSV"),
        ("p.xls", b"\xd0\xcf\x11\xe0", "workbook, which is not supported: save the sheet as CSV"),
        ("p.csv", b"PK\3\4aaaaaa", "workbook.*: save the sheet as CSV"),
        ("p.txt", b"\xd0\xcf\x11\xe0aaaaa", "workbook: save the sheet as CSV"),
        ("p.csv", b"PAR1aaaaaaaa", "a Parquet file: pass --input-format parquet"),
        ("p.txt.gz", b"\x1f\x8b\x08\0aaaaaaaaaaaa", "damaged or incomplete"),
        ("p.txt.zst", b"\x28\xb5\x2f\xfdaaaaaa", "damaged or incomplete"),
        ("p.jsonl", b'{"url": "x"}\n', "no key 'prompt', only 'url'"),
        ("p.json", b'[{"prompt": "x"}', "is invalid JSON"),
        ("p.csv", b"prompt,a,a\nx,1,2\n", "two columns 'a'"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(name, content, message, tmp_path):
    with pytest.raises(JobError, match=message):
        rows(tmp_path, name, content, keep_columns=("a",) if b",a,a" in content else ())


def test_a_cut_archive_is_one_sentence(tmp_path):
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        import random

        noise = "".join(random.Random(0).choices("abcdefgh \n", k=300_000))
        content = compressed(suffix, noise.encode())
        with pytest.raises(JobError, match="is damaged or incomplete"):
            rows(tmp_path, f"p.txt{suffix}", content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("p.txt", "a bird\n".encode("utf-16"), "lines of text, UTF-16"),
        ("p.csv", b"Caption;n\nx;1\n", "delimiter semicolon, prompts in column 'Caption'"),
        ("p.csv", b"sep=|\nprompt|n\nx|1\n", "CSV, UTF-8, delimiter bar"),
        ("p.jsonl.gz", compressed(".gz", b'{"TEXT": "x"}\n'), "UTF-8, gzip, prompts in column"),
    ],
)
def test_what_was_understood(name, content, wanted, tmp_path):
    assert rows(tmp_path, name, content)[0].error is None
    assert wanted in str(PromptFile(tmp_path / name).layout)


def test_another_encoding_can_be_given(tmp_path):
    content = "prompt\nein Käuzchen\n".encode("cp1252")
    assert "not valid UTF-8" in rows(tmp_path, "p.csv", content)[0].error
    assert rows(tmp_path, "p.csv", content, encoding="cp1252")[0].prompt == "ein Käuzchen"
    with pytest.raises(JobError, match="unknown --encoding 'klingon'"):
        rows(tmp_path, "p.csv", content, encoding="klingon")

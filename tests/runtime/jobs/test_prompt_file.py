import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.errors import JobError
from runtime.jobs.prompt_file import PromptFile


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
    first, second = rows(tmp_path, name, content, carry=("colour",))
    assert (first.id, first.prompt, first.count, first.seed) == ("a", "a bird, red", 2, 5)
    assert first.carried == {"colour": "red"}
    assert (second.id, second.prompt, second.count, second.seed) == ("b", "two dogs", 1, 0)
    assert first.error is second.error is None


def test_parquet(tmp_path):
    table = pa.table({"prompt": ["a bird", None], "n": [2, 1], "when": [1.5, None]})
    pq.write_table(table, tmp_path / "p.parquet")
    good, bad = PromptFile(tmp_path / "p.parquet", carry=("when",)).rows()
    assert (good.prompt, good.count, good.carried) == ("a bird", 2, {"when": 1.5})
    assert "no text but None" in bad.error


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
        ("p.csv", b"prompt,n\na,1,2", "the row has 3 columns, the first row 2"),
        ("p.csv", b"id,prompt\n\xff,a bird", "not valid UTF-8"),
        ("p.jsonl", b"{", "the line is no JSON"),
        ("p.jsonl", b"[" * 100_000, "the line is no JSON"),
        ("p.jsonl", b"[1]", "no JSON object but"),
        ("p.jsonl", b'{"url": "a"}', "no key 'prompt'"),
        ("p.jsonl", b'{"prompt": 5}', "no text but 5"),
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
        ("p.parquet", b"a bird\n", "damaged or no Parquet file"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(name, content, message, tmp_path):
    with pytest.raises(JobError, match=message):
        rows(tmp_path, name, content)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(JobError, match=r"cannot read the prompts in .*: No such file"):
        list(PromptFile(tmp_path / "p.txt").rows())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "xlsx"}, "format must be one of txt, .* got 'xlsx'"),
        ({"count": 0}, "count must be from 1 to 1,000,000, got 0"),
        ({"seed": -1}, "seed must be from 0 to .* got -1"),
        ({"carry": ("file",)}, "column 'file' cannot be kept"),
    ],
)
def test_invalid_settings_are_named(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PromptFile(tmp_path / "p.txt", **settings)

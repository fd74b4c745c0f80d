"""Damaged prompt files, with a fixed seed: each outcome is rows or one sentence.

    FUZZ_CASES=100000 FUZZ_SEED=1 pytest --timeout 3600 tests/runtime/jobs/test_fuzz_prompts.py

damages more files, in other ways.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.errors import JobError
from runtime.jobs.prompts import PromptFile

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
SEED = os.environ.get("FUZZ_SEED", "")

ROWS = [
    {"id": f"r{i}", "prompt": f"a bird {i} é", "n": 2, "seed": i, "weight": 1.5 * i, "more": [i]}
    for i in range(20)
]
# What is inserted or replaces bytes.
ODD = (
    *(b"\0" * 50, b"\xff\xfe", b'"' * 3, b"9" * 400, b"[", b"{" * 3000, b"\n\n", b"NaN", b"1e999"),
    *(b"\xed\xa0\x80", b"-1", b"\x1b[2J", b"\xee"),
)


def whole_files() -> dict[str, bytes]:
    header = "id,prompt,n,seed,weight\n"
    cells = '{id},"{prompt}",{n},{seed},{weight}\n'
    table = header + "".join(cells.format(**row) for row in ROWS)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    texts = {
        "txt": "\n".join(row["prompt"] for row in ROWS),
        "csv": table,
        "tsv": table.replace(",", "\t"),
        "jsonl": lines,
    }
    found = {}
    for suffix, text in texts.items():
        found[f"p.{suffix}"] = plain = text.encode()
        found[f"utf16.{suffix}"] = text.encode("utf-16")
        for end, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
            found[f"p.{suffix}.{end}"] = compress(plain)
    columns = pa.Table.from_pylist([row | {"when": datetime(2020, 1, 1)} for row in ROWS])
    for compression in ("none", "snappy", "zstd"):
        for dictionary in (True, False):
            file = io.BytesIO()
            pq.write_table(columns, file, compression=compression, use_dictionary=dictionary)
            found[f"{compression}-{dictionary}.parquet"] = file.getvalue()
    return found


def damaged(content: bytes, draw: random.Random) -> bytes:
    data, kind = bytearray(content), draw.randrange(4)
    place = draw.randrange(len(data))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(draw.choice((1, 1, 3, 20))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        end = place if kind == 2 else place + draw.randrange(9)
        data[place:end] = draw.choice(ODD)
    return bytes(data)


def test_a_damaged_prompt_file_gives_rows_or_one_sentence(tmp_path):
    draw, files = random.Random(f"prompts{SEED}"), whole_files()
    messages = []
    for _ in range(CASES):
        name = draw.choice(list(files))
        path = tmp_path / name
        path.write_bytes(damaged(files[name], draw))
        columns = ("when", "weight", "more") if name.endswith("parquet") else ("weight",)
        keep = draw.sample(columns, draw.randrange(len(columns))) if "txt" not in name else []
        try:
            list(PromptFile(path, keep_columns=tuple(keep)).rows())
        except JobError as error:
            messages.append(str(error))
    assert CASES // 5 < len(messages) < CASES * 9 // 10
    assert not [text for text in messages if len(text.splitlines()) > 1 or len(text) > 1500]

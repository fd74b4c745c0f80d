from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from made_data import python2_pickle, write, write_pickle

from galip_edge.data import DataError
from galip_edge.data.pickles import read_keys, read_plain_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    plain = {"a": ["x", 1, 2.5, True, None, (1, 2)], "b": {"c": "é"}}
    assert read_plain_pickle(write_pickle(tmp_path / "p", plain, protocol)) == plain


def test_python2_pickles(tmp_path: Path) -> None:
    keys = ["002.Laysan_Albatross/Laysan_Albatross_0002_1027", "b"]
    assert read_keys(write(tmp_path / "p", python2_pickle(keys))) == keys


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"(lp0\nS'caf\\xc3\\xa9'\na.", "café"),  # a UTF-8 byte string
        (b"(lp0\nS'caf\\xe9'\na.", "café"),  # a Latin-1 byte string
        (b"\x80\x02]q\x00U\x05caf\xc3\xa9q\x01a.", "café"),  # the same, protocol 2
        (b"\x80\x02]q\x00U\x04caf\xe9q\x01a.", "café"),
    ],
)
def test_python2_byte_strings(tmp_path: Path, content: bytes, key: str) -> None:
    assert read_keys(write(tmp_path / "p", content)) == [key]


class Hostile:
    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path = write_pickle(tmp_path / "p", ["a", Hostile(tmp_path / "ran")], protocol)
    with pytest.raises(DataError, match=r"is unsafe: it would load (posix|os)\.system"):
        read_keys(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # it does run where it is not refused
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # GLOBAL
        b"(ibuiltins\neval\n.",  # INST
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",  # STACK_GLOBAL
        b"Psomething\n.",  # PERSID
    ],
)
def test_every_way_to_an_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="is unsafe"):
        read_plain_pickle(write(tmp_path / "p", content))


@pytest.mark.parametrize("content", [b"", b"hello", b"(lp0\nS'a'\n", b"\x80\x02]q\x00U\xff."])
def test_damaged_pickle(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="not a readable pickle"):
        read_keys(write(tmp_path / "p", content))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "lists no files"),
        ({"a": 1}, "contains a dict"),
        ([1, 2], "contains a list of other values"),
    ],
)
def test_pickle_of_something_else(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_keys(write_pickle(tmp_path / "p", value))


def test_missing_pickle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing: No such file"):
        read_keys(tmp_path / "nothing")

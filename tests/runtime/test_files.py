import os

import pytest

from runtime.errors import GalipEdgeError
from runtime.files import atomic_folder, atomic_path, sha256_of


def test_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert os.listdir(path.parent) == ["file"]


def test_failure_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(GalipEdgeError, match="No space left"), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(path, replace=True) as temporary:
        (temporary / "a").write_text("2")
        raise RuntimeError
    assert (path / "a").read_text() == "1"
    with atomic_folder(path, replace=True) as temporary:
        (temporary / "b").write_text("2")
    assert os.listdir(path) == ["b"]
    assert os.listdir(tmp_path) == ["folder"]


def test_existing_folder_is_not_replaced_unasked(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "keep").write_text("")
    with (
        pytest.raises(GalipEdgeError, match="cannot write"),
        atomic_folder(tmp_path / "folder") as temporary,
    ):
        (temporary / "a").write_text("1")
    assert os.listdir(tmp_path / "folder") == ["keep"]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f").startswith("ba7816bf8f01cfea")

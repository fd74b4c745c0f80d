"""Reading the lists of file names that this family of models keeps in pickles."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from galip_edge.data.errors import DataError


class _RefusedError(Exception):
    """The pickle asks for something that could run code."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, dicts, sets, strings and numbers; these need no class by name.

    Every way for a pickle to reach other objects, and so code, goes through `find_class` or
    `persistent_load`.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("a persistent object")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain values holds, without running any code in it.

    Byte strings of Python 2 become text: UTF-8 where they are valid UTF-8, else Latin-1.

    Raises:
        DataError: the file is missing, damaged, or holds anything but plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}; check the data set's root and split"
        ) from error
    try:
        try:
            return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    except _RefusedError as error:
        raise DataError(
            f"{path} is unsafe: it would load {error}, where a list of file names holds only "
            "text; nothing was run, get the file from a source you trust"
        ) from error
    except Exception as error:
        # Damaged bytes end in exceptions of a dozen types, from IndexError to MemoryError.
        raise DataError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error}); download it again"
        ) from error


def read_keys(path: Path) -> list[str]:
    """The keys in a `filenames.pickle`: a list of text.

    Raises DataError as `read_plain_pickle` does, and if it holds anything else or no keys.
    """
    keys = read_plain_pickle(path)
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise DataError(
            f"{path} must hold a list of file names, but it holds a {type(keys).__name__}"
            + (" of other values" if isinstance(keys, (list, tuple)) else "")
        )
    if not keys:
        raise DataError(f"{path} lists no files; download it again or check the split")
    return list(keys)

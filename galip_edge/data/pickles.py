"""Safe reading of lists of file names in pickles, as in the data of DF-GAN and GALIP."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from galip_edge.checkpoints.pickle_guard import MAX_TUPLE_DEPTH
from galip_edge.data.errors import DataError

_NESTING = {pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET}


class _RefusedError(Exception):
    """The pickle refers to an object that could run code."""


# The pure Python unpickler: the one in C allocates 16 bytes for each number up to the greatest memo
# index in the file, which may be 2**32.
#
# C computes the hash of a tuple by unlimited recursion, so a tuple nested a million times as a
# dictionary key would crash the process.
class _PlainUnpickler(pickle._Unpickler):
    """Builds lists, tuples, dicts, sets, strings and numbers, which need no class.

    A pickle reaches other objects, and thus code, only through `find_class` or `persistent_load`.
    """

    def __init__(self, file: io.BytesIO, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._nested: dict[int, tuple[int, object]] = {}  # tuples by their id, with their depth

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("a persistent object")

    def refuse_deep(self, built: Iterable[object]) -> None:
        """Raise ValueError if a new tuple or frozenset is nested too deeply."""
        depth = 1 + max((self._nested.get(id(item), (0, None))[0] for item in built), default=0)
        if depth > MAX_TUPLE_DEPTH:
            raise ValueError(f"tuples are nested more than {MAX_TUPLE_DEPTH} levels deep")
        self._nested[id(built)] = depth, built  # kept, so its id is not reused


def _checked(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_check(unpickler: Any) -> None:
        load(unpickler)
        unpickler.refuse_deep(unpickler.stack[-1])

    return load_and_check


_PlainUnpickler.dispatch = {
    code: _checked(load) if bytes([code]) in _NESTING else load
    for code, load in pickle._Unpickler.dispatch.items()
}


def read_plain_pickle(path: Path) -> Any:
    """Content of a pickle of plain values, read without running any code in it.

    Byte strings of Python 2 become text: UTF-8 if valid, otherwise Latin-1.

    Raises:
        DataError: the file is missing, damaged, or holds other objects than plain values.
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
            f"{path} is unsafe: it would load {error}, but a list of file names contains only "
            "text; nothing was run. Get the file from a source you trust"
        ) from error
    except Exception as error:
        # Damaged pickles raise exceptions of a dozen types, from IndexError to MemoryError.
        raise DataError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error}); download it again"
        ) from error


def read_keys(path: Path) -> list[str]:
    """The keys in a `filenames.pickle`, a list of strings.

    Raises DataError as `read_plain_pickle`, and if the file holds anything else, or no keys.
    """
    keys = read_plain_pickle(path)
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise DataError(
            f"{path} must contain a list of file names, but contains a {type(keys).__name__}"
            + (" of other values" if isinstance(keys, (list, tuple)) else "")
        )
    if not keys:
        raise DataError(f"{path} lists no files; download it again or check the split")
    return list(keys)

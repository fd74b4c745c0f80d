"""Reading the lists of file names that this family of models keeps in pickles."""

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
    """The pickle asks for something that could run code."""


# The pure Python unpickler: the one in C allocates 16 bytes for each number below the greatest
# memo index in the file, which may be 2**32.
#
# The hash of a tuple is computed by recursion in C without a limit, so that one nested a million
# times as a key of a dictionary would end the process.
class _PlainUnpickler(pickle._Unpickler):
    """Builds lists, tuples, dicts, sets, strings and numbers; these need no class by name.

    Every way for a pickle to reach other objects, and so code, goes through `find_class` or
    `persistent_load`.
    """

    def __init__(self, file: io.BytesIO, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._nested: dict[int, tuple[int, object]] = {}  # tuples by their id, with their depth

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("a persistent object")

    def refuse_deep(self, built: Iterable[object]) -> None:
        """Raise ValueError if a tuple or frozenset that was built is nested too deeply."""
        depth = 1 + max((self._nested.get(id(item), (0, None))[0] for item in built), default=0)
        if depth > MAX_TUPLE_DEPTH:
            raise ValueError(f"tuples are nested more than {MAX_TUPLE_DEPTH} levels deep")
        self._nested[id(built)] = depth, built  # kept, so that no other object gets its id


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

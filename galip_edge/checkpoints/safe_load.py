"""Safe reading of tensors from untrusted files, without running code in them.

Three formats are supported: safetensors, PyTorch's (`torch.load(weights_only=True)`), and
TorchScript archives, in which OpenAI published CLIP. A TorchScript archive is a zip of raw storages
and a pickle; a restricted unpickler accepts only tensors, plain containers, and inert stand-ins for
scripted modules.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from galip_edge.checkpoints.file_kinds import (
    HEAD_BYTES,
    cut_short,
    foreign_kind,
    is_zip,
    looks_like_safetensors,
    zip_without_weights,
)
from galip_edge.checkpoints.pickle_guard import scan_pickle
from galip_edge.errors import CheckpointError

# Maximum ratio of unpacked to packed size, as trained weights hardly compress; any archive may
# unpack to `_SMALL` bytes.
_MAX_EXPANSION, _SMALL = 4, 16 << 20

# Key of the metadata of a TorchScript archive: the names of its scripted classes.
SCRIPTED_CLASSES = "scripted classes"

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_weights(path: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """Read a weights file, and its metadata (empty for a `.pth`).

    Returns:
        A dict of tensors, or for a `.pth` nested plain containers of tensors. NumPy scalars become
        Python numbers; NumPy arrays are dropped.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or contains code.
    """
    path = Path(path)
    size, head = _size_and_head(path)
    if kind := foreign_kind(head, size):
        raise CheckpointError(f"{path} {kind}")
    if reason := cut_short(path, head, size):
        raise CheckpointError(f"{path} is incomplete: it {reason}; copy or download it again")
    if looks_like_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        return _read_zip(path, size)
    return _read_torch(path), {}


def _size_and_head(path: Path) -> tuple[int, bytes]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"cannot read {path}: it is a folder: pass a file in it")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never ends
            raise CheckpointError(f"cannot read {path}: it is not a regular file")
        with path.open("rb") as file:
            return status.st_size, file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot read {path}: {reason}") from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    # torch advises to load without protection; its reason is at the end.
    reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
    reason = reason.partition(" Check the documentation")[0]
    reason = "its pickle" if reason.startswith("Weights only load failed") else reason[:200]
    reason = reason or type(error).__name__
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); copy or download it again")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # damaged headers raise many types of exception
        raise _damaged(path, error) from error


def _read_zip(path: Path, size: int) -> tuple[Any, dict[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            names = [entry.filename for entry in entries]
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if unpacked > max(_MAX_EXPANSION * size, _SMALL):
                raise CheckpointError(
                    f"{path} would unpack from {size:,} to {unpacked:,} bytes, which weights never "
                    "do, and is refused"
                )
            if not pickles:
                raise CheckpointError(f"{path} {zip_without_weights(names)}")
            for name in pickles:
                with archive.open(name) as file:
                    scan_pickle(file)
    except CheckpointError:
        raise
    except Exception as error:  # damaged archives raise many types of exception
        raise _damaged(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        return _read_torchscript(path)
    return _read_torch(path), {}


class _NumpyType:
    """Stand-in for a NumPy dtype in a pickle."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _NumpyArray:
    """Empty stand-in for a NumPy array in a pickle, such as a random generator's state."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _numpy_array(*_: object) -> _NumpyArray:
    return _NumpyArray()


def _numpy_scalar(kind: _NumpyType, data: Any = b"") -> Any:
    """A NumPy scalar in a pickle as a Python number."""
    if not re.fullmatch(r"b1|[iuf][1248]", kind.code) or kind.order not in ("<", ">", "=", "|"):
        raise pickle.UnpicklingError(f"a NumPy scalar of type {kind.code[:20]!r}")
    raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, kind.order + kind.code, count=1)[0].item()


# Stand-ins for NumPy's functions, which build plain numbers and empty objects.
_SAFE_GLOBALS: list[Any] = [
    (_NumpyType, "numpy.dtype"),
    (_NumpyArray, "numpy.ndarray"),
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_numpy_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def _read_torch(path: Path) -> Any:
    try:
        if not is_zip(path):
            _legacy_globals(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # about pickle protocols, which a user cannot change
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if objects := _refused_objects(path, error):
            raise CheckpointError(_refusal(path, objects)) from error
        raise _damaged(path, error) from error
    except Exception as error:  # damaged pickles raise many types of exception
        raise _damaged(path, error) from error


def _legacy_globals(path: Path) -> set[str]:
    """Scan the five pickles at the start of a file by torch.save before version 1.6."""
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(5):
            if not file.peek(1):
                break
            names |= scan_pickle(file)
    return names


def _refused_objects(path: Path, error: pickle.UnpicklingError) -> list[str]:
    """Names of the disallowed classes and functions in a file."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)
    names = {named[1]} if named else set()
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - not a zip archive, or a damaged one
        if not names and "Unsupported operand" in text:  # of a later protocol, in a plain pickle
            names = _first_pickle_globals(path)
    names = {name.removeprefix("builtins.").removeprefix("__builtin__.") for name in names}
    return sorted(re.sub(r"[^\w.]", "?", name)[:80] for name in names)


def _first_pickle_globals(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            return {name for name in scan_pickle(file) if not name.startswith("torch.")}
    except Exception:  # noqa: BLE001 - damaged: there are no names
        return set()


def _refusal(path: Path, objects: list[str]) -> str:
    shown = ", ".join(objects[:4]) + (f" and {len(objects) - 4} more" if len(objects) > 4 else "")
    if any(name.startswith("torch.nn.modules") for name in objects):
        tensors = (
            "{k: v.state_dict() for k, v in content.items() if hasattr(v, 'state_dict')} "
            "if isinstance(content, dict) else content.state_dict()"
        )
    else:
        keys = "('model', 'state_dict', 'netG', 'netD', 'netC', 'ema')"
        tensors = f"{{k: content[k] for k in {keys} if k in content}}"
    new = str(path.with_name(f"{path.stem}-tensors.pth"))
    return (
        f"{path} holds objects other than tensors ({shown}) and is refused, because loading it "
        "could run code hidden in it; if you trust its source, save the tensors alone with these "
        "two lines of Python and use the new file:\n"
        f"    import torch; content = torch.load({str(path)!r}, 'cpu', weights_only=False)\n"
        f"    torch.save({tensors}, {new!r})"
    )


class _Inert:
    """Inert stand-in for a scripted module or an unneeded object, with its attributes."""

    def __init__(self, *_: object) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


# The pure Python unpickler: the one in C allocates 16 bytes for each number up to the greatest memo
# index in the file, which may be 2**32.
class _TorchScriptUnpickler(pickle._Unpickler):
    """Accepts tensors and containers, replaces scripted classes by `_Inert`, refuses the rest."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, Tensor] = {}
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            self.classes.add(name)
            return _Inert
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _plain_list
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._prefix}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype, count=count)
        return self._storages[key]


def _plain_list(values: Any, *_: object) -> Any:
    return values


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _read_torchscript(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            unpickler = _TorchScriptUnpickler(archive, pickled.removesuffix("/data.pkl"))
            root = unpickler.load()
            classes = {SCRIPTED_CLASSES: " ".join(sorted(unpickler.classes))}
            return _tensors_of(root), classes
    except pickle.UnpicklingError as error:
        if "." not in str(error):  # not the name of a class
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} contains more than a scripted model ({error}) and is refused, because "
            "loading it could run code hidden in it"
        ) from error
    except Exception as error:  # damaged pickles raise many types of exception
        raise _damaged(path, error) from error


def _tensors_of(root: Any) -> dict[str, Tensor]:
    """The tensors of scripted modules by their dotted names; shared modules count once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Inert) or id(module) in seen:
            continue
        seen.add(id(module))  # an archive may be cyclic
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            else:
                waiting.append((f"{prefix}{name}.", value))
    return tensors

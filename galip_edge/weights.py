"""Reading tensors from files that strangers made, without running anything that is in them.

Three kinds of file are read: safetensors, PyTorch's own (`torch.load(weights_only=True)`), and
TorchScript archives, in which OpenAI published CLIP. A TorchScript archive is a zip of raw
storages and a pickle; the pickle is read with a restricted unpickler that knows only tensors,
plain containers and inert stand-ins for the scripted modules.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import CheckpointError

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


def read_weights(path: Path) -> tuple[Any, dict[str, str]]:
    """What a weights file holds, and its metadata (empty unless safetensors).

    Returns:
        A dict of tensors, or for a `.pth` whatever nested plain containers of tensors it holds.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown kind, or contains code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    # The length of a header of JSON in eight bytes, whose first may be anything, and the header.
    if head[8:9] == b"{" and not any(head[4:8]):
        return _read_safetensors(path)
    if head.startswith(b"PK") and _is_torchscript(path):
        return _read_torchscript(path), {}
    return _read_torch(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({error}); copy or download it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which a user cannot mend
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise CheckpointError(
                f"{path} contains more than plain tensors and is refused, because loading it "
                "could run code hidden in it; ask its author for a safetensors file or a state "
                "dict of tensors"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch or safetensors checkpoint") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged, incomplete or no checkpoint at all; copy or download it again"
        ) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


class _Inert:
    """Stands in for a scripted module or an unneeded object: keeps its attributes, does nothing."""

    def __init__(self, *_: object) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _TorchScriptUnpickler(pickle.Unpickler):
    """Knows tensors and containers; every scripted class becomes `_Inert`; all else is refused."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
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


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}

    def collect(module: _Inert, prefix: str) -> None:
        for name, value in module.attributes.items():
            if isinstance(value, _Inert):
                collect(value, f"{prefix}{name}.")
            elif isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value

    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            root = _TorchScriptUnpickler(archive, pickled.removesuffix("/data.pkl")).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than a scripted model ({error}) and is refused, because "
            "loading it could run code hidden in it"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is damaged or incomplete; download it again") from error
    if isinstance(root, _Inert):
        collect(root, "")
    return tensors

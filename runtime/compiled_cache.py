"""Compiled models and verified hashes, kept between runs in the user's cache folder.

Why not OpenVINO's own cache (`CACHE_DIR`): its blobs hold a second copy of the weights, on disk and
mapped into memory (212 MB next to the bundle's 200 MB at full size), and it reads and hashes the
whole model at every start to find its blob. Our blobs are OpenVINO's without weights
(`CACHE_MODE` OPTIMIZE_SIZE, 7 MB), found by the bundle's hash; the weights come from the bundle.
That mode has a fault, seen with 2026.4; we found no upstream report of it: OpenVINO marks each
constant with its offset among the weights (`WeightlessCacheAttribute`) and keeps the mark when a
transformation changes the constant, so import reads the old values. Therefore small constants are
detached from the weights first, and a blob is kept only if it computes the same numbers, to the
bit, as the model that it was exported from. A test fails when OpenVINO is fixed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from runtime.errors import GalipEdgeError
from runtime.files import FileState, open_regular, read_regular, write_whole
from runtime.openvino_core import openvino_core

if TYPE_CHECKING:
    from runtime.golden import Probe

_log = logging.getLogger(__name__)

# The least recently used are removed first.
MAX_COMPILED_BYTES = 4 * 1024**3

_LARGEST_RECORD = 4096
# Longer than the steps in which file systems' clocks advance.
_TICK_NS = 50_000_000

# OpenVINO's name for blobs without weights.
_WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}

# Interval of releasing pages of repacked weights during import.
_RELEASE_SECONDS = 0.08

# Smallest constant, in bytes, that is read from the bundle.
_LARGE = 1 << 16


def private_folder(root: Path, *names: str) -> Path | None:
    """Create the folder `root/names...` for this user alone.

    Its content is trusted like the program itself, so a folder that other users can write to is not
    used; the log states the reason.

    Returns:
        None if it cannot be created, belongs to another user, or is writable by others.
    """
    folder = root
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for name in ("", *names):
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            if reason := distrusted(folder.stat()):
                _warn(f"the cache {folder} is not used: {reason}")
                return None
    except OSError as error:
        _log.info("nothing is cached: %s", error)
        return None
    return folder


def distrusted(status: os.stat_result) -> str | None:
    """Reason why another user could have written its content, or None."""
    if not hasattr(os, "geteuid"):  # Windows: the user's folder is private
        return None
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}; set GALIP_EDGE_CACHE to your own folder"
    if status.st_mode & 0o022:
        return "other users may write to it; run chmod go-w on it if only you have written to it"
    return None


@functools.cache
def _warn(text: str) -> None:
    """Warn once per process."""
    _log.warning(text)


class VerifiedFiles:
    """Record of files with verified SHA-256, by their state (`FileState`).

    A damaged or unwritable record only means that files are hashed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder, "verified")

    @staticmethod
    def _name(path: Path) -> str:
        return f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"

    def has(self, path: Path, state: FileState, sha256: str) -> bool:
        """Test whether `path` was verified to have this hash in this state."""
        if self._folder is None:
            return False
        try:
            content = read_regular(self._folder / self._name(path), _LARGEST_RECORD)
            stored: object = json.loads(content)
        except (OSError, ValueError, RecursionError):
            return False
        return stored == [*state, sha256]

    def add(self, path: Path, state: FileState, sha256: str) -> None:
        """Record that `path` has this hash in this state.

        Skipped for files written just now: a change within the same clock tick would be missed.
        """
        if self._folder is None or time.time_ns() - state.ctime_ns < _TICK_NS:
            return
        try:
            write_whole(self._folder / self._name(path), json.dumps([*state, sha256]).encode())
        except GalipEdgeError as error:
            _log.info("hashes are not cached: %s", error)


def compiled_model_folder(root: Path, key: str) -> Path | None:
    """Folder of compiled models for `key`; others are evicted beyond `MAX_COMPILED_BYTES`.

    Returns:
        None if it cannot be written or trusted; inference works without it.
    """
    folder = private_folder(root, "compiled", key)
    if folder is None:
        return None
    try:
        os.utime(folder)
        _evict(folder)
    except OSError as error:
        _log.info("compiled models are not cached: %s", error)
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_kept(file: Path) -> bytes | None:
    """Read a file of the cache; None if it is missing or belongs to another user."""
    try:
        with open_regular(file) as opened:
            status = os.fstat(opened.fileno())
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                _warn(f"{file} is not used: it belongs to user {status.st_uid}")
                return None
            return opened.read()
    except OSError:
        return None


def _evict(keep: Path) -> None:
    """Remove the least recently used compiled models, but never `keep`."""
    folders = sorted(
        (f for f in keep.parent.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime
    )
    total = {f: sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders}
    excess = sum(total.values()) - MAX_COMPILED_BYTES
    for folder in folders:
        if excess <= 0:
            break
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            excess -= total[folder]


def load_blob(blob: Path, weights: Path, properties: dict[str, Any]) -> ov.CompiledModel | None:
    """Load a model of `compile_and_keep`; None if it is missing or damaged.

    Args:
        blob: file in a folder of `private_folder`.
        weights: file of the bundle, as at compilation; memory-mapped.
        properties: OpenVINO's, as at compilation.
    """
    read = read_kept(blob)
    if read is None:
        return None
    content = memoryview(read)
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        _log.info("%s is damaged: recompiling", blob)
        return None
    try:
        return _import(data, weights, properties)
    except RuntimeError as error:
        _log.info("%s cannot be used: recompiling: %s", blob, error)
        return None


def compile_and_keep(
    read: Callable[[], ov.Model],
    blob: Path,
    weights: Path,
    properties: dict[str, Any],
    probe: Probe | None = None,
) -> ov.CompiledModel | None:
    """Compile a model and keep it for `load_blob`.

    Args:
        read: returns the model with static shapes.
        blob, weights, properties: as for `load_blob`.
        probe: golden numbers to compare with.

    Returns:
        The model as `load_blob` returns it; None if it cannot be compiled or written, or if the
        blob computes other numbers.

    Raises:
        OutOfToleranceError: its output differs too much from the golden numbers.
    """
    try:
        data, row, expected = _export(read(), properties, probe)
        kept = _import(data, weights, properties)
        if not np.array_equal(outputs(kept, [row])[0], expected):
            _log.info("%s produces different numbers: not cached", blob)
            return None
        write_whole(blob, hashlib.sha256(data).digest() + data)
    except (RuntimeError, GalipEdgeError) as error:
        _log.info("%s is not cached: %s", blob, error)
        return None
    return kept


def _export(
    model: ov.Model, properties: dict[str, Any], probe: Probe | None
) -> tuple[bytes, tuple[Any, ...], Any]:
    """Blob without weights, an input and its output; the compiled model is freed."""
    _detach_small_constants(model)
    compiled = openvino_core().compile_model(model, "CPU", properties | _WITHOUT_WEIGHTS)
    rows = probe.rows if probe else [_arbitrary_row(compiled)]
    found = outputs(compiled, rows)
    if probe:
        probe.check(found)
    return compiled.export_model().getvalue(), rows[0], found[0]


def _import(
    data: bytes | memoryview, weights: Path, properties: dict[str, Any]
) -> ov.CompiledModel:
    settings = properties | _WITHOUT_WEIGHTS | {"WEIGHTS_PATH": str(weights)}
    # A copy: OpenVINO does not keep a referenced array alive.
    blob = ov.Tensor(ov.Type.u8, ov.Shape([len(data)]))
    blob.data[:] = np.frombuffer(data, np.uint8)
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(openvino_core().import_model, blob, "CPU", settings)
        while not wait([compiling], timeout=_RELEASE_SECONDS).done:
            release_pages(weights)
        release_pages(weights)
    return compiling.result()


def _detach_small_constants(model: ov.Model) -> None:
    """Copy small constants into the graph.

    Otherwise import would read constants that OpenVINO changed, such as shapes, with their old
    values (see above).
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        values = node.get_data()
        if values.nbytes < _LARGE:
            own = ops.constant(np.array(values), dtype=node.get_element_type())
            own.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(own.output(0))


def outputs(compiled: ov.CompiledModel, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """First output for each input of a batch of one."""
    request = compiled.create_infer_request()
    return [request.infer(list(row))[0].copy() for row in rows]


def _arbitrary_row(compiled: ov.CompiledModel) -> tuple[Any, ...]:
    random = np.random.default_rng(0)
    return tuple(
        random.standard_normal(list(i.shape)).astype(np.float32)
        if i.get_element_type().is_real()
        else random.integers(0, 100, list(i.shape))
        for i in compiled.inputs
    )


# Not MADV_DONTNEED: another thread may reuse the addresses of a map that ended meanwhile, and its
# memory would be lost. Linux 5.4 and later.
_MADV_PAGEOUT = 21


def release_pages(file: Path) -> None:
    """Release the memory of read-only maps of `file`; pages are read again on access.

    OpenVINO keeps a model's weights mapped, though it repacks most of them and never reads the map
    again. Has an effect on Linux only.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return
    path = os.fspath(file.resolve())
    for line in maps.splitlines():
        addresses, permissions, *_, name = line.split(maxsplit=5)
        if name == path and "w" not in permissions:
            start, end = (int(address, 16) for address in addresses.split("-"))
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)

"""Compiled models, kept between runs without their weights.

OpenVINO's own cache holds a second copy of the weights, on disk and in memory, and reads and hashes
the bundle's at every start to find it. A blob of ours has the graph that OpenVINO made for this
CPU, and takes the weights from the bundle.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from runtime.cache import read_kept
from runtime.errors import GalipEdgeError
from runtime.files import write_whole
from runtime.golden import Probe
from runtime.memory import release_pages
from runtime.openvino_core import openvino_core

_log = logging.getLogger(__name__)

# OpenVINO's name for blobs without weights.
_WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}

# How often the memory of weights that were laid out anew is given back meanwhile.
_RELEASE_SECONDS = 0.08

# Bytes of constants from which on they are taken from the bundle.
_LARGE = 1 << 16


def load_blob(blob: Path, weights: Path, properties: dict[str, Any]) -> ov.CompiledModel | None:
    """A model that `compile_and_keep` kept, or None if there is none or it is damaged.

    Args:
        blob: its file, in a folder of `runtime.cache.private_folder`.
        weights: of the bundle, the same as when it was compiled. They are mapped into memory.
        properties: OpenVINO's, the same.
    """
    read = read_kept(blob)
    if read is None:
        return None
    content = memoryview(read)
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        _log.info("%s is damaged: compiling again", blob)
        return None
    try:
        return _import(data, weights, properties)
    except RuntimeError as error:
        _log.info("%s cannot be used: compiling again: %s", blob, error)
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
        read: reads it, with static shapes.
        blob, weights, properties: as for `load_blob`.
        probe: golden numbers that it must come near to.

    Returns:
        What `load_blob` would, or None if it cannot be compiled or written or gives other numbers.

    Raises:
        OutOfToleranceError: it is too far from the golden numbers.
    """
    try:
        data, row, expected = _export(read(), properties, probe)
        kept = _import(data, weights, properties)
        if not np.array_equal(outputs(kept, [row])[0], expected):
            _log.info("%s would give other numbers: it is not kept", blob)
            return None
        write_whole(blob, hashlib.sha256(data).digest() + data)
    except (RuntimeError, GalipEdgeError) as error:
        _log.info("%s is not kept: %s", blob, error)
        return None
    return kept


def _export(
    model: ov.Model, properties: dict[str, Any], probe: Probe | None
) -> tuple[bytes, tuple[Any, ...], Any]:
    """The compiled model without weights, an input and its output; itself it takes no memory."""
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
    # A copy: OpenVINO does not keep an array alive that it only looks into.
    blob = ov.Tensor(ov.Type.u8, ov.Shape([len(data)]))
    blob.data[:] = np.frombuffer(data, np.uint8)
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(openvino_core().import_model, blob, "CPU", settings)
        while not wait([compiling], timeout=_RELEASE_SECONDS).done:
            release_pages(weights)
        release_pages(weights)
    return compiling.result()


def _detach_small_constants(model: ov.Model) -> None:
    """Let small constants belong to the graph.

    OpenVINO marks constants with their place among the weights, and keeps the mark when it changes
    one: a shape, say, would then be read as it was before (seen with 2026.4).
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

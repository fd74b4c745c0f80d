"""Checks of this machine: CPU, precision, extras, cache, limits."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rich.filesize import decimal

from galip_edge.available import available_models
from runtime.bundle import default_bundle, verify_files
from runtime.compiled import has_bf16
from runtime.compiled_cache import distrusted
from runtime.cpu import (
    available_cores,
    cpu_name,
    cpu_quota,
    instruction_sets,
    lacks_vnni,
    memory_limit,
)
from runtime.devices import is_x86, total_memory
from runtime.errors import BundleError, GalipEdgeError, install_hint
from runtime.files import cache_folder
from runtime.pipeline import Pipeline

OK, NOTE, PROBLEM = "ok", "note", "problem"

# Modules that each extra brings; one that is missing names the extra.
EXTRAS: dict[str, tuple[str, ...]] = {
    "batch": ("pyarrow",),
    "c2pa": ("c2pa",),
    "convert": ("nncf", "onnx", "onnxruntime", "onnxscript", "open_clip", "safetensors", "torch"),
    "evaluate": ("torch_fidelity", "torchvision"),
    "export": ("openvino_tokenizers",),
    "hub": ("huggingface_hub",),
    "mcp": ("mcp",),
    "ray": ("fsspec", "ray"),
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "train": ("open_clip", "pyarrow", "resvg_py", "safetensors", "torch", "webdataset"),
    "video": ("av",),
}
# As in pyproject.toml.
_LEAST_OPENVINO = (2026, 3)
# The embedded model needs about as much.
_LEAST_MEMORY = 400_000_000
_LEAST_DISK = 500_000_000


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: of the check.
        state: OK, NOTE (works, but not as well as it could) or PROBLEM.
        text: the result, and the remedy of a problem.
    """

    name: str
    state: str
    text: str


def examine() -> Iterator[Finding]:
    """Run all checks; yields each result as soon as it is known."""
    yield Finding("python", OK, f"{platform.python_version()}, {platform.platform()}")
    yield _openvino()
    yield from _cpu()
    yield _memory()
    yield _extras()
    yield from _cache()
    yield from _models()


def _openvino() -> Finding:
    try:
        found = version("openvino")
    except PackageNotFoundError:
        return Finding("openvino", PROBLEM, "not installed: pip install galip-edge")
    numbers = tuple(int(it) for it in found.split("-")[0].split(".")[:2] if it.isdecimal())
    if numbers < _LEAST_OPENVINO:
        least = ".".join(map(str, _LEAST_OPENVINO))
        text = f"{found} computes wrong images in bfloat16: pip install 'openvino>={least}'"
        return Finding("openvino", PROBLEM, text)
    return Finding("openvino", OK, found)


def _cpu() -> Iterator[Finding]:
    sets, slow = instruction_sets(), lacks_vnni()
    yield Finding("cpu", OK, f"{cpu_name()}; {', '.join(sets) or 'instruction sets unknown'}")
    quota, total = cpu_quota(), os.cpu_count() or 1
    limit = "" if quota is None else f", a quota of {quota:g} (cgroup)"
    yield Finding("cores", OK, f"{available_cores()} of {total} may be used{limit}")
    if quota is not None and quota < 1:
        yield Finding("quota", NOTE, f"{quota:g} of a core: slower than a whole core")
    if "AVX2" not in sets and is_x86():
        yield Finding("int8", PROBLEM, "no AVX2: INT8 models are very slow on this CPU")
    elif slow:
        yield Finding("int8", NOTE, "no VNNI: INT8 is slower, and its weights have 7 bits")
    else:
        yield Finding("int8", OK, "in hardware")
    if has_bf16():
        yield Finding("bf16", OK, "in hardware")
    else:
        yield Finding("bf16", NOTE, "not in hardware: layers that are not INT8 run in float32")


def _memory() -> Finding:
    limit, total = memory_limit(), total_memory()
    if total is None:
        return Finding("memory", OK, "unknown")
    usable = total if limit is None else min(total, limit)
    text = decimal(usable)
    with suppress(AttributeError, ValueError, OSError):  # Windows, macOS
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        text += f", {decimal(free)} free"
    if limit is not None and limit < total:
        text += f", limited from {decimal(total)} (cgroup)"
    if usable < _LEAST_MEMORY:
        text += f": the embedded model needs about {decimal(_LEAST_MEMORY)}"
        return Finding("memory", PROBLEM, text)
    return Finding("memory", OK, text)


def _extras() -> Finding:
    missing = {
        extra: [module for module in modules if find_spec(module) is None]
        for extra, modules in EXTRAS.items()
    }
    parts = [extra for extra, modules in missing.items() if not modules]
    text = f"installed: {', '.join(parts) or 'none'}"
    if absent := [extra for extra, modules in missing.items() if modules]:
        text += f"; not installed: {', '.join(absent)} ({install_hint('EXTRA')})"
    return Finding("extras", OK, text)


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    existing = next(it for it in (folder, *folder.absolute().parents) if it.exists())
    if not os.access(existing, os.W_OK):
        text = f"{existing} is not writable: each run compiles the models; set GALIP_EDGE_CACHE"
        yield Finding("cache", PROBLEM, text)
        return
    for each in (folder, *(folder / name for name in ("compiled", "verified", "hub"))):
        if each.exists() and (reason := distrusted(each.stat())):
            yield Finding("cache", PROBLEM, f"{each} is not used: {reason}")
            return
    try:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield Finding("cache", PROBLEM, f"{folder} cannot be read: {error.strerror or error}")
        return
    text = f"{folder}, {decimal(size)}, {decimal(free)} free"
    if free < _LEAST_DISK:
        yield Finding("cache", PROBLEM, f"{text}: too little for compiled models")
    else:
        yield Finding("cache", OK, text)


def _models() -> Iterator[Finding]:
    try:
        report = Pipeline.from_bundle(default_bundle()).compare_with_golden()
    except GalipEdgeError as error:
        yield Finding("embedded", PROBLEM, str(error))
    else:
        yield Finding("embedded", OK, f"matches PyTorch: {report}")
    for model in available_models():
        if model.option is None:
            continue
        try:
            verify_files(model.folder, model.manifest)
        except BundleError as error:
            text = f"{error}; run galip-edge pull --force {model.source}"
            yield Finding(model.source, PROBLEM, text)
        else:
            yield Finding(model.source, OK, f"{model.manifest.name}, files intact")


def is_healthy(findings: list[Finding]) -> bool:
    """True if there is no problem."""
    return all(finding.state != PROBLEM for finding in findings)

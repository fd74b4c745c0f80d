"""Which device and arithmetic to use, where this machine leaves a choice: measured once.

There is a choice for `--device AUTO` on a machine with several devices, and for an INT8 bundle on a
CPU that is not x86, whose INT8 kernels may be slower than float16. Every candidate generates the
bundle's golden images; the fastest one within tolerance is used, and the choice is cached. The rule
is that of `galip-edge convert --auto`.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.bundle import Manifest
from runtime.compiled import CompiledModel
from runtime.compiled_cache import read_kept
from runtime.devices import Device, is_x86
from runtime.errors import BundleError, GalipEdgeError
from runtime.files import write_whole
from runtime.golden import Golden, worst_psnr_db
from runtime.noise import draw_noise

_log = logging.getLogger(__name__)

# Smaller differences are noise: the candidate nearer to the golden images is chosen then.
_ALIKE = 1.03
_WARM_UP, _RUNS = 2, 7


@dataclass(frozen=True)
class Candidate:
    """A way to run a bundle.

    Attributes:
        device: to compute on.
        dequantize: compute INT8 layers in floating point.
    """

    device: Device
    dequantize: bool = False

    def __str__(self) -> str:
        return f"{self.device}{', INT8 layers in floating point' if self.dequantize else ''}"


@dataclass(frozen=True)
class Measured:
    """A candidate's speed and fidelity.

    Attributes:
        candidate: that was measured.
        seconds: for an image, median.
        psnr_db: of the worst golden image; infinite without golden numbers.
    """

    candidate: Candidate
    seconds: float
    psnr_db: float


def candidates(devices: Sequence[Device], manifest: Manifest) -> list[Candidate]:
    """Configurations of these devices that may be fastest for a bundle."""
    found = []
    for device in devices:
        found.append(Candidate(device))
        if device.is_cpu and not is_x86() and manifest.precision in ("int8", "mixed"):
            found.append(Candidate(device, dequantize=True))
    return found


def choose(
    among: Sequence[Candidate],
    compile_generator: Callable[[Candidate], CompiledModel],
    manifest: Manifest,
    golden: Golden | None,
    file: Path | None,
) -> Candidate:
    """The fastest candidate within tolerance of the golden images.

    Args:
        among: at least one.
        compile_generator: compiles the generator for one image at a time; it raises
            GalipEdgeError if the candidate is out of tolerance or cannot compile it.
        manifest: of the bundle.
        golden: the bundle's golden numbers, if it has any.
        file: in the cache, for the choice among the same candidates with the same precision.

    Raises:
        BundleError: none of them can be used.
    """
    if len(among) == 1:
        return among[0]
    if (kept := _kept(file, among)) is not None:
        return kept
    measured, reasons = [], []
    for candidate in among:
        try:
            model = compile_generator(candidate)
            measured.append(_measured(candidate, model, manifest, golden))
        except GalipEdgeError as error:
            _log.info("%s cannot be used: %s", candidate, error)
            reasons.append(str(error))
    if not measured:
        raise BundleError("; ".join(dict.fromkeys(reasons)))
    chosen = fastest(measured).candidate
    for each in measured:
        _log.info("%s: %.1f ms, %.1f dB", each.candidate, each.seconds * 1e3, each.psnr_db)
    if file is not None:
        _keep(file, among, chosen)
    return chosen


def fastest(measured: Sequence[Measured]) -> Measured:
    """The fastest; among those of the same speed, the nearest to the golden images."""
    limit = _ALIKE * min(each.seconds for each in measured)
    return max((m for m in measured if m.seconds <= limit), key=lambda m: m.psnr_db)


def _measured(
    candidate: Candidate, model: CompiledModel, manifest: Manifest, golden: Golden | None
) -> Measured:
    if golden is None:
        noise = draw_noise(0, "", 0, manifest.noise_dim)[None]
        sentence = np.zeros((1, manifest.embedding_dim), np.float32)
    else:
        noise, sentence = golden.noise, golden.sentence
    seconds = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        model.infer(noise[0], sentence[0])
        seconds.append(time.perf_counter() - start)
    psnr = float("inf")
    if golden is not None:
        psnr = worst_psnr_db(model.infer_batch(noise, sentence), golden.image)
    return Measured(candidate, statistics.median(seconds[_WARM_UP:]), psnr)


def _names(among: Sequence[Candidate]) -> list[list[object]]:
    return [[each.device.identity, each.dequantize] for each in among]


def _kept(file: Path | None, among: Sequence[Candidate]) -> Candidate | None:
    if file is None or (content := read_kept(file)) is None:
        return None
    try:
        found = json.loads(content)
        if found["among"] != _names(among):
            return None
        number = found["chosen"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = isinstance(number, int) and 0 <= number < len(among)
    return among[number] if known else None


def _keep(file: Path, among: Sequence[Candidate], chosen: Candidate) -> None:
    content = {"among": _names(among), "chosen": list(among).index(chosen)}
    try:
        write_whole(file, json.dumps(content).encode())
    except GalipEdgeError as error:
        _log.info("the choice is not cached: %s", error)

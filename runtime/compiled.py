"""One model of a bundle, compiled by OpenVINO for rows of a batch of one."""

from __future__ import annotations

import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from runtime.arrays import Array
from runtime.bundle import Bundle, weights_file
from runtime.compiled_cache import (
    compile_and_keep,
    load_blob,
    outputs,
    private_folder,
    read_kept,
)
from runtime.cpu import cpu_name
from runtime.dequantize import dequantize_activations
from runtime.devices import CPU, Device, device_named
from runtime.errors import BundleError, GalipEdgeError
from runtime.files import write_whole
from runtime.golden import OutOfToleranceError, Probe
from runtime.graph_io import check_sizes, read_graph
from runtime.openvino_core import keep_locale, openvino_core
from runtime.passes import specialize_for_cpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileOptions:
    """How OpenVINO uses a device.

    Attributes:
        threads: cores of the CPU, for all streams together.
        streams: rows computed in parallel, each with its share of the threads.
        precision: of layers that are not INT8: f32, bf16 or f16.
        cache: folder for compiled models; None keeps none.
        fallback: use f32 where bf16 or f16 is out of tolerance of the golden numbers.
        device: to compute on; default: the CPU.
        dequantize: compute INT8 layers in floating point (`runtime.dequantize`).
    """

    threads: int
    streams: int
    precision: str
    cache: Path | None
    fallback: bool = True
    device: Device = field(default_factory=lambda: device_named(CPU))
    dequantize: bool = False

    def name(self) -> str:
        """Short name of these options, except cache and device."""
        return f"{self.precision}-{self.threads}-{self.streams}{self.form}"

    @property
    def form(self) -> str:
        """Suffix of names for graphs of another form."""
        return "-dequantized" if self.dequantize else ""

    def properties(self) -> dict[str, Any]:
        """OpenVINO's."""
        return self.device.properties(self.precision, self.streams, self.threads)


def read_model(bundle: Bundle, name: str, options: CompileOptions | None = None) -> ov.Model:
    """A model of a bundle, in the form that is fastest on its device. Raises BundleError."""
    model = read_graph(bundle, name)
    if options is None or options.device.is_cpu:
        specialize_for_cpu(model)
    if options is not None and options.dequantize:
        dequantize_activations(model)
    return model


def has_bf16() -> bool:
    """True if the CPU computes in bfloat16."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def supported_precision(wanted: str) -> str:
    """`wanted`, f32 or bf16, or f32 where the CPU has no bf16."""
    if wanted == "bf16" and not has_bf16():
        _log.info("this CPU has no bf16: running in f32, which is slower and slightly different")
        return "f32"
    return wanted


def chosen_precision(asked: str, of_bundle: str, device: Device | None = None) -> str:
    """The precision to compute in: f32, bf16 or f16.

    Args:
        asked: auto, f32 or bf16.
        of_bundle: the meaning of auto on x86 CPUs that have it.
        device: to compute on; default: the CPU.

    Raises BundleError if the device does not have the requested precision.
    """
    if device is not None and (device.prefers_float16 or not device.is_cpu):
        if asked == "auto":
            return device.precision(of_bundle)
        if asked not in device.precisions:
            have = " or ".join(each for each in device.precisions if each != "int8")
            raise BundleError(f"{device} has no {asked}, it has {have}: use --precision auto")
        return asked
    if asked == "bf16" and not has_bf16():
        raise BundleError(f"this CPU ({cpu_name()}) has no bfloat16: use --precision auto or f32")
    return supported_precision(of_bundle if asked == "auto" else asked)


class ModelFile:
    """A model of a bundle on disk, read when it is compiled.

    Args:
        bundle: verified; it must not change from now on.
        name: of the model's graph.
        probe: returns golden numbers for rows of a number of columns; None if there are none.
        exact_in_f32: whether float32 gives the same numbers on any number of threads.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        probe: Callable[[int | None], Probe | None] = lambda _: None,
        exact_in_f32: bool = True,
    ) -> None:
        self._bundle, self._name = bundle, name
        self._weights = weights_file(bundle.folder / name)
        self._probe, self._exact_in_f32 = probe, exact_in_f32
        self._used: str | None = None  # the precision of what was compiled so far
        self._refused: str | None = None  # why bf16 or f16 is not used

    def compile(self, options: CompileOptions, columns: int | None = None) -> CompiledModel:
        """Compile; see CompiledModel.

        Where bf16 or f16 is out of tolerance, a warning says so, and f32 is used from then on.

        Raises:
            BundleError: the files were changed, OpenVINO cannot read or compile them, or computes
                other numbers than the bundle's golden ones.
        """
        self._bundle.check_unchanged(self._name, self._weights.name)
        if options.precision != "f32" and options.fallback and "f32" in options.device.precisions:
            if compiled := self._in_16_bits(options, columns):
                return compiled
            options = replace(
                options, precision="f32", streams=options.streams if self._exact_in_f32 else 1
            )
        try:
            return self._compiled(options, columns)
        except OutOfToleranceError as error:
            raise BundleError(
                f"{self._wrong(options, error)}: {_advice(options)}, or convert the bundle again "
                "if its golden numbers are wrong"
            ) from error

    def used_precision(self, wanted: str) -> str:
        """`wanted`, or f32 where bf16 or f16 was out of tolerance."""
        return "f32" if self._refused is not None else wanted

    def _in_16_bits(self, options: CompileOptions, columns: int | None) -> CompiledModel | None:
        """The model in bf16 or f16; None if its numbers are wrong."""
        name = f"{self._weights.stem}-{options.precision}{options.form}.refused"
        mark = options.cache / name if options.cache else None
        reason = self._refused
        if reason is None and mark and (kept := read_kept(mark)):
            reason = kept.decode("utf-8", "replace")
        if reason is None:
            try:
                compiled = self._compiled(options, columns)
            except OutOfToleranceError as error:
                reason = self._wrong(options, error)
                if self._used is not None:  # images would depend on what they are generated with
                    raise BundleError(f"{reason}: use --precision f32") from error
            else:
                self._used = options.precision
                return compiled
        if self._refused is None:
            self._refused = reason
            _log.warning("%s: running in f32, which is slower", reason)
            if mark:
                _remember(mark, reason)
        return None

    def _wrong(self, options: CompileOptions, error: OutOfToleranceError) -> str:
        release = ov.__version__.partition("-")[0]
        device = f"this CPU ({cpu_name()})" if options.device.is_cpu else str(options.device)
        return (
            f"OpenVINO {release} computes wrong numbers in {options.precision} on {device} "
            f"with the {self._weights.stem} of {self._bundle.folder} ({error})"
        )

    def _compiled(self, options: CompileOptions, columns: int | None) -> CompiledModel:
        with keep_locale():
            if options.cache and not options.device.keeps_weightless:
                return self._kept_by_openvino(options, columns)
            compiled = self._kept(options, columns) if options.cache else None
            if compiled is not None:
                return CompiledModel(compiled, options.streams)
            model = read_model(self._bundle, self._name, options)
            return CompiledModel.of(model, options, columns, self._probe(columns))

    def _kept_by_openvino(self, options: CompileOptions, columns: int | None) -> CompiledModel:
        """With OpenVINO's own cache; golden numbers are compared on the first use only."""
        assert options.cache is not None
        mark = options.cache / f"{self._weights.stem}-{columns or 'all'}-{options.name()}.compared"
        probe = None if read_kept(mark) is not None else self._probe(columns)
        model = read_model(self._bundle, self._name, options)
        folder = private_folder(options.cache, "openvino")
        compiled = CompiledModel.of(model, options, columns, probe, folder)
        if probe:
            _remember(mark, str(options.device))
        return compiled

    def _kept(self, options: CompileOptions, columns: int | None) -> ov.CompiledModel | None:
        """The model from the cache, added if missing; None if it cannot be cached."""
        assert options.cache is not None
        name = f"{self._weights.stem}-{columns or 'all'}-{options.name()}.blob"
        place = options.cache / name, self._weights, options.properties()

        def read() -> ov.Model:
            return _with_static_shapes(read_model(self._bundle, self._name, options), columns)

        compiled = load_blob(*place)
        if compiled is None:
            compiled = compile_and_keep(read, *place, self._probe(columns))
        return compiled


def _advice(options: CompileOptions) -> str:
    if not options.device.is_cpu:
        return "use --device CPU"
    return "update OpenVINO" if options.precision == "f32" else "use --precision f32"


def _remember(mark: Path, reason: str) -> None:
    try:
        write_whole(mark, reason.encode())
    except GalipEdgeError as error:
        _log.info("the fallback is not cached: %s", error)


def _with_static_shapes(model: ov.Model, columns: int | None) -> ov.Model:
    """`model` itself, for a batch of one: a dynamic batch costs speed and memory."""
    model.reshape(
        {i: [1, *([columns] if columns else list(i.partial_shape)[1:])] for i in model.inputs}
    )
    check_sizes(model)
    return model


@contextmanager
def _compiling(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        half = "ONEDNN_MAX_CPU_ISA" in os.environ and "OV_CPU_MAX_ISA" not in os.environ
        hint = "; set OV_CPU_MAX_ISA as well as ONEDNN_MAX_CPU_ISA, or neither" if half else ""
        raise BundleError(
            f"the model {name!r} cannot be compiled by OpenVINO {ov.__version__}: "
            f"{str(error).strip().splitlines()[-1]}{hint}"
        ) from error


class CompiledModel:
    """A function from the rows of arrays to a row.

    The batch is always one. A larger one is hardly faster, and some operations round differently in
    it, so an image would depend on the others in its batch.

    Args:
        compiled: OpenVINO's, for a batch of one.
        streams: rows in parallel.
    """

    def __init__(self, compiled: ov.CompiledModel, streams: int) -> None:
        self._compiled, self._streams = compiled, streams
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(self._compiled.create_infer_request())

    @classmethod
    def of(
        cls,
        model: ov.Model,
        options: CompileOptions,
        columns: int | None = None,
        probe: Probe | None = None,
        cache: Path | None = None,
    ) -> CompiledModel:
        """Compile `model`, bypassing our cache.

        Args:
            model: with a dynamic batch; its shapes are changed.
            options: use of the device.
            columns: length of the inputs' rows, if it is dynamic.
            probe: golden numbers to compare with.
            cache: folder of OpenVINO's own cache, if it is used.

        Raises:
            BundleError: OpenVINO cannot compile it.
            OutOfToleranceError: it is too far from the golden numbers.
        """
        with _compiling(model.get_friendly_name()):
            properties = options.properties() | ({"CACHE_DIR": str(cache)} if cache else {})
            compiled = openvino_core().compile_model(
                _with_static_shapes(model, columns), options.device.name, properties
            )
            if probe:
                probe.check(outputs(compiled, probe.rows))
        return cls(compiled, options.streams)

    def infer(self, *inputs: Array) -> Array:
        """Run on one row of each input, without the batch dimension."""
        request = self._requests.get()
        try:
            request.infer([array[None] for array in inputs])
            result: Array = request.get_output_tensor().data[0].copy()
        finally:
            self._requests.put(request)
        return result

    def infer_iter(self, rows: Iterable[tuple[Array, ...]]) -> Iterator[Array]:
        """The results of `infer`, in order; some rows are computed ahead in parallel.

        `rows` are consumed as needed, so there may be any number of them.
        """
        if self._streams == 1:
            for row in rows:
                yield self.infer(*row)
            return
        # Threads, since `infer` releases the interpreter lock; OpenVINO's own queue with Python
        # callbacks deadlocks when it is destroyed.
        pending: deque[Future[Array]] = deque()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                for row in rows:
                    pending.append(pool.submit(self.infer, *row))
                    if len(pending) > 2 * self._streams:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:  # of an abandoned iterator
                    future.cancel()

    def infer_batch(self, *inputs: Array) -> Array:
        """The results (B,...) of inputs (B,...)."""
        return np.stack(list(self.infer_iter(zip(*inputs))))

"""One model of a bundle, compiled by OpenVINO for rows of a batch of one."""

from __future__ import annotations

import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from runtime.arrays import Array
from runtime.bundle import Bundle, weights_file
from runtime.compiled_cache import compile_and_keep, load_blob, outputs, read_kept
from runtime.cpu import cpu_name
from runtime.errors import BundleError, GalipEdgeError
from runtime.files import write_whole
from runtime.golden import OutOfToleranceError, Probe
from runtime.graph_io import check_sizes, read_graph
from runtime.openvino_core import keep_locale, openvino_core
from runtime.passes import specialize_for_cpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileOptions:
    """How OpenVINO uses the CPU.

    Attributes:
        threads: cores, for all streams together.
        streams: rows in parallel, each with its share of the threads.
        precision: in which to calculate what is not int8, f32 or bf16.
        cache: folder for compiled models (`runtime.compiled_cache`), if they shall be kept.
        fallback: use f32 where bf16 is out of tolerance of the golden numbers.
    """

    threads: int
    streams: int
    precision: str
    cache: Path | None
    fallback: bool = True

    def name(self) -> str:
        """Short, and another for other options; the cache does not count."""
        return f"{self.precision}-{self.threads}-{self.streams}"

    def properties(self) -> dict[str, Any]:
        """OpenVINO's."""
        return {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY" if self.streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.streams,
            "INFERENCE_NUM_THREADS": self.threads,
            # Pinned threads of two processes on one machine would queue for the same cores.
            "ENABLE_CPU_PINNING": False,
        }


def read_model(bundle: Bundle, name: str) -> ov.Model:
    """A model of a bundle, in the form that is fastest on this CPU. Raises BundleError."""
    return specialize_for_cpu(read_graph(bundle, name))


def has_bf16() -> bool:
    """True if the CPU computes in bfloat16."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def supported_precision(wanted: str) -> str:
    """`wanted`, f32 or bf16, or f32 where the CPU has no bf16."""
    if wanted == "bf16" and not has_bf16():
        _log.info("this CPU has no bf16: calculating in f32, slower and a little different")
        return "f32"
    return wanted


def chosen_precision(asked: str, of_bundle: str) -> str:
    """The precision to calculate in, f32 or bf16.

    Args:
        asked: auto, f32 or bf16.
        of_bundle: what auto means where the CPU has it.

    Raises BundleError if the CPU has no bf16 and it was asked for.
    """
    if asked == "bf16" and not has_bf16():
        raise BundleError(f"this CPU ({cpu_name()}) has no bfloat16: use --precision auto or f32")
    return supported_precision(of_bundle if asked == "auto" else asked)


class ModelFile:
    """A model of a bundle on disk, read when it is compiled.

    Args:
        bundle: verified. It must not change from now on.
        name: of the model's graph.
        probe: golden numbers for rows of so many columns; None if the bundle has none.
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
        self._refused: str | None = None  # why bf16 is not used

    def compile(self, options: CompileOptions, columns: int | None = None) -> CompiledModel:
        """Compile; see CompiledModel.

        Where bf16 is out of tolerance, a warning says so, and f32 is used from then on.

        Raises:
            BundleError: the files were changed, OpenVINO cannot read or compile them, or computes
                other numbers than the bundle's golden ones.
        """
        self._bundle.check_unchanged(self._name, self._weights.name)
        if options.precision == "bf16" and options.fallback:
            if compiled := self._in_bf16(options, columns):
                return compiled
            options = replace(
                options, precision="f32", streams=options.streams if self._exact_in_f32 else 1
            )
        try:
            return self._compiled(options, columns)
        except OutOfToleranceError as error:
            other = "use --precision f32" if options.precision == "bf16" else "update OpenVINO"
            raise BundleError(
                f"{self._wrong(options.precision, error)}: {other}, or convert the bundle again if "
                "its golden numbers are wrong"
            ) from error

    def used_precision(self, wanted: str) -> str:
        """`wanted`, or f32 where bf16 was out of tolerance."""
        return "f32" if self._refused is not None else wanted

    def _in_bf16(self, options: CompileOptions, columns: int | None) -> CompiledModel | None:
        """None where its numbers are wrong."""
        mark = options.cache / f"{self._weights.stem}-bf16.refused" if options.cache else None
        reason = self._refused
        if reason is None and mark and (kept := read_kept(mark)):
            reason = kept.decode("utf-8", "replace")
        if reason is None:
            try:
                compiled = self._compiled(options, columns)
            except OutOfToleranceError as error:
                reason = self._wrong("bf16", error)
                if self._used == "bf16":  # images would depend on what they are generated with
                    raise BundleError(f"{reason}: use --precision f32") from error
            else:
                self._used = "bf16"
                return compiled
        if self._refused is None:
            self._refused = reason
            _log.warning("%s: calculating in f32, which is slower", reason)
            if mark:
                _remember(mark, reason)
        return None

    def _wrong(self, precision: str, error: OutOfToleranceError) -> str:
        release = ov.__version__.partition("-")[0]
        return (
            f"OpenVINO {release} computes wrong numbers in {precision} on this CPU "
            f"({cpu_name()}) with the {self._weights.stem} of {self._bundle.folder} ({error})"
        )

    def _compiled(self, options: CompileOptions, columns: int | None) -> CompiledModel:
        with keep_locale():
            compiled = self._kept(options, columns) if options.cache else None
            if compiled is not None:
                return CompiledModel(compiled, options.streams)
            model = read_model(self._bundle, self._name)
            return CompiledModel.of(model, options, columns, self._probe(columns))

    def _kept(self, options: CompileOptions, columns: int | None) -> ov.CompiledModel | None:
        """From the cache, into which it is put if need be; None if it cannot be."""
        assert options.cache is not None
        name = f"{self._weights.stem}-{columns or 'all'}-{options.name()}.blob"
        place = options.cache / name, self._weights, options.properties()

        def read() -> ov.Model:
            return _with_static_shapes(read_model(self._bundle, self._name), columns)

        compiled = load_blob(*place)
        if compiled is None:
            compiled = compile_and_keep(read, *place, self._probe(columns))
        return compiled


def _remember(mark: Path, reason: str) -> None:
    try:
        write_whole(mark, reason.encode())
    except GalipEdgeError as error:
        _log.info("it will be found again: %s", error)


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
    it, so an image would depend on the others of its batch.

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
    ) -> CompiledModel:
        """Compile `model` without a look into the cache.

        Args:
            model: with a dynamic batch; its shapes are changed.
            options: see there.
            columns: the length of the inputs' rows, if the model leaves it open.
            probe: golden numbers that it must come near to.

        Raises:
            BundleError: OpenVINO cannot compile it.
            OutOfToleranceError: it is too far from the golden numbers.
        """
        with _compiling(model.get_friendly_name()):
            compiled = openvino_core().compile_model(
                _with_static_shapes(model, columns), "CPU", options.properties()
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

        `rows` are taken as they are needed, so that there may be any number of them.
        """
        if self._streams == 1:
            for row in rows:
                yield self.infer(*row)
            return
        # Threads, since `infer` lets go of the interpreter lock; OpenVINO's own queue with Python
        # callbacks was seen to deadlock when it is destroyed.
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

"""One model of a bundle, compiled by OpenVINO for rows of a batch of one."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from runtime.blobs import compile_and_keep, load_blob
from runtime.bundle import weights_file
from runtime.cpu import multiplies_int8_matrices_slowly
from runtime.errors import BundleError
from runtime.graphs import read_graph
from runtime.openvino_core import keep_locale, openvino_core
from runtime.pointwise import matrices_to_convolutions

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CompileOptions:
    """How OpenVINO uses the CPU.

    Attributes:
        threads: cores, for all streams together.
        streams: rows calculated side by side, each with its share of the threads.
        precision: in which to calculate what is not int8, f32 or bf16.
        cache: folder for compiled models (`runtime.blobs`), if they shall be kept.
    """

    threads: int
    streams: int
    precision: str
    cache: Path | None

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
            # Pinned threads of two processes on one box would queue for the same cores.
            "ENABLE_CPU_PINNING": False,
        }


def read_model(graph: Path) -> ov.Model:
    """A model of a bundle, in the form that is fastest on this CPU. Raises BundleError."""
    return for_this_cpu(read_graph(graph))


def for_this_cpu(model: ov.Model) -> ov.Model:
    """Bring `model`, in place, into the form that is fastest on this CPU."""
    if multiplies_int8_matrices_slowly():
        matrices_to_convolutions(model)
    return model


def has_bf16() -> bool:
    """Whether the CPU calculates in bfloat16."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def supported_precision(wanted: str) -> str:
    """`wanted`, f32 or bf16, or f32 where the CPU has no bf16."""
    if wanted == "bf16" and not has_bf16():
        _log.info("this CPU has no bf16: calculating in f32, slower and a little different")
        return "f32"
    return wanted


class ModelFile:
    """A model of a bundle on disk, read when it is compiled.

    Args:
        graph: its file. It must not change from now on.
    """

    def __init__(self, graph: Path) -> None:
        self._graph, self._weights = graph, weights_file(graph)
        self._states = self._state()

    def _state(self) -> list[tuple[int, int, int]]:
        status = [path.stat() for path in (self._graph, self._weights)]
        return [(s.st_size, s.st_mtime_ns, s.st_ino) for s in status]

    def compile(self, options: CompileOptions, columns: int | None = None) -> CompiledModel:
        """See CompiledModel.

        Raises:
            BundleError: the files were changed, or OpenVINO cannot read or compile them.
        """
        if self._state() != self._states:
            raise BundleError(f"{self._graph} was changed while it was in use: load it again")
        with keep_locale():
            compiled = self._kept(options, columns) if options.cache else None
            if compiled is None:
                return CompiledModel.of(read_model(self._graph), options, columns)
            return CompiledModel(compiled, options.streams)

    def _kept(self, options: CompileOptions, columns: int | None) -> ov.CompiledModel | None:
        """From the cache, into which it is put if need be; None if it cannot be."""
        assert options.cache is not None
        name = f"{self._weights.stem}-{columns or 'all'}-{options.name()}.blob"
        place = options.cache / name, self._weights, options.properties()

        def read() -> ov.Model:
            return _with_static_shapes(read_model(self._graph), columns)

        compiled = load_blob(*place)
        return compile_and_keep(read, *place) if compiled is None else compiled


def _with_static_shapes(model: ov.Model, columns: int | None) -> ov.Model:
    """`model` itself, for a batch of one: a dynamic batch costs speed and memory."""
    model.reshape(
        {i: [1, *([columns] if columns else list(i.partial_shape)[1:])] for i in model.inputs}
    )
    return model


@contextmanager
def _compiling(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BundleError(
            f"the model {name!r} cannot be compiled by OpenVINO {ov.__version__}: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from error


class CompiledModel:
    """A function from the rows of arrays to a row.

    The batch is always one. A larger one is hardly faster, and some operations round differently in
    it, so that a picture would depend on what is generated beside it.

    Args:
        compiled: OpenVINO's, for a batch of one.
        streams: rows calculated side by side.
    """

    def __init__(self, compiled: ov.CompiledModel, streams: int) -> None:
        self._compiled, self._streams = compiled, streams
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(self._compiled.create_infer_request())

    @classmethod
    def of(
        cls, model: ov.Model, options: CompileOptions, columns: int | None = None
    ) -> CompiledModel:
        """Compile `model` without a look into the cache.

        Args:
            model: with a dynamic batch; its shapes are changed.
            options: see there.
            columns: the length of the inputs' rows, if the model leaves it open.

        Raises:
            BundleError: OpenVINO cannot compile it.
        """
        with _compiling(model.get_friendly_name()):
            compiled = openvino_core().compile_model(
                _with_static_shapes(model, columns), "CPU", options.properties()
            )
        return cls(compiled, options.streams)

    def row(self, *inputs: Array) -> Array:
        """Run on one row of each input, without the batch dimension."""
        request = self._requests.get()
        try:
            request.infer([array[None] for array in inputs])
            result: Array = request.get_output_tensor().data[0].copy()
        finally:
            self._requests.put(request)
        return result

    def each(self, rows: Iterable[tuple[Array, ...]]) -> Iterator[Array]:
        """The results of `row`, in order; some rows ahead are calculated side by side.

        `rows` are taken as they are needed, so that there may be any number of them.
        """
        if self._streams == 1:
            for row in rows:
                yield self.row(*row)
            return
        # Threads, since `infer` lets go of the interpreter lock; OpenVINO's own queue with Python
        # callbacks was seen to deadlock when it is destroyed.
        pending: deque[Future[Array]] = deque()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                for row in rows:
                    pending.append(pool.submit(self.row, *row))
                    if len(pending) > 2 * self._streams:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:  # of one who wants no more
                    future.cancel()

    def all(self, *inputs: Array) -> Array:
        """The results (B,...) of inputs (B,...)."""
        return np.stack(list(self.each(zip(*inputs))))

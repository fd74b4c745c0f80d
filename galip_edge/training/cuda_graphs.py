"""Forward and backward passes as CUDA graphs.

A step launches thousands of small kernels, and a GPU waits for each of them. A CUDA graph launches
all kernels of a pass at once. It repeats them on the same memory, so a step's inputs are copied to
where the captured pass reads them, and its results are read where it wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import OptimizedModule, StepReport

# Steps before a capture, in which cuDNN times its algorithms, and optimizers allocate moments.
_EAGER_STEPS = 3

# Largest difference of a reported value between a replayed and an eager step: relative, and for
# values near zero absolute. Rounding differs, as sums on a GPU have no fixed order.
_TOLERANCE, _NEAR_ZERO = 0.05, 0.01


class Graph(Protocol):
    """A captured pass."""

    def replay(self) -> None:
        """Launch its kernels."""
        ...


class CaptureError(Exception):
    """A pass cannot be captured."""


@dataclass
class _Captured:
    graph: Graph
    values: Tensor
    gradients: list[Tensor | None]


def capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """A new stream of a CUDA device; from now on the current one, as the default stream cannot be
    captured."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    torch.cuda.set_stream(stream)
    return stream


class CUDAGraphs:
    """Captures the passes of a step after a few eager ones, and replays them.

    All passes of a step share one memory pool, because a later pass may read what an earlier one
    kept: they must run in the same order in every step.

    Args:
        stream: the current one, of `capturing_stream`.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._signature: Hashable = None
        self._steps = 0  # with this signature
        self._eager = False
        self._captured: dict[str, _Captured] = {}
        self._inputs: MicroBatch | None = None
        self._pool: Any = None

    def begin(self, signature: Hashable, batch: MicroBatch) -> MicroBatch:
        """Prepare a step.

        Args:
            signature: of its passes. Passes of another signature are forgotten. None: the passes
                of this step cannot be captured.
            batch: of the step.

        Returns:
            `batch`, in the memory that the captured passes read.
        """
        if signature != self._signature:
            self._signature, self._steps, self._inputs, self._pool = signature, 0, None, None
            self._captured.clear()
        if signature is None:
            return batch
        self._steps += 1
        values = {field.name: getattr(batch, field.name) for field in fields(MicroBatch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if self._inputs is None:
            device = self._stream.device
            copies: dict[str, Any] = {
                name: value.to(device, copy=True) for name, value in tensors.items()
            }
            self._inputs = replace(batch, **copies)
        else:
            for name, value in tensors.items():
                getattr(self._inputs, name).copy_(value, non_blocking=True)
        return self._inputs

    def step(
        self, modules: Sequence[OptimizedModule], compute: Callable[[], StepReport]
    ) -> StepReport:
        """Run the passes of a step; the first step that only replays is compared with an eager one.

        Args:
            modules: that the step may change.
            compute: calls `run` for each pass.

        Raises:
            CaptureError: a pass cannot be captured, or does not compute what it should. In the
                latter case, `modules` are as before the step.
        """
        if self._signature is None or self._steps != _EAGER_STEPS + 2:
            return compute()
        undo = Undo(modules)
        self._eager = True
        eager = compute()
        self._eager = False
        undo()
        replayed = compute()
        if not agree(replayed, eager):
            undo()
            raise CaptureError(f"a captured step differs from an eager one: {replayed}, {eager}")
        return replayed

    def run(
        self, name: str, parameters: Sequence[nn.Parameter], compute: Callable[[], Tensor]
    ) -> Tensor:
        """Compute gradients of `parameters`, which have none before.

        Args:
            name: of the pass, unique within a step.
            parameters: that the pass may compute gradients of.
            compute: the pass, which returns values.

        Returns:
            Values of `compute`; valid until the next call of `run` with this name.

        Raises:
            CaptureError: the pass cannot be captured.
        """
        if self._signature is None or self._eager or self._steps <= _EAGER_STEPS:
            return compute()
        found = self._captured.get(name)
        if found is None:
            try:
                found = self._captured[name] = self._capture(parameters, compute)
            except RuntimeError as error:
                raise CaptureError(str(error).splitlines()[0]) from error
        found.graph.replay()
        for parameter, gradient in zip(parameters, found.gradients, strict=True):
            parameter.grad = gradient
        return found.values

    def _capture(
        self, parameters: Sequence[nn.Parameter], compute: Callable[[], Tensor]
    ) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Threads of the data loader use CUDA at the same time.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            values = compute()
        return _Captured(graph, values, [parameter.grad for parameter in parameters])


def agree(replayed: StepReport, eager: StepReport) -> bool:
    """True if two reports of the same step differ by rounding only."""
    if replayed.values.keys() != eager.values.keys() or replayed.skipped != eager.skipped:
        return False
    return all(
        abs(value - eager.values[name]) <= _TOLERANCE * abs(eager.values[name]) + _NEAR_ZERO
        for name, value in replayed.values.items()
    )


class Undo:
    """Restores what a step changes in `modules`."""

    def __init__(self, modules: Sequence[OptimizedModule]) -> None:
        self._kept = [(tensor, tensor.detach().clone()) for tensor in _changing(modules)]

    @torch.no_grad()
    def __call__(self) -> None:
        for tensor, value in self._kept:
            tensor.detach().copy_(value)


def _changing(modules: Sequence[OptimizedModule]) -> list[Tensor]:
    found: list[Tensor] = []
    for module in modules:
        found += [*module.parameters.values(), *module.buffers.values()]
        states: Mapping[Any, Mapping[str, Tensor]] = module.optimizer.state
        found += [tensor for state in states.values() for tensor in state.values()]
    return found

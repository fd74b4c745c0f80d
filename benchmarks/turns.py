"""Variants that take turns, each in a separate process.

So the peak memory of each is its own, and a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ENERGY = Path("/sys/class/powercap")


class Variant:
    """A process that creates something once, then runs it on request.

    Args:
        make: a function of a module; called in the process, it returns the function that `run`
            calls there.
        arguments: of `make`.
        has_children: whether the process starts others.

    Raises:
        RuntimeError: it could not be created; the message states the reason.
    """

    def __init__(
        self,
        make: Callable[..., Callable[..., Any]],
        *arguments: Any,
        has_children: bool = False,
    ) -> None:
        # One that is idle must not spin while others are measured; OpenMP reads it when loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, make, arguments),
            name=make.__name__,
            daemon=not has_children,
        )
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, *arguments: Any) -> Any:
        """The result of the function there."""
        self._connection.send(arguments)
        return self._answer()

    def end(self) -> int:
        """End the process; its peak memory in bytes."""
        self._connection.send(None)
        peak: int = self._answer()
        self._process.join()
        return peak

    def _answer(self) -> Any:
        try:
            value, error = self._connection.recv()
        except EOFError:
            self._process.join()
            error = f"its process ended with {self._process.exitcode}"
        if error:
            raise RuntimeError(f"{self._process.name}: {error}")
        return value


def _serve(connection: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        run = make(*arguments)
        connection.send((None, None))
        while (request := connection.recv()) is not None:
            connection.send((run(*request), None))
        connection.send((peak_memory(), None))
    except Exception as error:  # noqa: BLE001 - whatever it is, reported to the caller
        connection.send((None, f"{type(error).__name__}: {error}"))


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes.

    Not from `getrusage`: that of a new process begins with what its parent had.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def joules() -> float | None:
    """The energy counter of all CPU packages (RAPL), or None where it cannot be read."""
    try:
        counters = [path / "energy_uj" for path in _ENERGY.glob("intel-rapl:?")]
        return sum(int(c.read_text()) for c in counters) / 1e6 if counters else None
    except OSError:
        return None


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]

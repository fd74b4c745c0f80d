"""Speed of a bundle on this machine, with the packages of the runtime alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from galip_edge.variables import PREFIX
from runtime.cpu import available_cores, cpu_name, instruction_sets
from runtime.devices import devices_for
from runtime.errors import GalipEdgeError
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.version import __version__

_WARM_UP = 3
# Images for each core in one measurement of throughput.
_IMAGES_OF_A_CORE = 8


@dataclass(frozen=True)
class Measurement:
    """Results of `galip-edge benchmark`.

    Attributes:
        model, model_hash, image_size: of the bundle.
        precision: of the bundle's weights.
        computed_in: precision of layers that are not INT8.
        p50, p95: seconds from a new prompt to its image, one after the other.
        images_per_second: of many images of one prompt, in parallel.
        first_start, start: seconds of a `galip-edge generate` of one image: with an empty cache,
            and with compiled models in the cache.
        peak_bytes: memory of that process; None if unknown.
        runs, images: how many measurements p50 and p95 come from, and images of the throughput.
        machine: device, CPU, cores, instruction sets, load before the measurement.
        versions: of galip-edge, OpenVINO and Python.
    """

    model: str
    model_hash: str
    image_size: int
    precision: str
    computed_in: str
    p50: float
    p95: float
    images_per_second: float
    first_start: float
    start: float
    peak_bytes: int | None
    runs: int
    images: int
    machine: dict[str, Any]
    versions: dict[str, str]

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def line(self) -> str:
        """One line, to paste into an issue."""
        sets = ", ".join(self.machine["instruction_sets"]) or "instruction sets unknown"
        peak = "unknown" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.0f} MB"
        load = self.machine["load"]
        busy = "" if load is None else f" (load {load:.1f})"
        device = self.machine["device"]
        on = "" if device.startswith("CPU") else f"on {device}, "
        return (
            f"galip-edge {self.versions['galip-edge']}, {self.model} {self.model_hash[:8]}, "
            f"{self.image_size} px, {self.precision}, rest in {self.computed_in}: "
            f"p50 {self.p50 * 1e3:.1f} ms, p95 {self.p95 * 1e3:.1f} ms, "
            f"{self.images_per_second:.1f} images/s, start {self.start:.2f} s (first "
            f"{self.first_start:.2f} s), peak {peak}; {on}{self.machine['cpu']}, "
            f"{self.machine['cores']} cores{busy}, {sets}; OpenVINO {self.versions['openvino']}, "
            f"Python {self.versions['python']}, {self.machine['system']}"
        )


def measure(
    bundle: Path,
    options: PipelineOptions,
    runs: int = 30,
    progress: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Measure a bundle on this machine.

    Args:
        bundle: its folder.
        options: how to use the machine.
        runs: prompts for p50 and p95.
        progress: receives the name of each step when it begins.

    Raises:
        BundleError: the bundle is damaged.
        DeviceError: the machine does not have the device.
        GalipEdgeError: a process that was started to measure its start failed.
    """
    devices_for(options.device)  # a missing one is reported at once
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    progress("start of a process")
    first_start, start, peak = _starts(bundle, options)
    progress("loading the model")
    pipeline = Pipeline.from_bundle(bundle, options)
    manifest = pipeline.manifest
    # Other prompts each time, so that text is encoded, too.
    for number in range(_WARM_UP):
        pipeline.generate(f"a bird on a branch, {number}")
    progress(f"{runs} prompts, one after the other")
    seconds = []
    for number in range(runs):
        before = time.perf_counter()
        pipeline.generate(f"a duck on the water, {number}")
        seconds.append(time.perf_counter() - before)
    images = _IMAGES_OF_A_CORE * (options.threads or available_cores())
    progress(f"{images} images in parallel")
    return Measurement(
        manifest.name,
        manifest.model_hash,
        manifest.image_size,
        manifest.precision,
        pipeline.computed_in,
        float(np.percentile(seconds, 50)),
        float(np.percentile(seconds, 95)),
        images / _seconds_of_many(pipeline, images),
        first_start,
        start,
        peak,
        runs,
        images,
        {
            "device": str(pipeline.device),
            "cpu": cpu_name(),
            "cores": options.threads or available_cores(),
            "instruction_sets": instruction_sets(),
            "load": load,
            "system": f"{platform.system()} {platform.machine()}",
        },
        {
            "galip-edge": __version__,
            "openvino": version("openvino"),
            "python": platform.python_version(),
        },
    )


def _seconds_of_many(pipeline: Pipeline, images: int) -> float:
    """Time of the faster of two runs, after one that compiles."""
    found = []
    for _ in range(3):
        before = time.perf_counter()
        for _ in pipeline.generate_each("a bird on a branch", images):
            pass
        found.append(time.perf_counter() - before)
    return min(found[1:])


def _starts(bundle: Path, options: PipelineOptions) -> tuple[float, float, int | None]:
    """Seconds of a process that generates one image: at first, and later; its peak memory."""
    with tempfile.TemporaryDirectory(prefix="galip-edge-") as folder:
        command = [sys.executable, "-m", "galip_edge", "generate", "a bird on a branch"]
        command += ["--model", str(bundle.resolve()), "--out", str(Path(folder, "x.png"))]
        command += ["--threads", str(options.threads), "--precision", options.precision]
        command += ["--device", options.device]
        package = str(Path(__file__).parent.parent)
        search_path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # The user's variables would set other options of generate.
        given = {n: it for n, it in os.environ.items() if not n.startswith(f"{PREFIX}_")}
        environment = given | {"GALIP_EDGE_CACHE": folder, "PYTHONPATH": search_path}
        seconds = []
        for _ in range(2):
            before = time.perf_counter()
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, cwd=folder, check=False
            )
            seconds.append(time.perf_counter() - before)
            if done.returncode:
                raise GalipEdgeError(f"galip-edge generate failed: {done.stderr.strip()[-500:]}")
    return seconds[0], seconds[1], _peak_of_children()


def _peak_of_children() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

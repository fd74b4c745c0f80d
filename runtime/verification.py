"""Check a bundle as `galip-edge verify` does: files, graphs, loading and golden numbers.

OpenVINO loads an untrusted bundle in a child process with bounded memory and time:

    python -m runtime.verification FOLDER PRECISION DEVICE
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runtime.bundle import FORMAT_VERSION, Bundle
from runtime.devices import CPU, checked_name, devices_for
from runtime.errors import BundleError, GalipEdgeError, log_to_stderr
from runtime.pipeline import Pipeline, PipelineOptions

_SECONDS = 600
# Bytes that loading may allocate. A full-size model takes 1.5 GB.
_MOST_MEMORY = 6 * 1024**3


class Step(NamedTuple):
    """A check that passed."""

    name: str
    result: str


def verify_bundle(folder: Path, precision: str = "auto", device: str = CPU) -> Iterator[Step]:
    """Check an untrusted bundle, without the cache.

    Args:
        folder: of the bundle.
        precision: to run it in (`PipelineOptions`).
        device: to run it on.

    Raises:
        DeviceError: the machine does not have the device.
        BundleError: the bundle is damaged, unsafe, or wrong on this machine.
    """
    devices_for(checked_name(device))
    bundle = Bundle.open(folder)
    yield Step("hashes", f"ok, {len(bundle.manifest.files)} files")
    yield from _in_child(folder, precision, device)
    bundle.check_unchanged(*bundle.manifest.files)


def _in_child(folder: Path, precision: str, device: str) -> Iterator[Step]:
    arguments = [str(folder.resolve()), precision, device]
    command = [sys.executable, "-m", "runtime.verification", *arguments]
    # `-m` searches the working folder first, which may hold untrusted files.
    root = Path(__file__).parent.parent
    late = threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=root
    ) as child:
        assert child.stdout is not None

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(_SECONDS, stop)
        timer.start()
        try:
            for line in child.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise BundleError(message["error"])
                yield Step(**message)
            child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                child.kill()
    if late.is_set():
        raise BundleError(f"{folder} did not load within {_SECONDS} seconds: do not use the bundle")
    if child.returncode:
        raise BundleError(_crash(folder, child.returncode))


def _crash(folder: Path, code: int) -> str:
    try:
        reason = signal.Signals(-code).name
    except ValueError:
        reason = f"exit code {code}"
    return (
        f"loading {folder} ends the process ({reason}): the bundle is damaged or malicious, "
        "do not use it"
    )


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, value in ((resource.RLIMIT_DATA, _MOST_MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(name)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (limit, hard))


def _load(folder: Path, precision: str, device: str) -> Iterator[Step]:
    options = PipelineOptions(cache=False, precision=precision, device=device)
    pipeline = Pipeline.from_bundle(folder, options)
    report = pipeline.compare_with_golden()
    yield Step("loading", "ok")
    if report is None:
        yield Step(
            "golden",
            f"not checked: the bundle has no golden numbers (format {FORMAT_VERSION - 1}); "
            "convert the checkpoint again to have them",
        )
    else:
        yield Step("golden", f"ok, {report}")
    image = pipeline.generate("a bird on a branch")[0]
    yield Step("inference", f"ok, {image.shape[1]} x {image.shape[0]} pixels")


def _main(folder: str, precision: str, device: str) -> None:
    log_to_stderr()
    try:
        # Drivers of other devices reserve more address space.
        if all(each.is_cpu for each in devices_for(checked_name(device))):
            _limit_resources()
        for step in _load(Path(folder), precision, device):
            print(json.dumps(step._asdict()), flush=True)  # noqa: T201
    except (GalipEdgeError, MemoryError) as error:
        text = str(error) or "it needs more memory than any GALIP model"
        print(json.dumps({"error": text}), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])

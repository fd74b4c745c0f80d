"""A model that draws at once, so that jobs of many images take no time.

As a command it runs a job with it: PROMPTS BUNDLE OUT FORM WORKERS MILLISECONDS-AN-IMAGE UPDATE
PART.
"""

import hashlib
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np


class PlainPipeline:
    """Draws 8x8 pixels that depend on prompt and noise; fails for prompts with `crash` in them."""

    seconds = 0.0

    def __init__(self, manifest):
        self.manifest = manifest

    @classmethod
    def from_bundle(cls, path, options=None):
        from runtime.bundle import read_manifest

        return cls(read_manifest(Path(path)))

    def prepare(self, count):
        pass

    def encode(self, prompts):
        if any("crash" in prompt for prompt in prompts):
            raise RuntimeError("a kernel gave up")
        digest = hashlib.sha256("".join(prompts).encode()).digest()
        return np.frombuffer(digest, np.uint8)[None].astype(np.float32)

    def synthesize_each(self, rows, count):
        for noise, sentence in rows:
            time.sleep(self.seconds)
            values = np.resize(np.concatenate([sentence, noise * 50 + 128]), (8, 8, 3))
            yield values.clip(0, 255).astype(np.uint8)


class SlowWorker:
    """Stands for `Worker` in the processes of a job."""

    def __new__(cls, work):
        from runtime.jobs import worker

        PlainPipeline.seconds = float(sys.argv[6]) / 1e3
        worker.Pipeline = PlainPipeline
        return worker.Worker(work)


def without_openvino() -> None:
    """The plain model does not need it, and a process starts in half the time."""
    for name in ("openvino", "openvino.opset13"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["openvino"].opset13 = sys.modules["openvino.opset13"]


def main() -> None:
    without_openvino()
    from runtime.jobs import engine, job, place, processes, prompt_file

    place._RENEWAL, place._EXPIRY = 0.2, 2.0  # kills are many, and their leases short

    prompts, bundle, out, form, workers, _, update, part = sys.argv[1:]
    engine.Worker = SlowWorker
    options = job.JobOptions(form=form, part=int(part), update=update == "1")
    how = engine.InProcess() if workers == "1" else processes.Processes(int(workers))
    for _ in job.Job(prompt_file.PromptFile(Path(prompts)), bundle, out, options, how):
        pass


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a process of `Processes`, which has this file as its main one
    without_openvino()
    from runtime.jobs import processes

    processes.Worker = SlowWorker

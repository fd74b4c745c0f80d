"""Prompts to images on a CPU, from a bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Manifest, read_manifest, verify_files
from runtime.cache import Stamps, cache_folder, compiled_model_folder
from runtime.cpu import available_cores, cpu_name, instruction_sets
from runtime.errors import BundleError
from runtime.noise import draw_noise
from runtime.prompts import checked_prompt
from runtime.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PipelineOptions:
    """How the CPU is used. None of it changes a picture.

    Attributes:
        threads: cores to use; 0 means all that the process and its container may use.
        streams: images calculated side by side, each with its share of the threads.
        cache: keep compiled models and verified hashes in the user's cache folder.
    """

    threads: int = 0
    streams: int = 1
    cache: bool = True

    def __post_init__(self) -> None:
        for name, least in (("threads", 0), ("streams", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


@dataclass(frozen=True)
class Generated:
    """One generated image and what it was made from."""

    prompt: str
    seed: int
    index: int
    image: Images  # (H,W,3)


class Pipeline:
    """A loaded bundle. Make one with `Pipeline.from_bundle`."""

    def __init__(self, folder: Path, manifest: Manifest, options: PipelineOptions) -> None:
        self.manifest = manifest
        self.options = options
        self._core = ov.Core()
        self._compiled_folder = self._cache_for(manifest) if options.cache else None
        merges = (folder / MERGES).read_text(encoding="utf-8").splitlines()
        self.tokenizer = Tokenizer(merges, manifest.context_length)
        self._text_encoder = self._compile(folder / TEXT_ENCODER)
        self._generator = self._compile(folder / GENERATOR)

    @classmethod
    def from_bundle(cls, path: str | Path, options: PipelineOptions | None = None) -> Pipeline:
        """Load and compile the bundle in folder `path`, after every file's hash was checked.

        Raises:
            BundleError: it is missing, damaged, or cannot be compiled.
        """
        folder, options = Path(path), options or PipelineOptions()
        manifest = read_manifest(folder)
        verify_files(folder, manifest, Stamps(cache_folder()) if options.cache else None)
        try:
            return cls(folder, manifest, options)
        except (RuntimeError, ValueError, OSError) as error:
            raise BundleError(
                f"the bundle in {folder} cannot be loaded by OpenVINO {ov.__version__}: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error

    def encode(self, prompts: Sequence[str]) -> Floats:
        """Sentence embeddings of prompts; equal prompts are encoded once.

        Returns:
            (len(prompts), embedding_dim) float32, not normalised.

        Raises:
            PromptError: a prompt is empty, too long or no valid text.
        """
        distinct = {checked_prompt(prompt): i for i, prompt in enumerate(dict.fromkeys(prompts))}
        sentences = self._run(self._text_encoder, self.tokenizer(list(distinct)))
        return sentences[[distinct[prompt] for prompt in prompts]]

    def synthesize(self, sentence: npt.ArrayLike, noise: npt.ArrayLike) -> Images:
        """Images from sentence embeddings and noise.

        Args:
            sentence: (B,embedding_dim), as `encode` returns them.
            noise: (B,noise_dim), as `draw_noise` returns it.

        Returns:
            (B,H,W,3) uint8, RGB.

        Raises:
            ValueError: the shapes do not fit the model or each other.
        """
        sentence, noise = np.asarray(sentence, np.float32), np.asarray(noise, np.float32)
        expected = (len(noise), self.manifest.noise_dim), (len(noise), self.manifest.embedding_dim)
        if (noise.shape, sentence.shape) != expected:
            raise ValueError(
                f"noise must be (B,{self.manifest.noise_dim}) and sentence "
                f"(B,{self.manifest.embedding_dim}), got {noise.shape} and {sentence.shape}"
            )
        return self._run(self._generator, noise, sentence)

    def generate(self, prompts: str | Sequence[str], n: int = 1, seed: int = 0) -> Images:
        """`n` images of each prompt, in order.

        Image i of a prompt depends on the prompt, the seed and i alone.

        Returns:
            (len(prompts)·n,H,W,3) uint8, RGB.

        Raises:
            PromptError: a prompt is empty, too long or no valid text.
        """
        items = list(self.generate_each(prompts, n, seed))
        return np.stack([item.image for item in items])

    def generate_each(
        self, prompts: str | Sequence[str], n: int = 1, seed: int = 0
    ) -> Iterator[Generated]:
        """The images of `generate`, in the same order, each as soon as it is there."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        sentences = self.encode(prompts)
        jobs = [(row, prompt, i) for row, prompt in enumerate(prompts) for i in range(n)]
        step = self.options.streams
        for start in range(0, len(jobs), step):
            part = jobs[start : start + step]
            noise = [draw_noise(seed, prompt, i, self.manifest.noise_dim) for _, prompt, i in part]
            images = self.synthesize(sentences[[row for row, _, _ in part]], np.stack(noise))
            for (_, prompt, i), image in zip(part, images):
                yield Generated(prompt, seed, i, image)

    def _run(self, model: Any, *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Run a compiled model over each row of `inputs`; rows run side by side in the streams.

        The batch is always one. A larger one is hardly faster, and some operations round
        differently in it, so that a picture would depend on what is generated beside it.
        """
        rows = len(inputs[0])
        output = model.output(0)
        dtype = output.get_element_type().to_dtype()
        results = np.empty((rows, *list(output.shape)[1:]), dtype)

        def run_every(first: int, step: int) -> None:
            request = model.create_infer_request()
            for row in range(first, rows, step):
                request.infer([array[row : row + 1] for array in inputs])
                results[row] = request.get_output_tensor().data[0]

        streams = min(self.options.streams, rows)
        if streams <= 1:
            run_every(0, 1)
            return results
        # Threads, since `infer` lets go of the interpreter lock; OpenVINO's own queue with Python
        # callbacks was seen to deadlock when it is destroyed.
        with ThreadPoolExecutor(streams) as pool:
            for future in [pool.submit(run_every, first, streams) for first in range(streams)]:
                future.result()
        return results

    def _compile(self, path: Path) -> Any:
        model = self._core.read_model(path)
        # Static shapes: a dynamic batch costs speed and memory.
        model.reshape({i: [1, *list(i.partial_shape)[1:]] for i in model.inputs})
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._inference_precision(),
            "PERFORMANCE_HINT": "LATENCY" if self.options.streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.options.streams,
            "INFERENCE_NUM_THREADS": self.options.threads or available_cores(),
        }
        if self._compiled_folder is not None:
            config["CACHE_DIR"] = str(self._compiled_folder)
        return self._core.compile_model(model, "CPU", config)

    def _inference_precision(self) -> str:
        wanted = self.manifest.inference_precision
        if wanted == "bf16" and "BF16" not in self._core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            _log.info("this CPU has no bf16: calculating in f32, slower and a little different")
            return "f32"
        return wanted

    @staticmethod
    def _cache_for(manifest: Manifest) -> Path | None:
        machine = f"{ov.__version__} {cpu_name()} {instruction_sets()}"
        key = hashlib.sha256(machine.encode()).hexdigest()[:12]
        return compiled_model_folder(cache_folder(), f"{manifest.model_hash[:16]}-{key}")

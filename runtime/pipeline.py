"""Prompts to images from a bundle, on a CPU or another device that OpenVINO knows."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from runtime.arrays import Floats, Images
from runtime.bundle import (
    GENERATOR,
    GOLDEN,
    MERGES,
    RUN_PRECISIONS,
    TEXT_ENCODER,
    Bundle,
    default_bundle,
)
from runtime.checks import checked_integer, checked_path, checked_share, require_booleans
from runtime.compiled import CompiledModel, CompileOptions, ModelFile, chosen_precision
from runtime.compiled_cache import VerifiedFiles, compiled_model_folder
from runtime.cpu import available_cores
from runtime.devices import AUTO, CPU, Device, checked_name, devices_for, is_x86
from runtime.errors import BundleError
from runtime.files import cache_folder
from runtime.golden import (
    Golden,
    GoldenReport,
    Probe,
    read_golden,
    worst_cosine,
    worst_psnr_db,
)
from runtime.noise import MAX_SEED, draw_noise, truncate
from runtime.prompts import checked_prompts
from runtime.selection import Candidate, candidates, choose
from runtime.tokenizer import Tokenizer

# Token counts for which the text encoder is compiled on demand, in addition to the context length:
# most prompts are short, and each length costs memory (docs/performance.md).
TEXT_LENGTHS = (20, 32)

# Least number of images per core that are computed in parallel.
_MANY = 2

# Sentence embeddings of the latest prompts: 2 KB each at full size.
_KEPT_SENTENCES = 2048


@dataclass(frozen=True)
class PipelineOptions:
    """How the machine is used. Only device, precision and dequantize change an image.

    Attributes:
        threads: cores to use; 0 means all that the process and its container may use.
        streams: images computed in parallel, each with its share of the threads; 0 chooses by the
            number of images, for the least latency of few and the most throughput of many.
        cache: keep compiled models and verified hashes in the user's cache folder.
        precision: of layers that are not INT8: f32, bf16, or auto: the bundle's own where the CPU
            has it, float16 on devices built for it (`runtime.devices`), f32 where these are out of
            tolerance (`runtime.golden`).
        device: OpenVINO's name of the device, such as CPU, GPU, GPU.1 or NPU; AUTO measures once
            which one is fastest (`runtime.selection`).
        dequantize: compute INT8 layers in floating point; None measures once whether that is
            faster where it may be.
    """

    threads: int = 0
    streams: int = 0
    cache: bool = True
    precision: str = "auto"
    device: str = CPU
    dequantize: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", checked_name(self.device))
        if self.precision not in RUN_PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(RUN_PRECISIONS)}, got {self.precision!r}"
            )
        for name in ("threads", "streams"):
            checked_integer(getattr(self, name), name, 0)
        require_booleans(self, "cache", *(() if self.dequantize is None else ("dequantize",)))


@dataclass(frozen=True)
class Generated:
    """A generated image and its inputs."""

    prompt: str
    seed: int
    index: int
    image: Images  # (H,W,3)


def _checked_floats(values: npt.ArrayLike, name: str) -> Floats:
    try:
        floats = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r:.60}") from error
    if not np.isfinite(floats).all():
        raise ValueError(f"{name} has values that are not finite")
    return floats


class Pipeline:
    """A loaded bundle; created by `Pipeline.from_bundle`."""

    def __init__(self, bundle: Bundle, options: PipelineOptions) -> None:
        self._bundle, self.manifest, self.options = bundle, bundle.manifest, options
        self._threads = options.threads or available_cores()
        chosen = self._chosen(devices_for(options.device))
        self.device, self._dequantize = chosen.device, chosen.dequantize
        self._precision = self._precision_on(self.device)
        self._compiled_folder = self._cache_folder([self.device]) if options.cache else None
        # In floating point, sums depend on the number of threads.
        exact = self.manifest.is_all_int8 and not self._dequantize
        self._text_file = ModelFile(bundle, TEXT_ENCODER, self._text_probe)
        self._generator_file = ModelFile(bundle, GENERATOR, self._generator_probe, exact)
        # Compiled on demand: by number of tokens, and by number of streams.
        self._text_encoders: dict[int, CompiledModel] = {}
        self._generators: dict[int, Future[CompiledModel]] = {}
        self._sentences: OrderedDict[bytes, Floats] = OrderedDict()  # by the prompt's hash

    @classmethod
    def from_bundle(
        cls, path: str | Path | None = None, options: PipelineOptions | None = None
    ) -> Pipeline:
        """Open a bundle and verify the hash of every file.

        Models are compiled on first use. That raises BundleError if OpenVINO cannot read or compile
        them, or if their output differs too much from the golden numbers.

        Args:
            path: folder of the bundle; None for the embedded model.
            options: use of the CPU.

        Raises:
            BundleError: the bundle is missing or damaged, or the device does not have the precision
                that `options` require.
            DeviceError: the machine does not have the device that `options` name.
        """
        options = options or PipelineOptions()
        verified = VerifiedFiles(cache_folder()) if options.cache else None
        folder = default_bundle() if path is None else checked_path(path)
        return cls(Bundle.open(folder, verified), options)

    @property
    def settled_options(self) -> PipelineOptions:
        """Options with which another process computes the same way, without measuring."""
        return replace(self.options, device=self.device.name, dequantize=self._dequantize)

    def _chosen(self, devices: Sequence[Device]) -> Candidate:
        """The device and arithmetic to use, measured if there is a choice."""
        if (asked := self.options.dequantize) is None:
            among = candidates(devices, self.manifest)
        else:
            among = [Candidate(device, asked) for device in devices]
        if len(among) == 1:
            return among[0]
        golden = read_golden(self._bundle)
        folder = self._cache_folder(devices) if self.options.cache else None
        kept = folder / f"choice-{self.options.precision}.json" if folder else None
        return choose(among, self._generator_on, self.manifest, golden, kept)

    def _generator_on(self, candidate: Candidate) -> CompiledModel:
        """The generator of a candidate, for one image at a time.

        Compiled models are cached: one of them will be used. Raises BundleError if generator or
        text encoder is out of tolerance or cannot be compiled.
        """
        device = candidate.device
        precision = self._precision_on(device)
        golden = self._golden_for(precision)
        folder = self._cache_folder([device]) if self.options.cache else None
        file = ModelFile(
            self._bundle, GENERATOR, lambda _: golden.generator_probe() if golden else None
        )
        options = CompileOptions(
            self._threads,
            1,
            precision,
            folder,
            self.options.precision == "auto",
            device,
            candidate.dequantize,
        )
        text = ModelFile(self._bundle, TEXT_ENCODER, lambda n: self._text_probe_of(golden, n))
        text.compile(options, self._text_length(1))
        return file.compile(options)

    def _precision_on(self, device: Device) -> str:
        of_bundle = self.manifest.inference_precision
        return chosen_precision(self.options.precision, of_bundle, device)

    @cached_property
    def golden(self) -> Golden | None:
        """The bundle's golden numbers; None where it has none (format 2)."""
        return self._golden_for(self._precision)

    def _golden_for(self, precision: str) -> Golden | None:
        loosened = precision == "bf16" and self.manifest.inference_precision == "f32"
        return read_golden(self._bundle, loosened)

    def _text_probe(self, columns: int | None) -> Probe | None:
        return self._text_probe_of(self.golden, columns)

    def _text_probe_of(self, golden: Golden | None, columns: int | None) -> Probe | None:
        if golden is None:
            return None
        tokens = self.tokenizer(golden.entry.prompts)
        # Prompts that do not fit into this length are compared at the full length only.
        if columns and not tokens[:, columns:].any():
            tokens = tokens[:, :columns]
        elif columns:
            return None
        return golden.text_probe(tokens)

    def _generator_probe(self, columns: int | None) -> Probe | None:
        return self.golden.generator_probe() if self.golden else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, created on first use, while the generator is compiled.

        Raises BundleError if its merges are invalid.
        """
        try:
            merges = self._bundle.read(MERGES).decode("utf-8").splitlines()
            return Tokenizer(merges, self.manifest.context_length)
        except ValueError as error:
            raise BundleError(
                f"{MERGES} of the bundle is damaged ({error}): copy or convert the bundle again"
            ) from error

    def compare_with_golden(self) -> GoldenReport | None:
        """Compile everything and compare it with the golden numbers; None if there are none.

        Raises BundleError if it is out of tolerance, or cannot be compiled.
        """
        if (golden := self.golden) is None:
            return None
        for length in (*TEXT_LENGTHS, self.manifest.context_length):
            if length <= self.manifest.context_length:
                self._text_encoder(length)
        self._generator(1)
        return GoldenReport(
            self._text_file.used_precision(self._precision),
            self._generator_file.used_precision(self._precision),
            worst_cosine(self.encode(golden.entry.prompts), golden.sentence),
            worst_psnr_db(self.synthesize(golden.sentence, golden.noise), golden.image),
        )

    @property
    def computed_in(self) -> str:
        """Precision of the generator's arithmetic, f32, bf16 or f16, where it is not INT8."""
        return self._generator_file.used_precision(self._precision)

    def prepare(self, count: int) -> None:
        """Start compiling for `count` images in the background."""
        streams = self.parallel_images(count)
        if streams not in self._generators:
            thread = ThreadPoolExecutor(1)
            self._generators[streams] = thread.submit(
                self._generator_file.compile, self._compile_options(streams)
            )
            thread.shutdown(wait=False)  # it ends after the task

    def encode(self, prompts: str | Sequence[str]) -> Floats:
        """Sentence embeddings of one prompt or many; equal prompts are encoded once.

        Returns:
            (len(prompts), embedding_dim) float32, not normalised.

        Raises:
            PromptError: there is no prompt, or one is empty, too long or not valid text.
        """
        prompts = checked_prompts(prompts)
        distinct = {_prompt_key(prompt): prompt for prompt in prompts}
        self._encode_new({key: it for key, it in distinct.items() if key not in self._sentences})
        for key in distinct:
            self._sentences.move_to_end(key)
        sentences = np.stack([self._sentences[_prompt_key(prompt)] for prompt in prompts])
        while len(self._sentences) > _KEPT_SENTENCES:
            self._sentences.popitem(last=False)
        return sentences

    def _encode_new(self, prompts: dict[bytes, str]) -> None:
        if not prompts:
            return
        tokens = self.tokenizer(list(prompts.values()))
        for key, row, end in zip(prompts, tokens, tokens.argmax(axis=1)):
            # The length depends on the prompt alone, and so does the embedding, to the bit.
            length = self._text_length(int(end) + 1)
            self._sentences[key] = self._text_encoder(length).infer(row[:length])

    def synthesize(self, sentence: npt.ArrayLike, noise: npt.ArrayLike) -> Images:
        """Images from sentence embeddings and noise.

        Args:
            sentence: (B,embedding_dim), as `encode` returns them.
            noise: (B,noise_dim), as `draw_noise` returns it.

        Returns:
            (B,H,W,3) uint8, RGB.

        Raises:
            ValueError: the shapes do not fit the model or each other, there is no row, or a value
                is not a finite number.
        """
        sentence, noise = _checked_floats(sentence, "sentence"), _checked_floats(noise, "noise")
        rows = noise.shape[0] if noise.ndim else 0
        expected = (rows, self.manifest.noise_dim), (rows, self.manifest.embedding_dim)
        if not rows or (noise.shape, sentence.shape) != expected:
            raise ValueError(
                f"noise must be (B,{self.manifest.noise_dim}) and sentence "
                f"(B,{self.manifest.embedding_dim}), got {noise.shape} and {sentence.shape}"
            )
        return self._generator(len(noise)).infer_batch(noise, sentence)

    def synthesize_each(
        self, rows: Iterable[tuple[Floats, Floats]], count: int
    ) -> Iterator[Images]:
        """The image (H,W,3) of each row, in order, as soon as it is ready.

        Args:
            rows: noise (noise_dim,) and a sentence embedding (embedding_dim,) each; consumed as
                needed.
            count: approximate number of rows; many are computed in parallel.

        Raises:
            ValueError: count is not a number of images, or a row does not fit the model.
        """
        count = checked_integer(count, "count", 0)
        return self._generator(count).infer_iter(map(self._checked_row, rows))

    def _checked_row(self, row: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        noise, sentence = row
        found = np.shape(noise), np.shape(sentence)
        expected = (self.manifest.noise_dim,), (self.manifest.embedding_dim,)
        if found != expected:
            raise ValueError(
                f"a row must be noise {expected[0]} and a sentence embedding {expected[1]}, got "
                f"{found[0]} and {found[1]}"
            )
        return row

    def generate(
        self, prompts: str | Sequence[str], n: int = 1, seed: int = 0, psi: float = 1.0
    ) -> Images:
        """`n` images of each prompt, in order.

        Image i of a prompt depends on the prompt, the seed, psi and i alone.

        Args:
            prompts: one or many.
            n: images of each.
            seed: of their noise.
            psi: in [0,1]; below 1, more typical and less diverse images, see `truncate`.

        Returns:
            (len(prompts)·n,H,W,3) uint8, RGB.

        Raises:
            PromptError: there is no prompt, or one is empty, too long or not valid text.
            ValueError: n, seed or psi is not a number, or out of range.
        """
        items = list(self.generate_each(prompts, n, seed, psi))
        return np.stack([item.image for item in items])

    def generate_each(
        self, prompts: str | Sequence[str], n: int = 1, seed: int = 0, psi: float = 1.0
    ) -> Iterator[Generated]:
        """The images of `generate`, in the same order, each as soon as it is ready.

        Raises:
            PromptError, ValueError: as `generate`, before the first image.
        """
        n, seed = checked_integer(n, "n", 1), checked_integer(seed, "seed", 0, MAX_SEED)
        return self._generate_each(checked_prompts(prompts), n, seed, checked_share(psi, "psi"))

    def _generate_each(
        self, prompts: list[str], n: int, seed: int, psi: float
    ) -> Iterator[Generated]:
        self.prepare(len(prompts) * n)  # while text is encoded
        sentences = self.encode(prompts)
        size = self.manifest.noise_dim
        jobs = [(row, prompt, i) for row, prompt in enumerate(prompts) for i in range(n)]
        rows = (
            (truncate(draw_noise(seed, prompt, i, size), psi), sentences[row])
            for row, prompt, i in jobs
        )
        for (_, prompt, i), image in zip(jobs, self.synthesize_each(rows, len(jobs))):
            yield Generated(prompt, seed, i, image)

    def _text_length(self, count: int) -> int:
        """Length for which the text encoder is compiled to read `count` tokens."""
        lengths = (*TEXT_LENGTHS, self.manifest.context_length)
        return next(length for length in lengths if length >= count)

    def _text_encoder(self, length: int) -> CompiledModel:
        if length not in self._text_encoders:
            options = self._compile_options(streams=1)
            self._text_encoders[length] = self._text_file.compile(options, length)
        return self._text_encoders[length]

    def _generator(self, count: int) -> CompiledModel:
        """Generator for `count` images: all cores for each, or many images in parallel."""
        self.prepare(count)
        return self._generators[self.parallel_images(count)].result()

    def parallel_images(self, count: int) -> int:
        """Number of images computed in parallel, each with its share of the cores."""
        if self.options.streams:
            return self.options.streams
        # In floating point, sums depend on the number of threads, and the image would on `count`.
        all_int8 = self.manifest.is_all_int8 and not self._dequantize
        exact = all_int8 or self._precision == "bf16"
        streams = self.device.streams(self._threads)
        return streams if exact and count >= _MANY * streams else 1

    def _compile_options(self, streams: int) -> CompileOptions:
        fallback = self.options.precision == "auto"
        return CompileOptions(
            self._threads,
            streams,
            self._precision,
            self._compiled_folder,
            fallback,
            self.device,
            self._dequantize,
        )

    def _cache_folder(self, devices: Sequence[Device]) -> Path | None:
        """Folder of models that were compiled for, and tested on, these devices."""
        golden = self.manifest.files.get(GOLDEN), self.manifest.golden
        machine = f"{ov.__version__} {[each.identity for each in devices]} {golden}"
        key = hashlib.sha256(machine.encode()).hexdigest()[:12]
        return compiled_model_folder(cache_folder(), f"{self.manifest.model_hash[:32]}-{key}")


def settled_options(bundle: str | Path, options: PipelineOptions) -> PipelineOptions:
    """Options with a fixed device and arithmetic, for several processes.

    Raises like `Pipeline.from_bundle`, which is called if a choice has to be measured.
    """
    if options.device != AUTO and (options.dequantize is not None or is_x86()):
        return options
    return Pipeline.from_bundle(bundle, options).settled_options


def _prompt_key(prompt: str) -> bytes:
    """Cache key of a prompt, which may be longer than its embedding."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()

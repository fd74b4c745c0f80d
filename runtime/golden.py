"""Golden numbers: PyTorch's float32 results for two prompts, and each machine's distance from them.

OpenVINO uses different kernels for each CPU and version, and some have been wrong, such as sentence
embeddings in bfloat16 with OpenVINO 2026.0 to 2026.2. So each model is compared with the bundle's
golden numbers once, when it is compiled for a machine; cached models have passed.

`golden.bin` holds, without a header: sentence embeddings (P,E) float32, images (P,H,W,3) uint8,
little endian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.arrays import Array
from runtime.bundle import GOLDEN, Bundle, GoldenEntry, Manifest
from runtime.noise import draw_noise

# Margin below the values measured at conversion. Two kinds of CPU agree to
# 32 dB in the worst image of an INT8 bundle (docs/performance.md); wrong images reach 10 to 15 dB.
_MARGIN_DB = 10.0
_MARGIN_COSINE = 10.0  # times the distance from 1
# Always accepted, by the bundle's precision: minimum cosine and PSNR in dB.
_NEAR_ENOUGH = {
    "fp32": (0.9999, 45.0),
    "fp16": (0.9995, 40.0),
    "bf16": (0.995, 30.0),
    "mixed": (0.995, 30.0),
    "int8": (0.995, 30.0),
}
# Tolerance of a float32 bundle that runs in bfloat16 on the user's request.
_BF16_ON_REQUEST = (0.99, 28.0)


class OutOfToleranceError(Exception):
    """The output of a compiled model differs too much from the golden numbers."""


@dataclass(frozen=True)
class Probe:
    """Inputs of a model, and a comparison of its outputs with golden numbers.

    Attributes:
        rows: inputs with a batch of one.
        measure: cosine or PSNR in dB of the worst output.
        least: minimum of `measure`.
        unit: name of the measure, for messages.
    """

    rows: Sequence[tuple[Array, ...]]
    measure: Callable[[Sequence[Array]], float]
    least: float
    unit: str

    def check(self, outputs: Sequence[Array]) -> float:
        """Return the measured value. Raises OutOfToleranceError if it is below the minimum."""
        found = self.measure(outputs)
        if not found >= self.least:  # also for NaN
            raise OutOfToleranceError(
                f"{self.unit} is {found:.4g}, at least {self.least:.4g} is needed"
            )
        return found


@dataclass(frozen=True)
class GoldenReport:
    """A bundle's distance from its golden numbers on this machine.

    Attributes:
        text_precision, image_precision: arithmetic of the two models, f32, bf16 or f16.
        sentence_cosine: of the worst sentence embedding.
        image_psnr_db: of the worst image, from PyTorch's sentence embedding.
    """

    text_precision: str
    image_precision: str
    sentence_cosine: float
    image_psnr_db: float

    def __str__(self) -> str:
        return (
            f"sentence cosine {self.sentence_cosine:.5f} in {self.text_precision}, "
            f"image {self.image_psnr_db:.1f} dB in {self.image_precision}"
        )


@dataclass(frozen=True)
class Golden:
    """Golden numbers of a bundle.

    Attributes:
        entry: the manifest's.
        noise: (P,Z) float32.
        sentence: (P,E) float32.
        image: (P,H,W,3) uint8.
    """

    entry: GoldenEntry
    noise: Array
    sentence: Array
    image: Array

    def text_probe(self, tokens: Array) -> Probe:
        """Probe of the text encoder.

        Args:
            tokens: (P,L) int64 of the entry's prompts.
        """

        def measure(outputs: Sequence[Array]) -> float:
            return worst_cosine(np.concatenate(outputs), self.sentence)

        rows = [(row[None],) for row in tokens]
        return Probe(rows, measure, self.entry.sentence_cosine, "cosine of a sentence embedding")

    def generator_probe(self) -> Probe:
        """Probe of the generator."""

        def measure(outputs: Sequence[Array]) -> float:
            return worst_psnr_db(np.concatenate(outputs), self.image)

        rows = [(z[None], s[None]) for z, s in zip(self.noise, self.sentence)]
        return Probe(rows, measure, self.entry.image_psnr_db, "PSNR of an image in dB")


def read_golden(bundle: Bundle, loosened: bool = False) -> Golden | None:
    """Golden numbers of a verified bundle; None if it has none.

    Args:
        bundle: of any format.
        loosened: for a float32 bundle that runs in bfloat16.

    Raises BundleError if the file was changed since.
    """
    manifest, entry = bundle.manifest, bundle.manifest.golden
    if entry is None:
        return None
    if loosened:
        cosine, psnr = _BF16_ON_REQUEST
        entry = GoldenEntry(
            entry.prompts,
            entry.seed,
            min(cosine, entry.sentence_cosine),
            min(psnr, entry.image_psnr_db),
        )
    content, count = bundle.read(GOLDEN), len(entry.prompts)
    size = count * manifest.embedding_dim
    sentence = np.frombuffer(content, "<f4", size).reshape(count, -1)
    image = np.frombuffer(content, np.uint8, offset=4 * size)
    return Golden(
        entry,
        golden_noise(entry, manifest.noise_dim),
        sentence.astype(np.float32),
        image.reshape(count, manifest.image_size, manifest.image_size, 3),
    )


def write_golden(folder: Path, sentence: Array, image: Array) -> None:
    """Write `golden.bin`.

    Args:
        folder: of the bundle.
        sentence: (P,E) float32.
        image: (P,H,W,3) uint8.
    """
    content = sentence.astype("<f4").tobytes() + image.astype(np.uint8).tobytes()
    (folder / GOLDEN).write_bytes(content)


def golden_noise(entry: GoldenEntry, size: int) -> Array:
    """Noise (P,size) of the golden images: the first of each prompt."""
    return np.stack([draw_noise(entry.seed, prompt, 0, size) for prompt in entry.prompts])


def tolerance(manifest: Manifest, cosine: float, psnr_db: float) -> GoldenEntry:
    """The manifest's golden entry with the tolerance for other machines.

    Args:
        manifest: with an entry.
        cosine, psnr_db: of the worst embedding and image, measured at conversion.
    """
    assert manifest.golden is not None
    least_cosine, least_psnr = _NEAR_ENOUGH[manifest.precision]
    return GoldenEntry(
        manifest.golden.prompts,
        manifest.golden.seed,
        min(least_cosine, 1 - _MARGIN_COSINE * (1 - cosine)),
        min(least_psnr, psnr_db - _MARGIN_DB),
    )


def worst_cosine(found: Array, wanted: Array) -> float:
    """Minimum cosine between rows of two arrays (P,E)."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(np.min((found * wanted).sum(axis=1) / np.maximum(lengths, 1e-12)))


def worst_psnr_db(found: Array, wanted: Array) -> float:
    """Minimum PSNR in dB between images (P,H,W,3) uint8; 100 for equal ones."""
    errors = np.square(found.astype(np.float32) - wanted).mean(axis=(1, 2, 3), dtype=np.float64)
    return float(np.min(10 * np.log10(255**2 / np.maximum(errors, 255**2 * 1e-10))))

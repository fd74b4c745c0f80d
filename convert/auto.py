"""The fastest precision on this machine, by measurement."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from convert.errors import ConversionError
from convert.fidelity import PROMPTS
from convert.options import OF_INT8, ConvertOptions
from convert.progress import Progress
from runtime.bundle import Manifest, save_manifest
from runtime.compiled import has_bf16
from runtime.pipeline import Pipeline, PipelineOptions

# Smaller differences in speed are noise: the candidate with the higher PSNR is chosen.
_ALIKE = 1.03
_TURNS = 15


@dataclass(frozen=True)
class Candidate:
    """Measurements of one precision.

    Attributes:
        precision: precision of the bundle.
        image_psnr_db: PSNR against PyTorch.
        seconds: prompt to image, median.
    """

    precision: str
    image_psnr_db: float
    seconds: float


def write_fastest(
    write: Callable[[ConvertOptions, Path], Manifest],
    options: ConvertOptions,
    folder: Path,
    progress: Progress,
) -> Manifest:
    """Write a bundle of each candidate precision, and keep the fastest in `folder`.

    Its manifest lists the candidates.

    Args:
        write: writes a bundle into an empty folder.
        options: `lowest_psnr` is what the chosen bundle must reach.
        folder: existing and empty.
        progress: reports steps.

    Raises:
        ConversionError: no candidate reaches it.
    """
    # Without bfloat16, float16 weights cost no time and halve the size.
    precisions = ("int8", "bf16" if has_bf16() else "fp16")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="candidates-") as name:
        manifests = {}
        for precision in precisions:
            path = Path(name) / precision
            path.mkdir()
            of_int8 = options if precision == "int8" else ConvertOptions()
            one = replace(
                options,
                precision=precision,
                min_psnr=0.0,
                **{name: getattr(of_int8, name) for name in OF_INT8},
            )
            manifests[precision] = write(one, path)
        progress.step("measuring which is fastest", len(precisions) * _TURNS)
        seconds = _seconds({p: Path(name) / p for p in precisions}, progress)
        candidates = [
            Candidate(precision, manifest.fidelity[-1]["image_psnr_db"], seconds[precision])
            for precision, manifest in manifests.items()
        ]
        chosen = choose(candidates, options.lowest_psnr)
        manifest = manifests[chosen.precision]
        for file in (Path(name) / chosen.precision).iterdir():
            shutil.move(file, folder / file.name)
    chosen_from = {"chosen_from": [asdict(candidate) for candidate in candidates]}
    return save_manifest(
        folder, replace(manifest, quantization=manifest.quantization | chosen_from)
    )


def choose(candidates: list[Candidate], lowest_psnr: float) -> Candidate:
    """The fastest candidate of at least `lowest_psnr`; among equally fast ones, the highest PSNR.

    Raises:
        ConversionError: none reaches `lowest_psnr`.
    """
    faithful = [c for c in candidates if c.image_psnr_db >= lowest_psnr]
    if not faithful:
        reached = ", ".join(f"{c.precision} {c.image_psnr_db:.1f} dB" for c in candidates)
        raise ConversionError(
            f"no precision reaches {lowest_psnr:.1f} dB against PyTorch ({reached}): use more "
            "calibration prompts or a lower --min-psnr"
        )
    limit = _ALIKE * min(c.seconds for c in faithful)
    return max((c for c in faithful if c.seconds <= limit), key=lambda c: c.image_psnr_db)


def _seconds(bundles: dict[str, Path], progress: Progress) -> dict[str, float]:
    """Medians from prompt to image; bundles take turns, with a new prompt in each turn."""
    pipelines = {
        name: Pipeline.from_bundle(path, PipelineOptions(cache=False))
        for name, path in bundles.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in bundles}
    for turn in range(_TURNS):
        prompt = f"{PROMPTS[turn % len(PROMPTS)]}, image {turn}"
        for name, pipeline in pipelines.items():
            start = time.perf_counter()
            pipeline.generate(prompt)
            seconds[name].append(time.perf_counter() - start)
            progress.advance()
    # The first turns compile.
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}

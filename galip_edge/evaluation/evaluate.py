"""All metrics of one or two models on captions and real images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from galip_edge.config import check_integers
from galip_edge.evaluation.clip_space import CLIPScorer, clip_score, diversity, r_precision
from galip_edge.evaluation.fid import FeatureStatistics, frechet_distance
from galip_edge.evaluation.manifold import manifold_metrics
from galip_edge.evaluation.mmd import cmmd, squared_mmd_polynomial
from galip_edge.evaluation.models import EvaluatedModel
from galip_edge.evaluation.two_sample import two_sample_accuracy
from runtime.arrays import Floats, Images
from runtime.errors import GalipEdgeError
from runtime.version import __version__

# k of precision, recall, density and coverage.
_NEIGHBOURS = 3

_INCEPTIONS = ("torchvision", "tf")


class FeatureExtractor(Protocol):
    """A network such as Inception."""

    def __call__(self, pixels: Images) -> Floats:
        """uint8 images (N,H,W,3) -> features (N,D)."""
        ...


class ExtraMetrics(Protocol):
    """Metrics that need more than captions and images, for one kind of data."""

    def measure(self, pixels: Images, captions: Sequence[str]) -> dict[str, Any]:
        """Metrics of generated images (N,H,W,3) by name, one image for each caption."""
        ...

    def diversity(self, groups: list[Images], seed: int) -> dict[str, Any]:
        """Metrics of groups of images (K,H,W,3), each generated from one of the first captions."""
        ...


@dataclass(frozen=True)
class EvaluationOptions:
    """Extent of an evaluation.

    Attributes:
        count: captions, generated images (one per caption), and real images.
        seed: of the noise.
        batch_size: images at once; does not affect the result.
        diversity_captions, diversity_images: captions, and images of each, for `diversity`; 0
            captions disable it.
        midpoints: interpolations whose middle image is compared with real images by every
            feature extractor; 0 disables them.
        two_sample: real images, and as many generated ones, for a classifier two-sample test; 0
            disables it.
    """

    count: int = 1000
    seed: int = 0
    batch_size: int = 16
    diversity_captions: int = 20
    diversity_images: int = 8
    midpoints: int = 0
    two_sample: int = 0

    def __post_init__(self) -> None:
        check_integers(self, 0, "seed", "diversity_captions", "midpoints", "two_sample")
        check_integers(self, 1, "batch_size")
        check_integers(self, 2, "count", "diversity_images")
        for name in ("midpoints", "two_sample"):
            if getattr(self, name) > self.count:
                raise ValueError(
                    f"{name} must be at most count, {self.count}, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class MetricModels:
    """The networks that metrics are computed with.

    Attributes:
        scorer: CLIP.
        inceptions: feature extractors by the name of their protocol, such as `torchvision` or
            `tf`; each adds FID, KID, precision, recall, density and coverage.
    """

    scorer: CLIPScorer
    inceptions: dict[str, FeatureExtractor] = field(default_factory=dict)


@dataclass
class Pass:
    """Features of a set of images, and their pixels where needed."""

    embeddings: list[Floats] = field(default_factory=list)
    embeddings_original: list[Floats] = field(default_factory=list)
    features: dict[str, list[Floats]] = field(default_factory=dict)
    pixels: list[Images] = field(default_factory=list)

    def add(self, pixels: Images, networks: MetricModels, keep_pixels: bool = False) -> None:
        """Compute the features of `pixels`."""
        self.embeddings.append(networks.scorer.images(pixels))
        self.embeddings_original.append(networks.scorer.images(pixels, "original"))
        for name, extractor in networks.inceptions.items():
            self.features.setdefault(name, []).append(extractor(pixels))
        if keep_pixels:
            self.pixels.append(pixels)


Progress = Callable[[str, int, int], None]


def evaluate(
    model: EvaluatedModel,
    captions: Sequence[str],
    networks: MetricModels,
    options: EvaluationOptions,
    *,
    real: Callable[[int], Images] | None = None,
    second: Callable[[int], Images] | None = None,
    extra: ExtraMetrics | None = None,
    reference: EvaluatedModel | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure `model`.

    Args:
        model: generates one image for each of the first `options.count` captions.
        captions: at least as many.
        networks: to compute metrics with.
        options: extent.
        real: real image `i` (H,W,3), for distances between real and generated sets.
        second: real image `i` of a second set from the same distribution; its distances from the
            first set are those of a perfect model.
        extra: further metrics of this kind of data.
        reference: a second model, usually the same in another precision; adds PSNR between them.
        progress: called with stage, done and total.

    Returns:
        Plain values for JSON: `protocol`, `model`, and `metrics` by name.

    Raises:
        GalipEdgeError: fewer captions than `options.count`.
    """
    prepared = prepare(captions, networks, options, real=real, progress=progress)
    metrics, pixels = measure(
        model, prepared, networks, options, extra=extra, stage="model", progress=progress
    )
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": {"name": model.name, "sha256": model.sha256},
        "protocol": asdict(options),
        "versions": {
            "galip-edge": __version__,
            **{p: version(p) for p in ("torch", "openvino", "numpy")},
        },
        "metrics": metrics,
    }
    if second is not None and prepared.real is not None:
        other = _real_pass(second, networks, options, progress, "second real set")
        result["second_real"] = _distances(other, prepared.real)
    if reference is not None:
        metrics, theirs = measure(
            reference, prepared, networks, options, extra=extra, stage="reference",
            progress=progress,
        )  # fmt: skip
        result["reference"] = {
            "model": {"name": reference.name, "sha256": reference.sha256},
            "metrics": metrics,
            "psnr_db": psnr(pixels, theirs),
        }
    return result


@dataclass(frozen=True)
class Prepared:
    """Inputs that measurements of several models share; see `prepare`.

    Attributes:
        captions: N captions.
        sentences: (N,E) normalized CLIP embeddings.
        real: features of real images, if there are any.
    """

    captions: list[str]
    sentences: Floats
    real: Pass | None


def prepare(
    captions: Sequence[str],
    networks: MetricModels,
    options: EvaluationOptions,
    *,
    real: Callable[[int], Images] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Embed captions and real images once for any number of models; arguments as for `evaluate`.

    Raises:
        GalipEdgeError: fewer captions than `options.count`.
    """
    count = options.count
    if len(captions) < count:
        raise GalipEdgeError(f"need {count} captions, found {len(captions)}: reduce count")
    captions = list(captions[:count])
    return Prepared(
        captions,
        networks.scorer.sentences(captions),
        _real_pass(real, networks, options, progress) if real else None,
    )


def psnr(images: Images, reference: Images) -> dict[str, float]:
    """PSNR in dB of uint8 images (N,H,W,3): pooled, mean over images, 5 % quantile, and worst.

    Raises GalipEdgeError if the image sizes differ.
    """
    if images.shape != reference.shape:
        raise GalipEdgeError(
            f"images of {images.shape[1:]} and {reference.shape[1:]} cannot be compared by pixel"
        )
    errors = np.array(
        [np.square(a.astype(np.float64) - b).mean() for a, b in zip(images, reference)]
    )
    each = 10 * np.log10(255**2 / np.maximum(errors, 1e-10))
    pooled = 10 * np.log10(255**2 / max(float(errors.mean()), 1e-10))
    return {
        "pooled": float(pooled),
        "mean": float(each.mean()),
        "5%": float(np.quantile(each, 0.05)),
        "worst": float(each.min()),
    }


def _real_pass(
    real: Callable[[int], Images],
    networks: MetricModels,
    options: EvaluationOptions,
    progress: Progress,
    stage: str = "real images",
) -> Pass:
    kept = Pass()
    for at in range(0, options.count, options.batch_size):
        rows = range(at, min(at + options.batch_size, options.count))
        keep = rows.start < options.two_sample
        kept.add(np.stack([real(i) for i in rows]), networks, keep)
        progress(stage, rows.stop, options.count)
    return kept


def measure(
    model: EvaluatedModel,
    prepared: Prepared,
    networks: MetricModels,
    options: EvaluationOptions,
    *,
    extra: ExtraMetrics | None = None,
    stage: str = "model",
    progress: Progress = lambda stage, done, total: None,
) -> tuple[dict[str, Any], Images]:
    """Metrics of `model` by name, and its images (N,H,W,3); arguments as for `evaluate`."""
    kept, captions, sentences = Pass(), prepared.captions, prepared.sentences
    for at in range(0, options.count, options.batch_size):
        prompts = captions[at : at + options.batch_size]
        kept.add(model.images(prompts, [0] * len(prompts), options.seed), networks, True)
        progress(stage, at + len(prompts), options.count)
    pixels = np.concatenate(kept.pixels)
    embeddings = np.concatenate(kept.embeddings)
    metrics: dict[str, Any] = {
        "clip_score": clip_score(embeddings, sentences),
        "clip_score_original": clip_score(np.concatenate(kept.embeddings_original), sentences),
    }
    if len(set(captions)) > 1:
        metrics["r_precision"] = r_precision(embeddings, sentences, captions)
    if prepared.real is not None:
        metrics |= _distances(kept, prepared.real)
        if options.midpoints:
            metrics |= _midpoints(model, prepared, prepared.real, networks, options)
        if options.two_sample:
            metrics["two_sample_accuracy"] = _two_sample(prepared.real, pixels, options)
    if extra is not None:
        metrics |= extra.measure(pixels, captions)
    if options.diversity_captions:
        chosen, k = captions[: options.diversity_captions], options.diversity_images
        groups = [model.images([c] * k, range(k), options.seed) for c in chosen]
        embedding, rms = diversity(groups, networks.scorer)
        metrics |= {"diversity_clip": embedding, "diversity_pixels": rms}
        if extra is not None:
            metrics |= extra.diversity(groups, options.seed)
    return metrics, pixels


def _distances(kept: Pass, real: Pass) -> dict[str, Any]:
    ours, theirs = np.concatenate(kept.embeddings), np.concatenate(real.embeddings)
    metrics: dict[str, Any] = {
        "clip_fd": _frechet(ours, theirs),
        "cmmd": cmmd(ours, theirs),
        **{f"clip_{name}": value for name, value in _overlap(ours, theirs).items()},
    }
    for name in kept.features:
        ours, theirs = np.concatenate(kept.features[name]), np.concatenate(real.features[name])
        # Inception's distances have established names.
        frechet, kernel = ("fid", "kid") if name in _INCEPTIONS else ("fd", "kd")
        metrics[f"{frechet}_{name}"] = _frechet(ours, theirs)
        metrics[f"{kernel}_{name}"] = squared_mmd_polynomial(ours, theirs)
        metrics |= {f"{key}_{name}": value for key, value in _overlap(ours, theirs).items()}
        if len(ours) < ours.shape[1]:
            metrics[f"{frechet}_{name}_warning"] = (
                f"{len(ours)} images for {ours.shape[1]} features: too few, the value is biased"
            )
    return metrics


def _overlap(ours: Floats, theirs: Floats) -> dict[str, float]:
    if min(len(ours), len(theirs)) <= _NEIGHBOURS:
        return {}
    return asdict(manifold_metrics(theirs, ours, _NEIGHBOURS))


def _midpoints(
    model: EvaluatedModel,
    prepared: Prepared,
    real: Pass,
    networks: MetricModels,
    options: EvaluationOptions,
) -> dict[str, float]:
    """Precision of images halfway between two captions."""
    starts, ends = prepared.captions, [*prepared.captions[1:], prepared.captions[0]]
    features: dict[str, list[Floats]] = {}
    for at in range(0, options.midpoints, options.batch_size):
        rows = slice(at, min(at + options.batch_size, options.midpoints))
        pixels = model.midpoints(starts[rows], ends[rows], options.seed)
        for name, extractor in networks.inceptions.items():
            features.setdefault(name, []).append(extractor(pixels))
    return {
        f"midpoint_precision_{name}": _overlap(
            np.concatenate(rows), np.concatenate(real.features[name])
        )["precision"]
        for name, rows in features.items()
        if options.midpoints > _NEIGHBOURS
    }


def _two_sample(real: Pass, generated: Images, options: EvaluationOptions) -> float:
    count = options.two_sample
    return two_sample_accuracy(
        np.concatenate(real.pixels)[:count], generated[:count], seed=options.seed
    )


def _frechet(a: Floats, b: Floats) -> float:
    statistics = [FeatureStatistics(), FeatureStatistics()]
    for each, features in zip(statistics, (a, b)):
        each.update(features)
    return frechet_distance(*statistics)


def append_result(path: str | Path, result: dict[str, Any]) -> None:
    """Append `result` to a JSON Lines file. Raises GalipEdgeError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    except OSError as error:
        raise GalipEdgeError(f"cannot write {path}: {error.strerror}") from error

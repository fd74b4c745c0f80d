"""One pass over captions, real images and one or two models, and every measure of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from galip_edge.data.aviary import NOISE_DIM, AviarySource, Caption
from galip_edge.evaluation.attributes import AttributeClassifier, agreement
from galip_edge.evaluation.clip_space import CLIPScorer, clip_score, diversity, r_precision
from galip_edge.evaluation.frechet import FeatureStatistics, frechet_distance
from galip_edge.evaluation.kernel import cmmd, squared_mmd_polynomial
from galip_edge.evaluation.manifold import manifold_metrics
from galip_edge.evaluation.models import EvaluatedModel
from galip_edge.evaluation.two_sample import two_sample_accuracy
from galip_edge.evaluation.variety import layout_diversity, mixed_share, unstated_shares
from runtime.errors import GalipEdgeError
from runtime.version import __version__

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Of the balls that precision, recall, density and coverage are measured with.
_NEIGHBOURS = 3

_INCEPTIONS = ("torchvision", "tf")


class FeatureExtractor(Protocol):
    """A network such as Inception: uint8 images (N,H,W,3) to features (N,D)."""

    def __call__(self, pixels: Images) -> Floats:
        """Features of `pixels`."""
        ...


@dataclass(frozen=True)
class EvaluationOptions:
    """How much is evaluated.

    Attributes:
        count: captions, and images generated for them (one each), and real images.
        seed: of the noise.
        batch_size: images at once; changes no result.
        diversity_captions, diversity_images: captions, and images of each, for `diversity`; 0
            captions leave it out.
        midpoints: interpolations whose middle image is measured against real images, by every
            feature extractor; 0 leaves them out.
        two_sample: real and generated images each, for a classifier two-sample test; 0 leaves it
            out.
    """

    count: int = 1000
    seed: int = 0
    batch_size: int = 16
    diversity_captions: int = 20
    diversity_images: int = 8
    midpoints: int = 0
    two_sample: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("count", 2),
            ("seed", 0),
            ("batch_size", 1),
            ("diversity_captions", 0),
            ("diversity_images", 2),
            ("midpoints", 0),
            ("two_sample", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("midpoints", "two_sample"):
            if getattr(self, name) > self.count:
                raise ValueError(
                    f"{name} must be at most count, {self.count}, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class Judges:
    """The networks that measure.

    Attributes:
        scorer: the CLIP.
        classifier: of the aviary's attributes, if the captions are of the aviary.
        inceptions: feature extractors by name of their protocol, such as `torchvision` or `tf`;
            each gives FID, KID, precision, recall, density and coverage.
    """

    scorer: CLIPScorer
    classifier: AttributeClassifier | None = None
    inceptions: dict[str, FeatureExtractor] = field(default_factory=dict)


@dataclass
class Pass:
    """What is kept of a set of images: features, and for PSNR and attributes the pixels."""

    embeddings: list[Floats] = field(default_factory=list)
    embeddings_original: list[Floats] = field(default_factory=list)
    features: dict[str, list[Floats]] = field(default_factory=dict)
    pixels: list[Images] = field(default_factory=list)

    def add(self, pixels: Images, judges: Judges, keep_pixels: bool = False) -> None:
        """Look at `pixels`."""
        self.embeddings.append(judges.scorer.images(pixels))
        self.embeddings_original.append(judges.scorer.images(pixels, "original"))
        for name, extractor in judges.inceptions.items():
            self.features.setdefault(name, []).append(extractor(pixels))
        if keep_pixels:
            self.pixels.append(pixels)


Progress = Callable[[str, int, int], None]


def evaluate(
    model: EvaluatedModel,
    captions: Sequence[str],
    judges: Judges,
    options: EvaluationOptions,
    *,
    real: Callable[[int], Images] | None = None,
    second: Callable[[int], Images] | None = None,
    aviary: AviarySource | None = None,
    reference: EvaluatedModel | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure `model`.

    Args:
        model: generates one image for each of the first `options.count` captions.
        captions: at least as many.
        judges: what to measure with.
        options: how much.
        real: real image `i` (H,W,3), for distances between real and generated sets.
        second: real image `i` of another set of the same kind; the distances that this set has
            from the first are what a perfect model reaches.
        aviary: where captions and real images come from, if they are drawn; allows attributes to
            be checked, and diversity to be compared with real images of the same captions.
        reference: a second model, mostly the same in another precision; PSNR is between the two.
        progress: told of stage, done and total.

    Returns:
        Plain values for JSON: `protocol`, `model`, and `metrics` by name.

    Raises:
        GalipEdgeError: there are fewer captions than `options.count`.
    """
    prepared = prepare(captions, judges, options, real=real, progress=progress)
    metrics, pixels = measure(
        model, prepared, judges, options, aviary=aviary, stage="model", progress=progress
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
        other = _real_pass(second, judges, options, progress, "second real set")
        result["second_real"] = _distances(other, prepared.real)
    if reference is not None:
        metrics, theirs = measure(
            reference, prepared, judges, options, aviary=aviary, stage="reference",
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
    """All that measurements of several models have in common; see `prepare`.

    Attributes:
        captions: N.
        sentences: (N,E) of length 1.
        real: what is kept of real images, if there are any.
    """

    captions: list[str]
    sentences: Floats
    real: Pass | None


def prepare(
    captions: Sequence[str],
    judges: Judges,
    options: EvaluationOptions,
    *,
    real: Callable[[int], Images] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Embed captions and real images, once for any number of models; arguments as of `evaluate`.

    Raises:
        GalipEdgeError: there are fewer captions than `options.count`.
    """
    count = options.count
    if len(captions) < count:
        raise GalipEdgeError(f"{count} captions are wanted, there are {len(captions)}: lower count")
    captions = list(captions[:count])
    return Prepared(
        captions,
        judges.scorer.sentences(captions),
        _real_pass(real, judges, options, progress) if real else None,
    )


def psnr(images: Images, reference: Images) -> dict[str, float]:
    """PSNR in dB of uint8 images (N,H,W,3): pooled over all, mean of images, 5 % and worst.

    Raises GalipEdgeError if the two models have different image sizes.
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
    judges: Judges,
    options: EvaluationOptions,
    progress: Progress,
    stage: str = "real images",
) -> Pass:
    kept = Pass()
    for at in range(0, options.count, options.batch_size):
        rows = range(at, min(at + options.batch_size, options.count))
        keep = rows.start < options.two_sample
        kept.add(np.stack([real(i) for i in rows]), judges, keep)
        progress(stage, rows.stop, options.count)
    return kept


def measure(
    model: EvaluatedModel,
    prepared: Prepared,
    judges: Judges,
    options: EvaluationOptions,
    *,
    aviary: AviarySource | None = None,
    stage: str = "model",
    progress: Progress = lambda stage, done, total: None,
) -> tuple[dict[str, Any], Images]:
    """Every figure of `model` by name, and its images (N,H,W,3); arguments as of `evaluate`."""
    kept, captions, sentences = Pass(), prepared.captions, prepared.sentences
    for at in range(0, options.count, options.batch_size):
        prompts = captions[at : at + options.batch_size]
        kept.add(model.images(prompts, [0] * len(prompts), options.seed), judges, True)
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
            metrics |= _midpoints(model, prepared, prepared.real, judges, options)
        if options.two_sample:
            metrics["two_sample_accuracy"] = _two_sample(prepared.real, pixels, options)
    if judges.classifier is not None and aviary is not None:
        metrics["attributes"] = _attributes(judges.classifier, pixels, captions, aviary)
        described = [aviary.described(i)[0] for i in range(len(captions))]
        found = judges.classifier.predict(pixels)
        metrics["mixed"] = mixed_share(found)
        metrics["unstated"] = unstated_shares(found, described)
    if options.diversity_captions:
        metrics |= _diversity(model, captions, judges, options, aviary)
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
        # Inception's distances have names of their own.
        frechet, kernel = ("fid", "kid") if name in _INCEPTIONS else ("fd", "kd")
        metrics[f"{frechet}_{name}"] = _frechet(ours, theirs)
        metrics[f"{kernel}_{name}"] = squared_mmd_polynomial(ours, theirs)
        metrics |= {f"{key}_{name}": value for key, value in _overlap(ours, theirs).items()}
        if len(ours) < ours.shape[1]:
            metrics[f"{frechet}_{name}_warning"] = (
                f"{len(ours)} images for {ours.shape[1]} features: too few, the figure is biased"
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
    judges: Judges,
    options: EvaluationOptions,
) -> dict[str, float]:
    """Precision of the images in the middle between two captions."""
    starts, ends = prepared.captions, [*prepared.captions[1:], prepared.captions[0]]
    features: dict[str, list[Floats]] = {}
    for at in range(0, options.midpoints, options.batch_size):
        rows = slice(at, min(at + options.batch_size, options.midpoints))
        pixels = model.midpoints(starts[rows], ends[rows], options.seed)
        for name, extractor in judges.inceptions.items():
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


def _attributes(
    classifier: AttributeClassifier, pixels: Images, captions: list[str], aviary: AviarySource
) -> dict[str, Any]:
    described: list[Caption] = [aviary.described(i)[0] for i in range(len(captions))]
    if [caption.text for caption in described] != captions:
        raise GalipEdgeError("attributes can only be checked for the aviary's own captions")
    labels = [aviary.scene(i).labels() for i in range(len(captions))]
    found = agreement(classifier, pixels, labels, described)
    return {name: asdict(value) for name, value in found.items() if value.count}


def _diversity(
    model: EvaluatedModel,
    captions: list[str],
    judges: Judges,
    options: EvaluationOptions,
    aviary: AviarySource | None,
) -> dict[str, Any]:
    chosen, k = captions[: options.diversity_captions], options.diversity_images
    groups = [model.images([c] * k, range(k), options.seed) for c in chosen]
    embedding, rms = diversity(groups, judges.scorer)
    metrics: dict[str, Any] = {"diversity_clip": embedding, "diversity_pixels": rms}
    if aviary is not None:
        rng, size = np.random.default_rng(options.seed), groups[0].shape[1]
        real_groups = []
        for i in range(len(chosen)):
            noises = rng.standard_normal((k, NOISE_DIM), dtype=np.float32)
            drawn = [aviary.another(i, noise, size)[1] for noise in noises]
            real_groups.append(np.stack([np.asarray(image) for image in drawn]))
        embedding, rms = diversity(real_groups, judges.scorer)
        metrics |= {"diversity_clip_real": embedding, "diversity_pixels_real": rms}
        if judges.classifier is not None and judges.classifier.config.layout:
            described = [aviary.described(i)[0] for i in range(len(chosen))]
            for suffix, images in (("", groups), ("_real", real_groups)):
                found = [judges.classifier.predict(pixels) for pixels in images]
                metrics[f"diversity_layout{suffix}"] = layout_diversity(found, described)
    return metrics


def append_result(path: str | Path, result: dict[str, Any]) -> None:
    """Add `result` to a file of JSON lines. Raises GalipEdgeError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    except OSError as error:
        raise GalipEdgeError(f"cannot write {path}: {error.strerror}") from error

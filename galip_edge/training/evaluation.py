"""Evaluation during training: metrics of the averaged generator on held-out images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galip_edge import extensions
from galip_edge.data import CaptionedImages, DataConfig, DataError, build_dataset
from galip_edge.data.records import Source
from galip_edge.errors import ConfigError
from galip_edge.evaluation.clip_space import CLIPScorer
from galip_edge.evaluation.efficientnet import EfficientNetFeatures
from galip_edge.evaluation.evaluate import (
    EvaluationOptions,
    FeatureExtractor,
    MetricModels,
    Prepared,
    measure,
    prepare,
)
from galip_edge.evaluation.models import halfway, noises, to_pixels
from galip_edge.training.config import TrainConfig
from galip_edge.training.text_cache import SentenceEncoder
from galip_edge.training.trainer import Trainer
from runtime.arrays import Floats, Images
from runtime.errors import install_hint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Held-out images.

    Attributes:
        captions: one for each image.
        pixels: (N,H,W,3), in the size of generated images.
        source: of the images, without WebDataset shards.
    """

    captions: list[str]
    pixels: Images
    source: Source | None = None


def read_held_out(data: DataConfig, image_size: int, count: int) -> HeldOut:
    """Read the first `count` valid images of `data`, each with its first caption.

    Args:
        data: without augmentation.
        image_size: side of the images in pixels.
        count: number of images, or all if there are fewer.

    Raises:
        DataError: there are fewer than two.
    """
    data = replace(data.first(count), image_size=image_size, resize=None, augment=False)
    dataset = build_dataset(data)
    if isinstance(dataset, CaptionedImages):
        length = min(count, len(dataset))
        samples = [dataset[i] for i in range(length)]
        captions = [dataset.source.captions(sample.index)[0] for sample in samples]
        source: Source | None = dataset.source
    else:
        samples = list(islice(dataset.samples(0, 0, 1, shuffle=False), min(count, len(dataset))))
        captions, source = [sample.caption for sample in samples], None
    if len(samples) < 2:
        raise DataError(f"evaluation needs at least 2 held-out images, found {len(samples)}")
    return HeldOut(captions, to_pixels(torch.stack([s.image for s in samples])), source)


class TrainedModel:
    """The generator in training, as an `EvaluatedModel`."""

    name = "training"
    sha256 = ""

    def __init__(self, trainer: Trainer, encode: SentenceEncoder) -> None:
        self.image_size = trainer.model.config.image_size
        self._trainer = trainer
        self._encode = encode

    def images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Images:
        return to_pixels(self.float_images(prompts, indices, seed))

    def float_images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Tensor:
        noise = noises(prompts, indices, seed, self._trainer.model.config.noise_dim)
        return self._sample(noise, self._encode(prompts))

    def midpoints(self, starts: Sequence[str], ends: Sequence[str], seed: int) -> Images:
        size = self._trainer.model.config.noise_dim
        noise, sentence = halfway(
            starts, ends, seed, size, lambda prompts: self._encode(prompts).cpu().numpy()
        )
        return to_pixels(self._sample(noise, torch.from_numpy(sentence)))

    def _sample(self, noise: Floats, sentence: Tensor) -> Tensor:
        device = self._trainer.world.device
        return self._trainer.sample(torch.from_numpy(noise).to(device), sentence.to(device))


class Evaluator:
    """Evaluates a generator in training, always on the same images and with the same noise.

    Metrics depend only on the weights, so a resumed run repeats those of an uninterrupted one.

    Args:
        config: with `evaluation.interval`.
        trainer: its generator is evaluated, with average weights if there is an average.
        encode: captions to sentence embeddings.

    Raises:
        ConfigError, DataError, GalipEdgeError: held-out data or Inception weights are invalid.
    """

    def __init__(self, config: TrainConfig, trainer: Trainer, encode: SentenceEncoder) -> None:
        settings, data = config.evaluation, config.held_out_data
        if data is None:
            raise ConfigError("evaluation needs held-out data: set data.held_out")
        self.held_out = read_held_out(data, config.model.image_size, settings.count)
        count = len(self.held_out.captions)
        if count < settings.count:
            _log.warning("evaluating on all %d held-out images", count)
        self._options = EvaluationOptions(
            count,
            config.seed,
            settings.batch_size,
            min(settings.diversity_captions, count),
            settings.diversity_images,
        )
        self._model = TrainedModel(trainer, encode)
        device = trainer.world.device
        extractors = _inceptions(
            {"torchvision": settings.inception_torchvision, "tf": settings.inception_tf}, device
        )
        if settings.efficientnet:
            extractors["lite1"] = EfficientNetFeatures(device)
        scorer = CLIPScorer(trainer.model)
        self._networks = MetricModels(scorer, extractors)
        metrics = extensions.find("metrics", data.kind)
        self._extra = metrics(self.held_out.source, scorer) if metrics else None

    @cached_property
    def _prepared(self) -> Prepared:
        pixels = self.held_out.pixels
        return prepare(
            self.held_out.captions, self._networks, self._options, real=lambda i: pixels[i]
        )

    def __call__(self) -> dict[str, float]:
        """Metrics by their names in docs/evaluation.md."""
        metrics, _ = measure(
            self._model,
            self._prepared,
            self._networks,
            self._options,
            extra=self._extra,
        )
        return _numbers(metrics)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _inceptions(files: dict[str, str | None], device: torch.device) -> dict[str, FeatureExtractor]:
    given = {name: Path(file) for name, file in files.items() if file}
    if not given:
        return {}
    try:
        from galip_edge.evaluation import inception
    except ImportError as error:
        raise ConfigError(
            f"evaluation with Inception needs the package {error.name}: {install_hint('evaluate')}"
        ) from error
    kinds: dict[str, Callable[[Path, torch.device], FeatureExtractor]] = {
        "torchvision": inception.InceptionTorchvision,
        "tf": inception.InceptionTF,
    }
    return {name: kinds[name](path, device) for name, path in given.items()}

"""The initial model of a run with its CLIP, and the check that a resumed run is the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galip_edge.checkpoints.format import fill, is_ours, load_checkpoint, read_clip
from galip_edge.checkpoints.published import original_moments
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, ModelConfig
from galip_edge.training.config import TrainConfig
from runtime.errors import GalipEdgeError

_log = logging.getLogger(__name__)

Moments = dict[str, dict[str, Tensor]]


def build_model(config: TrainConfig, resuming: bool) -> tuple[GALIP, Moments]:
    """The initial model of `config`, and its optimizers' moments if there are any.

    Args:
        config: dimensions, and in `start` and `clip` the files to load.
        resuming: trained weights will be loaded afterwards, so only CLIP matters. It is loaded
            from the run's own export, so resuming needs no other file.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit `config.model`.
    """
    exported = Path(config.output) / "model.safetensors"
    if resuming and exported.exists():
        try:
            return load_checkpoint(exported).model, {}
        except CheckpointError as error:
            _log.warning("loading CLIP from its original file: %s", error)
    if config.start:
        return _started_model(config, Path(config.start))
    path = Path(config.clip) if config.clip else None
    tensors = None
    if config.clip != "random":
        tensors = read_clip(path, config.model.clip, config.clip_activation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = GALIP(config.model)
    if tensors is not None:
        fill(model.clip, model.clip.state_dict(), tensors, str(path or "OpenAI's CLIP"))
    return model, {}


def _started_model(config: TrainConfig, path: Path) -> tuple[GALIP, Moments]:
    clip = Path(config.clip) if config.clip else None
    if clip and is_ours(path):
        loaded = load_checkpoint(path)
        tensors = read_clip(clip, config.model.clip, config.clip_activation)
        fill(loaded.model.clip, loaded.model.clip.state_dict(), tensors, str(clip))
    else:
        loaded = load_checkpoint(path, clip, config.model, clip_activation=config.clip_activation)
    if differing := _differing(loaded.model.config, config.model):
        raise CheckpointError(f"{path} has another model than the configuration: {differing}")
    if not loaded.has_discriminator:
        _log.warning("%s has no discriminator: starting with an untrained one", path)
    if loaded.source != "original":
        return loaded.model, {}
    if config.model.clip_input != "original":
        _log.warning("%s was trained with model.clip_input = 'original', unlike this run", path)
    try:
        return loaded.model, original_moments(path)
    except CheckpointError as error:
        _log.warning("starting with fresh optimizers: %s", error)
        return loaded.model, {}


def _differing(ours: ModelConfig, wanted: ModelConfig) -> str:
    a, b = ours.to_dict(), wanted.to_dict()
    return ", ".join(f"{k} is {a[k]}, configured {b[k]}" for k in a if a[k] != b[k])


def run_identity(config: TrainConfig, clip_sha256: str) -> dict[str, Any]:
    """Settings that must be the same on resume, as plain values."""
    return {
        "model": config.model.to_dict(),
        "clip": clip_sha256,
        "seed": config.seed,
        "data.seed": config.data.seed,
        "batch_size": config.batch_size,
    }


def check_identity(stored: dict[str, Any], mine: dict[str, Any], output: str) -> None:
    """Raise GalipEdgeError if the run in `output` was started with other settings.

    Another batch size is allowed, with a warning: a run may continue on a larger machine.
    """
    changed = {
        name: f"{name} was {stored.get(name)}, is now {value}"
        for name, value in mine.items()
        if stored.get(name) != value
    }
    if batch_size := changed.pop("batch_size", None):
        _log.warning(
            "%s: %s, so lengths in steps mean another number of images", output, batch_size
        )
    differing = list(changed.values())
    if differing:
        raise GalipEdgeError(
            f"{output} holds another run ({'; '.join(differing)}): choose another output, or "
            "delete that folder"
        )

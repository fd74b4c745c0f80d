"""What a run starts from: the model with its CLIP, and whether it continues an earlier run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galip_edge.checkpoint import fill, is_ours, load_checkpoint, read_clip
from galip_edge.models import GALIP, ModelConfig
from galip_edge.training.config import TrainConfig
from galip_edge.training.original_state import original_moments
from runtime.errors import CheckpointError, GalipEdgeError

_log = logging.getLogger(__name__)

Moments = dict[str, dict[str, Tensor]]


def build_model(config: TrainConfig, resuming: bool) -> tuple[GALIP, Moments]:
    """The model that `config` starts from, and its optimizers' moments if there are any.

    Args:
        config: what to build; `start` and `clip` say from which files.
        resuming: trained weights will be put in place, so that only CLIP matters. It is then
            taken from the run's own export, so that a run needs no other file to go on.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit `config.model`.
    """
    exported = Path(config.output) / "model.safetensors"
    if resuming and exported.exists():
        try:
            return load_checkpoint(exported).model, {}
        except CheckpointError as error:
            _log.warning("taking CLIP from where it came from: %s", error)
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
        raise CheckpointError(f"{path} is of another model than the configuration: {differing}")
    if not loaded.has_discriminator:
        _log.warning("%s has no discriminator: it starts untrained", path)
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
    """What must not change while a run is interrupted, as plain values for its checkpoints."""
    return {
        "model": config.model.to_dict(),
        "clip": clip_sha256,
        "seed": config.seed,
        "data.seed": config.data.seed,
        "batch_size": config.batch_size,
    }


def check_identity(stored: dict[str, Any], mine: dict[str, Any], output: str) -> None:
    """Raises GalipEdgeError if the run in `output` was started with other settings."""
    differing = [
        f"{name} was {stored.get(name)}, is now {value}"
        for name, value in mine.items()
        if stored.get(name) != value
    ]
    if differing:
        raise GalipEdgeError(
            f"{output} holds another run ({'; '.join(differing)}): choose another output, or "
            "delete that folder"
        )

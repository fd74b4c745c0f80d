"""Errors of training and checkpoints that the command line prints as one sentence."""

from __future__ import annotations

from runtime.errors import GalipEdgeError


class CheckpointError(GalipEdgeError):
    """A checkpoint is missing, damaged, unsafe, or does not fit the model."""


class ConfigError(GalipEdgeError):
    """A configuration cannot be used; the message names the setting."""

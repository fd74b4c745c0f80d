"""Errors of a conversion."""

from runtime.errors import GalipEdgeError


class ConversionError(GalipEdgeError):
    """A conversion step failed, or its result is too far from PyTorch's."""

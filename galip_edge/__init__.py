"""GALIP in PyTorch: the model, its training and evaluation, and the command line."""

from runtime.version import __version__

__all__ = ["__version__"]

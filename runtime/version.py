"""The version of the whole toolkit; kept apart so that reading it imports nothing."""

__version__ = "0.2.0"

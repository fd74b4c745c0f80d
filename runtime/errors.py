"""Errors that a user can cause and fix."""


class GalipEdgeError(Exception):
    """Invalid input or unsuitable machine; the message is one clear sentence.

    The command line prints the message without a traceback and exits with 1.
    """


class BundleError(GalipEdgeError):
    """A bundle is missing, damaged, or of a format that this version cannot read."""


class PromptError(GalipEdgeError):
    """A prompt is invalid."""


class JobError(GalipEdgeError):
    """A batch job cannot start or continue; its output is kept."""

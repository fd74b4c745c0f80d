"""The errors that a user can cause and mend."""


class GalipEdgeError(Exception):
    """Something is wrong with the input or the machine; the message is one clear sentence.

    The command line prints the message without a traceback and exits with 1.
    """


class BundleError(GalipEdgeError):
    """A bundle is missing, damaged, or of a format that this version cannot read."""


class PromptError(GalipEdgeError):
    """A prompt cannot be used."""


class CheckpointError(GalipEdgeError):
    """A checkpoint is missing, damaged, unsafe, or does not fit the model."""


class JobError(GalipEdgeError):
    """A batch job cannot be started or go on; what it has made stays."""

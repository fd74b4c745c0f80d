"""Errors that a user can cause and fix, and how messages are printed."""

import logging
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


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


def install_hint(extra: str) -> str:
    """The command that installs an extra, for a checkout or an installed package."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install 'galip-edge[{extra}]'"
    folder = "." if Path.cwd() == CHECKOUT else str(CHECKOUT)
    return f"pip install -e '{folder}[{extra}]'"


def printable(text: str) -> str:
    """Untrusted text for a terminal: control characters as escapes."""
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def one_line(text: str) -> str:
    """A message that may quote untrusted text, for a terminal: printable, and on one line."""
    return printable(" ".join(text.splitlines()))


class _OneLine(logging.Formatter):
    """Messages on one line; tracebacks stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def log_to_stderr() -> None:
    """Print warnings and errors of the program's loggers, each on one line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])

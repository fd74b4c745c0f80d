"""Checks of the arguments of public functions: each failure is one sentence."""

from __future__ import annotations

import math
import operator
import os
from pathlib import Path

import numpy as np


def checked_integer(value: object, name: str, least: int, most: int | None = None) -> int:
    """The value as a Python integer; NumPy's are accepted, booleans and floats are not.

    Raises ValueError that names the argument, its range and the value.
    """
    whole = _as_integer(value)
    if whole is None or whole < least or (most is not None and whole > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {bounds}, got {_shown(value)}")
    return whole


def checked_share(value: object, name: str) -> float:
    """The value as a float in [0,1].

    Raises ValueError that names the argument and the value; NaN and booleans are refused.
    """
    number = None if isinstance(value, (bool, np.bool_)) else _as_float(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {_shown(value)}")
    return number


def require_integers(values: object, *names: str) -> None:
    """Raise ValueError if an attribute of `values` is not an integer."""
    for name in names:
        value = getattr(values, name)
        if _as_integer(value) is None:
            raise ValueError(f"{name} must be an integer, got {_shown(value)}")


def require_booleans(values: object, *names: str) -> None:
    """Raise ValueError if an attribute of `values` is not True or False."""
    for name in names:
        value = getattr(values, name)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {_shown(value)}")


def checked_path(value: object, name: str = "path") -> Path:
    """The value as a path. Raises ValueError if it is neither text nor a path."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, got {_shown(value)}")
    return Path(value)


def _as_integer(value: object) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _as_float(value: object) -> float | None:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

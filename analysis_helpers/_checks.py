"""Rules for data and arguments, checked once at the door; what breaks one is named with the rule and the value."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

ETA_TOLERANCE = 1e-6
"""Relative difference below which two step sizes are the same."""


class RunError(ValueError):
    """Data about a run that break a rule: names the file, the field, the rule and the value.

    Examples
    --------
    >>> print(RunError("E_256/run_01/results.json", "true.entries[0].eta", "must be positive", -1.0))
    E_256/run_01/results.json: true.entries[0].eta must be positive, got -1.0
    """

    def __init__(self, file: str, field: str, rule: str, value: object = None) -> None:
        self.file, self.field, self.rule, self.value = file, field, rule, value
        got = "" if value is None else f", got {value}"
        super().__init__(f"{file}: {field} {rule}{got}")


class RunWarning(UserWarning):
    """Something about runs that a reader of the numbers should know: what was left out, or what to doubt."""


def warn_about_runs(message: str) -> None:
    """Issue a `RunWarning` that points at the first caller outside this package."""
    package, depth = Path(__file__).parent, 1
    frame = sys._getframe(depth)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(package):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, RunWarning, stacklevel=depth + 1)


def canonical_eta(eta: float) -> float:
    """Return a step size rounded to 12 significant digits, so that 0.1 + 0.2 and 0.3 are one key.

    Examples
    --------
    >>> canonical_eta(2 * 1.6e-06 + 1e-20)
    3.2e-06
    """
    return float(f"{eta:.11e}")


def same_eta(one: float, other: float) -> bool:
    """Return whether two step sizes differ by at most a relative 1e-6."""
    return abs(one - other) <= ETA_TOLERANCE * max(abs(one), abs(other))


def frozen(values: FloatArray) -> FloatArray:
    """Return the array, made read-only."""
    values.flags.writeable = False
    return values


def checked_array(
    values: ArrayLike, name: str, source: str, *, length: int | None = None, nonnegative: bool = False
) -> FloatArray:
    """Return a read-only float64 copy of one value a sequence, or raise a `RunError` about the field ``name``."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(source, name, f"must hold numbers ({error})") from None
    if array.ndim != 1 or array.size == 0:
        raise RunError(source, name, "must hold one number a sequence", f"shape {array.shape}")
    if length is not None and len(array) != length:
        raise RunError(source, name, f"must have one value for each of the {length} sequences", f"{len(array)} values")
    bad = ~np.isfinite(array)
    if bad.any():
        raise RunError(source, name, "must be finite", _first(array, bad))
    if nonnegative and (array < 0).any():
        raise RunError(source, name, "must not be negative", _first(array, array < 0))
    return frozen(array)


def checked_prompts(values: ArrayLike, name: str, source: str, *, length: int) -> NDArray[Any]:
    """Return a read-only copy of one whole number or text a sequence, or raise a `RunError` about ``name``."""
    array = np.array(values)
    if array.dtype.kind not in "iuU" or array.shape != (length,):
        rule = f"must hold one whole number or text for each of the {length} sequences"
        raise RunError(source, name, rule, f"shape {array.shape} of {array.dtype}")
    array.flags.writeable = False
    return array


def checked_total(array: FloatArray, name: str, source: str) -> float:
    """Return the sum of nonnegative values, or raise a `RunError` where it is not positive."""
    total = float(array.sum())
    if not 0 < total < np.inf:
        raise RunError(source, name, "must sum to a positive number", total)
    return total


def checked_eta(eta: float, name: str, source: str) -> float:
    """Return the canonical step size, or raise a `RunError` where it is not finite and positive."""
    if not 0 < eta < np.inf:
        raise RunError(source, name, "must be a positive step size", eta)
    return canonical_eta(eta)


def checked_count(value: object, name: str, *, most: int | None = None, what_most: str = "") -> int:
    """Return a whole number from 1 to ``most``, or raise a `ValueError` about the argument ``name``.

    Examples
    --------
    >>> checked_count(256, "sample_size", most=2048)
    256
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(cast("SupportsIndex", value))
    except TypeError:  # not an integer
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if most is not None and count > most:
        raise ValueError(f"{name} must be at most {most}{what_most}, got {count}")
    return count


def checked_choice(value: str, name: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``, or raise a `ValueError` that lists them.

    Examples
    --------
    >>> checked_choice("ratio", "estimator", ("partial_sum", "ratio"))
    'ratio'
    """
    names = tuple(known)
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")
    return value


def _first(array: FloatArray, where: NDArray[np.bool_]) -> str:
    position = int(np.flatnonzero(where)[0])
    return f"{float(array[position])!r} at position {position}"

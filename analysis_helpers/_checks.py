"""Validation of data and arguments, once, where they enter the package.

Data that break a rule raise `RunError` (file, field, rule, value); arguments raise `ValueError` (name, rule, value).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
_Name = TypeVar("_Name", bound=str)

_ROUNDING = 1e-6  # nats: an entropy of 0 may come out as a little less, a log-probability of 0 as a little more

ETA_TOLERANCE = 1e-6
"""Relative difference up to which two step sizes count as the same."""


class FieldError(ValueError):
    """A value that breaks a rule; the message names the field or argument, the rule and the value."""

    def __init__(self, field: str, rule: str, value: object = None) -> None:
        self.field, self.rule, self.value = field, rule, value
        super().__init__(f"{field} {rule}" if value is None else f"{field} {rule}, got {value}")


class RunError(FieldError):
    """Data of a run that break a rule; the message names the file, the field, the rule and the value.

    Examples
    --------
    >>> print(RunError("E_256/run_01/results.json", "true.entries[0].eta", "must be positive", -1.0))
    E_256/run_01/results.json: true.entries[0].eta must be positive, got -1.0
    """

    def __init__(self, file: str, field: str, rule: str, value: object = None) -> None:
        super().__init__(f"{file}: {field}", rule, value)
        self.file, self.field = file, field


@contextmanager
def fields_of(source: str) -> Iterator[None]:
    """Raise a broken rule as a `RunError` that names the file, or other source, of the field."""
    try:
        yield
    except FieldError as error:
        raise RunError(source, error.field, error.rule, error.value) from None


class NotRecordedError(RunError):
    """No run records a required field; a report skips a notebook that raises this."""


class RunWarning(UserWarning):
    """A run was skipped, or its numbers need caution; the message says which run and why."""


def warn_about_runs(message: str) -> None:
    """Issue a `RunWarning` attributed to the first caller outside this package."""
    package, depth = Path(__file__).parent, 1
    frame = sys._getframe(depth)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(package):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, RunWarning, stacklevel=depth + 1)


def by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the names that have a reason, joined, and that reason; "" is no reason.

    Examples
    --------
    >>> by_reason({"run_01": "is empty", "run_02": "", "run_03": "is empty"})
    [('run_01, run_03', 'is empty')]
    """
    named: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        named.setdefault(reason, []).append(name)
    return [(", ".join(names), reason) for reason, names in named.items() if reason]


def warn_skipped(reasons: Mapping[str, str], of: str = "") -> None:
    """Issue one `RunWarning` for each reason, with the names of all runs skipped for it; "" is no reason."""
    for names, reason in by_reason(reasons):
        warn_about_runs(f"skipped {names}{of}: {reason}")


@contextmanager
def notes_on_runs() -> Iterator[list[str]]:
    """Collect the warnings about runs of this block in a list, each once; other warnings are shown as usual."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        yield notes
    for warning in caught:
        if not issubclass(warning.category, RunWarning):
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in notes:
            notes.append(str(warning.message))


def same_eta(one: float, other: float) -> bool:
    """Return whether two step sizes agree within a relative tolerance of 1e-6, or raise a `ValueError`."""
    try:
        return math.isclose(one, other, rel_tol=ETA_TOLERANCE)
    except TypeError:
        raise ValueError(f"eta must be a number such as 1.6e-06, got {one!r} and {other!r}") from None


def as_array(values: Any) -> NDArray[Any]:
    """Return an array of what holds one: a list, a pandas or pyarrow column, a tensor on any device, with its gradient.

    Examples
    --------
    >>> import pandas as pd
    >>> as_array(pd.Series(["a", "b"])).dtype.kind
    'U'
    """
    if hasattr(values, "detach"):  # a tensor; NumPy has no bfloat16
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    elif hasattr(values, "as_py"):  # a list in a column of lists
        values = values.as_py()
    array = np.asarray(values)
    return np.array(array.tolist()) if array.dtype == object and array.ndim == 1 else array


def frozen(values: FloatArray) -> FloatArray:
    """Return the array, made read-only."""
    values.flags.writeable = False
    return values


def checked_array(values: ArrayLike, name: str, *, length: int | None = None, lowest: float = -np.inf) -> FloatArray:
    """Return a read-only float64 copy with one value per sequence, or raise a `FieldError` about the field ``name``.

    ``lowest`` is 0 where no value may be negative, or a little less to allow for rounding.
    """
    try:
        array = np.array(as_array(values), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FieldError(name, f"must hold numbers ({error})") from None
    if array.ndim != 1 or array.size == 0:
        raise FieldError(name, "must hold one number per sequence", f"shape {array.shape}")
    if length not in (None, len(array)):
        raise FieldError(name, f"must have one value for each of the {length} sequences", f"{len(array)} values")
    _refuse(~np.isfinite(array), "must be finite", array, name)
    _refuse(array < lowest, "must not be negative", array, name)
    return frozen(array)


def checked_tokens(values: ArrayLike, name: str) -> FloatArray:
    """Return token counts as a read-only float64 copy, or raise a `FieldError`: whole numbers, some positive."""
    if as_array(values).dtype == bool:
        raise FieldError(name, "must be counts of tokens", "True and False")
    array = checked_array(values, name, lowest=0.0)
    _refuse(array != np.floor(array), "must be whole numbers", array, name)
    checked_total(array, name)
    return array


# Rules of a column, ``(values, name, tokens) -> column``: a read-only copy with a value for each of the sequences whose
# token counts are given, or a `FieldError`.


def checked_numbers(values: ArrayLike, name: str, tokens: FloatArray) -> FloatArray:
    """Return finite numbers."""
    return checked_array(values, name, length=len(tokens))


def checked_weights(values: ArrayLike, name: str, tokens: FloatArray) -> FloatArray:
    """Return weights: none negative, and some positive where there are tokens."""
    array = checked_array(values, name, length=len(tokens), lowest=0.0)
    checked_total(array * tokens, f"{name} (times tokens)")
    return array


def checked_entropies(values: ArrayLike, name: str, tokens: FloatArray) -> FloatArray:
    """Return entropy sums (nats): none negative, and 0 where a sequence has no tokens."""
    array = checked_array(values, name, length=len(tokens), lowest=-_ROUNDING)
    _refuse((tokens == 0) & (array != 0), "must be 0 where there are no tokens", array, name)
    return array


def checked_logp(values: ArrayLike, name: str, tokens: FloatArray) -> FloatArray:
    """Return log-probabilities (nats): none positive."""
    array = checked_array(values, name, length=len(tokens))
    _refuse(array > _ROUNDING, "must not be positive (it is a log-probability)", array, name)
    return array


def checked_prompts(values: ArrayLike, name: str, tokens: NDArray[Any]) -> NDArray[Any]:
    """Return one whole number or text per sequence."""
    array = np.array(as_array(values))
    if array.dtype.kind not in "iuU" or array.shape != tokens.shape:
        rule = f"must hold one whole number or text for each of the {len(tokens)} sequences"
        raise FieldError(name, rule, f"shape {array.shape} of {array.dtype}")
    if array.dtype.kind == "U" and not all(isinstance(value, str) for value in np.array(values, dtype=object)):
        # NumPy makes a text of each, and one prompt of 1 and "1".
        raise FieldError(name, "must hold whole numbers or texts", "both")
    return frozen(array)


def _refuse(bad: NDArray[np.bool_], rule: str, array: FloatArray, name: str) -> None:
    """Raise a `FieldError` about the first value that is bad, if there is one."""
    if bad.any():
        at = int(bad.argmax())
        raise FieldError(name, rule, f"{float(array[at])!r} at position {at}")


def checked_total(array: FloatArray, name: str) -> float:
    """Return the sum of nonnegative values, or raise a `FieldError` if it is not positive and finite."""
    total = float(array.sum())
    if not 0 < total < np.inf:
        raise FieldError(name, "must sum to a positive number", total)
    return total


def checked_number(value: float | None, name: str) -> float:
    """Return a number, or raise a `FieldError` if it is not a finite number."""
    try:
        number = float(np.float64(value))
    except (TypeError, ValueError, OverflowError):
        raise FieldError(name, "must be a number", repr(value)) from None
    if not math.isfinite(number):
        raise FieldError(name, "must be finite", number)
    return number


def checked_eta(eta: float, name: str) -> float:
    """Return a step size rounded to 12 significant digits, or raise a `FieldError` if it is not positive and finite.

    Examples
    --------
    >>> checked_eta(0.1 + 0.2, "eta")
    0.3
    """
    if not isinstance(eta, int | float | np.number) or not 0 < eta < np.inf:
        raise FieldError(name, "must be a positive step size", repr(eta))
    return float(f"{eta:.11e}")


def checked_count(value: object, name: str, *, most: int | None = None, what_most: str = "") -> int:
    """Return a whole number from 1 to ``most``, or raise a `ValueError` about the argument ``name``.

    ``what_most`` describes ``most`` in the message.

    Examples
    --------
    >>> checked_count(256, "sample_size", most=2048)
    256
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}{what_most}, got {value}")
    return int(value)


def checked_choice(value: str, name: str, known: Iterable[_Name]) -> _Name:
    """Return ``value`` if it is one of ``known``, or raise a `ValueError` that lists them.

    Examples
    --------
    >>> checked_choice("ratio", "estimator", ("partial_sum", "ratio"))
    'ratio'
    """
    for choice in known:
        if value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_goal(tolerance: float | None, probability: float, target_sd: float | None = None) -> None:
    """Raise a `ValueError` unless either a tolerance or a standard error is given, and a probability."""
    if (target_sd is None) == (tolerance is None):
        raise ValueError("give either target_sd or tolerance")
    for name, value in (("target_sd", target_sd), ("tolerance", tolerance)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < np.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not (isinstance(probability, (int, float)) and 0 < probability < 1):
        raise ValueError(f"probability must lie between 0 and 1, got {probability!r}")

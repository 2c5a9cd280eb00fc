"""Display in notebooks: readable tables, the answer in brief, and the result that a sweep collects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import pandas as pd

from .._checks import RunWarning
from .parameters import Parameters

RESULT_MIME = "application/vnd.analysis.result+json"
RESULT_DIGITS = 10  # significant digits to which stored numbers agree across processors


class ReadableTable:
    """A table of short texts, displayed in full."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def __repr__(self) -> str:
        return str(self.table.to_string(index=False))

    def to_html(self) -> str:
        """Return the table as HTML; no text is cut, whatever the pandas options."""
        with pd.option_context("display.max_colwidth", None):
            return self.table.to_html(index=False, border=0)

    _repr_html_ = to_html  # asked for by IPython


def readable(table: pd.DataFrame, digits: int = 3) -> ReadableTable:
    """Return a table with numbers as short text, to read and to compare with stored output on any machine.

    Examples
    --------
    >>> readable(pd.DataFrame({"eta": [1.6e-06], "err_rel": [0.48123]}))
        eta err_rel
    1.6e-06   0.481
    """
    exact = ("eta", "etas")
    return ReadableTable(table.apply(lambda c: c.map(lambda value: _text(value, 0 if c.name in exact else digits))))


class AnswerInBrief:
    """The answer at the top of a notebook, a placeholder until the numbers below it are computed."""

    def __init__(self) -> None:
        from IPython.display import Markdown, display  # only notebooks need it

        self._place = display(Markdown("*Run all cells: the answer is computed below.*"), display_id=True)
        self._notes: dict[str, None] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Collect the warnings about runs of this block; the answer states each of them once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RunWarning)
            yield
        for found in caught:
            if issubclass(found.category, RunWarning):
                self._notes[str(found.message)] = None
            else:
                warnings.showwarning(found.message, found.category, found.filename, found.lineno)

    def say(self, sentences: Iterable[str]) -> None:
        """Show the sentences and the collected warnings at the top, and here."""
        from IPython.display import Markdown, display

        notes = [f"**Note:** {message}." for message in self._notes]
        text = Markdown("\n".join(f"- {sentence}" for sentence in [*sentences, *notes]))
        if self._place is not None:
            self._place.update(text)
        display(text)


def show_result(notebook: str, parameters: Parameters, rows: pd.DataFrame) -> None:
    """Display a notebook's result for collection: its parameters, and a row for each estimate.

    Parameters
    ----------
    notebook
        Name of the notebook, without ending.
    parameters
        From `read_parameters`.
    rows
        The estimates; 10 significant digits are kept.
    """
    from IPython.display import display

    from analysis_helpers import __version__

    payload = {
        "notebook": notebook,
        "version": __version__,
        "parameters": {k: _stored(v) for k, v in parameters.recorded().items()},
        "rows": [{k: _stored(v) for k, v in row.items()} for row in rows.to_dict("records")],
    }
    summary = f"result for collection: {len(rows)} {'row' if len(rows) == 1 else 'rows'}"
    display({RESULT_MIME: payload, "text/plain": summary}, raw=True)


def _text(value: object, digits: int) -> str:
    """Return a value as text, floats with ``digits`` significant digits and trailing zeros (0: as few as needed)."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:#.{digits}g}".rstrip(".") if digits else f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part, digits) for part in value)
    if type(value) is not bool and isinstance(value, Integral):
        return f"{value:,}"
    return "" if value is pd.NA else str(value)


def _stored(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_stored(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{RESULT_DIGITS - 1}e}") if math.isfinite(value) else None
    return value

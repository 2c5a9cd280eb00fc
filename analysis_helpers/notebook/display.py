"""Display in notebooks: readable tables, the answer in brief, and the result that a sweep collects."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from itertools import zip_longest
from numbers import Integral
from typing import Any

import pandas as pd

from .._checks import notes_on_runs
from ..inference import counted
from .parameters import Parameters

RESULT_MIME = "application/vnd.analysis.result+json"
RESULT_DIGITS = 10  # significant digits to which stored numbers agree across processors
_NUMBER = re.compile(r"(?!.*, )([-+\d].*|unbounded)?$")  # or an interval, or nothing
_UNBROKEN = re.compile(r"\S*[-+]\d\S*( (to|±) \S+)?|\(\S+ to \S+\)")  # numbers and intervals kept on one line
_FEW_ROWS, _MOST_ROWS, _LONG_TEXT, _NO_ROWS = 2, 60, 40, "no rows"


class ReadableTable:
    """A table of short texts: numbers to the right and unbroken, words to the left.

    Of more than 60 rows, 60 are displayed, with a link to all as CSV; `whole` has them.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.whole, self.table = table, table.head(_MOST_ROWS)

    def __repr__(self) -> str:
        if self.table.empty:
            return _NO_ROWS
        more = len(self.whole) - len(self.table)
        rest = [f"... and {counted(more, 'more row')}"] if more else []
        return "\n".join([self.table.to_string(index=False), *rest])

    def to_html(self) -> str:
        """Return the table as HTML; on narrow pages, one of class ``blocks`` may be shown as one block per row."""
        if self.table.empty:
            return f"<p>{_NO_ROWS}</p>"
        names = list(self.table.columns)
        words = [not all(map(_NUMBER.match, column)) for _, column in self.table.items()]
        long = [bool(column.map(len).max() > _LONG_TEXT) for _, column in self.table.items()]
        blocks = any(long) or len(self.table) <= _FEW_ROWS
        head = _row("th", names, words)
        body = "\n".join(_row("td", row, words, long, names if blocks else ()) for row in self.table.to_numpy())
        kind = ' class="blocks"' if blocks else ""
        return f"<table{kind}>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>{self._rest()}"

    def _rest(self) -> str:
        if len(self.whole) == len(self.table):
            return ""
        address = f"data:text/csv;base64,{b64encode(self.whole.to_csv(index=False).encode()).decode()}"
        link = f'<a download="table.csv" href="{address}">all {len(self.whole):,} rows (CSV)</a>'
        return f"\n<p>{len(self.table)} rows shown; {link}</p>"

    _repr_html_ = to_html  # asked for by IPython


class Listed:
    """Sentences, given without capital and full stop, displayed as a list.

    Examples
    --------
    >>> Listed(["one run", "two runs"])
    - One run.
    - Two runs.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences] or ["Nothing."]

    def __repr__(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self.sentences)

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{_whole(sentence)}</li>' for sentence in self.sentences)}</ul>"


def readable(table: pd.DataFrame, digits: int = 3) -> ReadableTable:
    """Return a table with numbers as short text, to read and to compare with stored output on any machine.

    A column without any value is left out.

    Examples
    --------
    >>> readable(pd.DataFrame({"eta": [1.6e-06], "err_rel": [0.48123]}))
        eta err_rel
    1.6e-06   0.481
    """
    exact = ("eta", "etas")
    texts = table.apply(lambda c: c.map(lambda value: _text(value, 0 if c.name in exact else digits)))
    return ReadableTable(texts.loc[:, (texts != "").any()])


class AnswerInBrief:
    """The answer at the top of a notebook, a placeholder until the numbers below it are computed."""

    def __init__(self) -> None:
        from IPython.display import Markdown, display  # only notebooks need it

        self._place = display(Markdown("*Run all cells: the answer is computed below.*"), display_id=True)
        self._notes: list[str] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Collect the warnings about runs of this block, for the answer, and show those that are new."""
        from IPython.display import Markdown, display

        with notes_on_runs() as notes:
            yield
        if new := [note for note in notes if note not in self._notes]:
            display(Markdown("\n".join(_noted(new))))
        self._notes += new

    def say(self, sentences: Iterable[str]) -> None:
        """Show the sentences and the collected warnings at the top, and here."""
        from IPython.display import Markdown, display

        text = Markdown("\n".join([*(f"- {sentence}" for sentence in sentences), *_noted(self._notes)]))
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
        The estimates, stored with 10 significant digits.
    """
    from IPython.display import display

    from analysis_helpers import __version__

    payload = {
        "notebook": notebook,
        "version": __version__,
        "parameters": {k: _stored(v) for k, v in parameters.recorded().items()},
        "rows": [{k: _stored(v) for k, v in row.items()} for row in rows.to_dict("records")],
    }
    summary = f"result for collection: {counted(len(rows), 'row')}"
    display({RESULT_MIME: payload, "text/plain": summary}, raw=True)


def _noted(messages: Iterable[str]) -> list[str]:
    return [f"- **Note:** {message}." for message in messages]


def _row(
    tag: str, texts: Iterable[str], words: Iterable[bool], long: Iterable[bool] = (), labels: Iterable[str] = ()
) -> str:
    """Return a row of cells, words aligned to the left; names at the top may break at underscores."""
    cells = []
    for text, left, is_long, label in zip_longest(texts, words, long, labels):
        style = " style='text-align: left'" if left else ""  # in the cell: JupyterLab and GitHub keep no style sheet
        style += ' class="long"' if is_long else ""
        style += f' data-label="{escape(label)}"' if label else ""
        whole = _whole(text)
        cells.append(f"<{tag}{style}>{whole.replace('_', '_<wbr>') if tag == 'th' else whole}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def _whole(text: str) -> str:
    """Return a text as HTML in which no number and no interval is broken."""
    return _UNBROKEN.sub(r"<span style='white-space: nowrap'>\g<0></span>", escape(text))


def _text(value: Any, digits: int) -> str:
    """Return a value as text, floats with ``digits`` significant digits and trailing zeros (0: as few as needed)."""
    if isinstance(value, list | tuple):
        return ", ".join(_text(part, digits) for part in value)
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        whole = f"{value:#.{digits}g}".rstrip(".") if digits else f"{value:g}"
        return "unbounded" if math.isinf(value) else whole
    return f"{value:,}" if type(value) is not bool and isinstance(value, Integral) else str(value)


def _stored(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_stored(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{RESULT_DIGITS - 1}e}") if math.isfinite(value) else None
    return value

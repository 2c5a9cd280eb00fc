"""What a notebook needs around its numbers: checked parameters, readable tables, an answer on top, a result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from .checks import RunWarning, canonical_eta
from .estimators import ESTIMATORS
from .run_files import RESULTS_FILE

RESULT_MIME = "application/vnd.analysis.result+json"
RESULT_DIGITS = 10  # stored numbers agree across processors to this many significant digits


class ParameterError(ValueError):
    """A notebook parameter that breaks a rule; a notebook stops with its one sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # asked for by IPython
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Parameters:
    """Notebook parameters, checked and of the right types; those that a notebook does not have keep these defaults."""

    data_root: Path = Path()
    large_batch: str = ""
    small_batch: str = ""
    eta: float = math.nan
    etas: tuple[float, ...] = ()
    estimator: str = ""
    subset_size: int = 0
    num_samples: int = 0
    samples_per_eta: int = 0
    tolerance: float = math.nan
    probability: float = math.nan
    replicates: int = 0
    seed: int = 0
    record: Mapping[str, object] = field(default_factory=dict)
    """What to store with a result: the parameters that the notebook has, with the data root as it was given."""


def check_parameters(given: Mapping[str, object]) -> Parameters:
    """Return notebook parameters as the types that they mean, or stop with one sentence.

    Papermill delivers ``2e-6`` from the command line as a string and ``1e3`` as a float; both are understood. Batch
    folders must exist below the data root.

    Parameters
    ----------
    given
        Name -> value, as in the notebook's parameters cell.

    Raises
    ------
    ParameterError
        If a name is unknown or a value breaks a rule.

    Examples
    --------
    >>> checked = check_parameters({"data_root": ".", "eta": "2e-6", "subset_size": 1e3})
    >>> checked.eta, checked.subset_size
    (2e-06, 1000)
    >>> check_parameters({"data_root": ".", "subset_size": 256.5})
    Traceback (most recent call last):
        ...
    analysis_helpers.notebook.ParameterError: subset_size must be a whole number of at least 1, got 256.5
    """
    if "data_root" not in given and {"large_batch", "small_batch"} & set(given):
        raise ParameterError("data_root must be given")
    root = resolve_data_root(given["data_root"]) if "data_root" in given else Path()
    rules = _rules(root)
    unknown = next((name for name in given if name not in rules), None)
    if unknown is not None:
        raise ParameterError(f"{unknown} is not a parameter; there are {', '.join(rules)}")
    checked: dict[str, Any] = {name: rules[name](name, value) for name, value in given.items()}
    record = {**checked, "data_root": str(given["data_root"])} if "data_root" in given else checked
    return Parameters(**checked, record=record)


def check_known_parameters(given: Mapping[str, object]) -> None:
    """Check those of the parameters that `check_parameters` knows; a notebook of one's own may have others.

    Raises
    ------
    ParameterError
        If a value breaks a rule.
    """
    known = _rules(Path())
    check_parameters({name: value for name, value in given.items() if name in known})


def _rules(root: Path) -> dict[str, Callable[[str, object], object]]:
    """Return parameter -> what checks and converts its value."""
    return {
        "data_root": lambda name, value: root,
        "large_batch": partial(_batch_folder, root=root),
        "small_batch": partial(_batch_folder, root=root),
        "eta": _eta,
        "etas": _etas,
        "estimator": _estimator,
        "subset_size": _whole,
        "num_samples": _whole,
        "samples_per_eta": _whole,
        "tolerance": _positive,
        "probability": _probability,
        "replicates": _whole,
        "seed": partial(_whole, least=0),
    }


def resolve_data_root(data_root: object) -> Path:
    """Return the folder of a relative path: below the working folder or, if not there, below `notebooks_folder`.

    That folder is looked for in the working folder and above it, then beside the package; so the default
    ``../data_samples`` works in JupyterLab, under nbval, and under papermill from anywhere in the repository.

    Raises
    ------
    ParameterError
        If there is no such folder.
    """
    if not isinstance(data_root, (str, Path)) or not str(data_root):
        raise ParameterError(f"data_root must be the path of a folder, got {data_root!r}")
    folder = notebooks_folder()
    for base in (Path(), *([folder] if folder else [])):
        if (base / data_root).is_dir():
            return base / data_root
    raise ParameterError(
        f"data_root must be a folder that exists, got {str(data_root)!r} (working folder: {Path.cwd()})"
    )


def notebooks_folder() -> Path | None:
    """Return the folder ``notebooks`` beside the package, else in the working folder or the nearest one above it."""
    here = Path.cwd()
    places = (Path(__file__).resolve().parent.parent, here, *here.parents)
    return next((place / "notebooks" for place in places if (place / "notebooks").is_dir()), None)


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """Return a table with numbers as short text: for reading, and for comparing stored output on any machine.

    Examples
    --------
    >>> readable(pd.DataFrame({"eta": [1.6e-06], "err_rel": [0.48123]}))
          eta err_rel
      1.6e-06   0.481
    """
    shown: pd.DataFrame = table.apply(
        lambda column: column.map(lambda value: _text(value, 0 if column.name in ("eta", "etas") else digits))
    )
    shown.index = pd.Index([""] * len(shown))  # row numbers mean nothing
    return shown


class Answer:
    """The answer in brief: a place at the top of a notebook, filled in when the numbers are there.

    From here on, warnings about runs are kept and told with the answer, each once, where a reader sees them; and tables
    show texts in full.
    """

    def __init__(self) -> None:
        from IPython.display import Markdown, display  # only notebooks need it

        pd.set_option("display.max_colwidth", None)
        self._place = display(Markdown("*Run all cells: the answer is computed below.*"), display_id=True)
        self._warnings: dict[str, None] = {}
        self._show_others = warnings.showwarning
        warnings.simplefilter("always", RunWarning)
        warnings.showwarning = self._keep

    def say(self, sentences: Iterable[str]) -> None:
        """Show the sentences and the warnings so far at the top, and here."""
        from IPython.display import Markdown, display

        doubts = [f"**Note:** {message}." for message in self._warnings]
        text = Markdown("\n".join(f"- {sentence}" for sentence in [*sentences, *doubts]))
        if self._place is not None:
            self._place.update(text)
        display(text)

    def _keep(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RunWarning):
            self._warnings[str(message)] = None
        else:
            self._show_others(message, category, filename, lineno, file, line)


def show_result(notebook: str, parameters: Parameters, rows: pd.DataFrame) -> None:
    """Display a notebook's result for collection: parameters in use, and a row for each estimate.

    Parameters
    ----------
    notebook
        Name of the notebook, without ending.
    parameters
        From `check_parameters`.
    rows
        The numbers; 10 significant digits are kept.
    """
    from IPython.display import display

    from analysis_helpers import __version__

    payload = {
        "notebook": notebook,
        "version": __version__,
        "parameters": {k: _stored(v) for k, v in parameters.record.items()},
        "rows": [{k: _stored(v) for k, v in row.items()} for row in rows.to_dict("records")],
    }
    summary = f"result for collection: {len(rows)} {'row' if len(rows) == 1 else 'rows'}"
    display({RESULT_MIME: payload, "text/plain": summary}, raw=True)


def _text(value: object, digits: int) -> str:
    """Return a number with so many significant digits, trailing zeros kept; with 0, as many as it takes."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:#.{digits}g}".rstrip(".") if digits else f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(part, digits) for part in value)
    if type(value) is not bool and isinstance(value, Integral):
        return f"{value:,}"
    return "" if value is pd.NA else str(value)


def _stored(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_stored(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{RESULT_DIGITS - 1}e}") if math.isfinite(value) else None
    return value


def _batch_folder(name: str, value: object, *, root: Path) -> str:
    there = sorted({path.parent.parent.name for path in root.glob(f"*/*/{RESULTS_FILE}")})
    if not isinstance(value, str) or value not in there:
        listed = ", ".join(there) if there else "none"
        hint = "; is it a batch folder itself?" if any(root.glob(f"*/{RESULTS_FILE}")) else ""
        raise ParameterError(f"{name} must be a batch folder in {root} (there: {listed}{hint}), got {value!r}")
    return value


def _eta(name: str, value: object) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise ParameterError(f"{name} must be a positive step size, got {value!r}")
    return canonical_eta(number)


def _etas(name: str, value: object) -> tuple[float, ...]:
    parts: object = value
    if isinstance(value, str):
        parts = [part.strip() for part in value.strip("[] ").split(",")]
    elif isinstance(value, (int, float)):
        parts = [value]
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ParameterError(f"{name} must be a list of step sizes, got {value!r}")
    return tuple(_eta(name, part) for part in parts)


def _estimator(name: str, value: object) -> str:
    if value not in ESTIMATORS:
        raise ParameterError(f"{name} must be one of {', '.join(ESTIMATORS)}, got {value!r}")
    return str(value)


def _positive(name: str, value: object) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise ParameterError(f"{name} must be a positive number, got {value!r}")
    return number


def _probability(name: str, value: object) -> float:
    number = _number(value)
    if not 0 < number < 1:
        raise ParameterError(f"{name} must lie between 0 and 1, got {value!r}")
    return number


def _whole(name: str, value: object, *, least: int = 1) -> int:
    number = value if isinstance(value, int) and not isinstance(value, bool) else _number(value)
    if not (math.isfinite(number) and number == int(number) and number >= least):
        raise ParameterError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(number)


def _number(value: object) -> float:
    """Return a number given as a number or as text; NaN, which no rule accepts, for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan

"""Parameters of notebooks, each declared once with its type and its rule in words.

A new parameter is one field of `Parameters`; notebooks call `read_parameters`.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import msgspec
import pandas as pd
from msgspec import UNSET, Meta

from .._checks import RunError, RunWarning, same_eta, warn_about_runs
from ..estimators import ESTIMATORS, EstimatorName
from ..inference import explained, findings, unsound_flags
from ..runs import Runs, default_n, result_files, shared_etas, sound_batches, sound_runs

_Eta = Annotated[float, Meta(gt=0, le=1e308, description="must be a positive step size")]
_Etas = Annotated[list[_Eta], Meta(min_length=1, description="must be a list of positive step sizes")]
_Name = Annotated[str, Meta(min_length=1, description="must be a name or a path")]
_Count = Annotated[int, Meta(ge=1, description="must be a whole number of at least 1")]
_Positive = Annotated[float, Meta(gt=0, le=1e308, description="must be a positive number")]
_Probability = Annotated[float, Meta(gt=0, lt=1, description="must lie between 0 and 1")]
_Seed = Annotated[int, Meta(ge=0, description="must be a whole number of at least 0")]
_Estimator = Annotated[EstimatorName, Meta(description=f"must be one of {', '.join(map(repr, ESTIMATORS))}")]


class ParameterError(ValueError):
    """A notebook parameter that breaks a rule; the notebook stops with one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # asked for by IPython
        return [f"{type(self).__name__}: {self}"]


_ABSENT: Any = UNSET


class Parameters(msgspec.Struct, frozen=True):
    """The parameters that a notebook may have, in the order of `table`; those it lacks are ``UNSET``.

    ``sources`` says where a value comes from, if it is not the notebook's own.
    """

    data_root: _Name = _ABSENT
    large_batch: _Name = _ABSENT
    small_batch: str = _ABSENT
    model: _Name = _ABSENT
    prompts: _Name = _ABSENT
    eta: _Eta = _ABSENT
    step_sizes: _Etas = _ABSENT
    etas: _Etas = _ABSENT
    estimator: _Estimator = _ABSENT
    sequences: _Count = _ABSENT
    max_new_tokens: _Count = _ABSENT
    subset_size: _Count = _ABSENT
    num_samples: _Count = _ABSENT
    samples_per_eta: _Count = _ABSENT
    tolerance: _Positive = _ABSENT
    probability: _Probability = _ABSENT
    seed: _Seed = _ABSENT
    sources: Mapping[str, str] = {}

    @property
    def root(self) -> Path:
        """The data root as a folder that exists."""
        return resolve_data_root(self.data_root)

    def large_runs(self, needs: Sequence[str] = ()) -> Runs:
        """Return the runs of the large batch by `sound_runs`; warn about those that `run_health` finds unsound."""
        runs = self._restricted(sound_runs(self.root / self.large_batch, needs=needs))
        etas = [*([self.eta] if self.eta else []), *(self.etas or [])]
        for flag in explained(unsound_flags(findings(runs, etas))):
            warn_about_runs(f"these numbers are unreliable; fix or exclude the run: {flag}")
        return runs

    def small_runs(self, needs: Sequence[str] = ()) -> Runs:
        """Return the runs of the small batch by `sound_runs`; none if there is no such batch."""
        return self._restricted(sound_runs(self.root / self.small_batch, needs=needs)) if self.small_batch else Runs({})

    def _restricted(self, runs: Runs) -> Runs:
        """Return the runs at the step sizes that a notebook about one of them was given; by default at all."""
        given = self.eta and self.etas and "etas" not in self.sources
        return runs.restricted([*self.etas, self.eta]) if given else runs

    def recorded(self) -> dict[str, object]:
        """Return name -> value of the notebook's own parameters."""
        return {name: value for name in _TYPES if (value := getattr(self, name)) is not UNSET}

    def table(self) -> pd.DataFrame:
        """Return a row per parameter: name, value, and where it comes from if it is not the notebook's own."""
        rows = [(name, shown(value), self.sources.get(name, "")) for name, value in self.recorded().items()]
        return pd.DataFrame(rows, columns=["parameter", "value", "source"])


_TYPES = {name: kind for name, kind in get_type_hints(Parameters, include_extras=True).items() if name != "sources"}


def read_parameters(variables: Mapping[str, Any]) -> Parameters:
    """Return the notebook parameters among ``variables``, converted to their types and checked against the data.

    Papermill passes ``2e-6`` from the command line as text and ``1e3`` as a float; both are accepted. Those that are
    None are chosen from the data: the batch folders with the most and the fewest sequences per run, the step sizes
    measured on most sequences (``eta``: the smallest), and the number of sequences of the small runs.

    Parameters
    ----------
    variables
        Name -> value; in a notebook, ``globals()``. Other names are ignored.

    Raises
    ------
    ParameterError
        If a value breaks its rule, or is not in the data: one sentence with name, rule and value.

    Examples
    --------
    >>> read_parameters({"seed": "7", "num_samples": 1e3}).recorded()
    {'num_samples': 1000, 'seed': 7}
    >>> read_parameters({"num_samples": 256.5})
    Traceback (most recent call last):
        ...
    analysis_helpers.notebook.parameters.ParameterError: num_samples must be a whole number of at least 1, got 256.5
    """
    declared = {name: variables[name] for name in _TYPES if name in variables}
    left_open = [name for name in _CHOSEN if name in declared and declared[name] is None]
    values = {name: convert_parameter(name, value) for name, value in declared.items() if name not in left_open}
    root = resolve_data_root(values["data_root"]) if "data_root" in values else None
    if root is None or not set(declared) & set(_CHOSEN):
        return Parameters(**values)
    batches, unusable = _batches(root)
    choices = _choices(values, batches, unusable)
    values |= {name: choices[name][0] for name in left_open}
    if "large_batch" in values:
        _check_data(values, batches[values["large_batch"]])
    return Parameters(**values, sources={name: choices[name][1] for name in left_open})


def convert_parameter(name: str, value: object, default: object = None) -> Any:
    """Return the value of a parameter in its type, or raise a `ParameterError` if it breaks its rule.

    A parameter that is not one of `Parameters` has the type of its default, where it has one.
    """
    kind = _TYPES.get(name, Any if default is None else type(default))
    try:
        converted = msgspec.convert(_as_list(value) if kind in (_Etas, list) else value, kind, strict=False)
    except (msgspec.ValidationError, OverflowError):
        notes = getattr(kind, "__metadata__", ())
        rule = notes[0].description if notes else f"must be of type {kind.__name__}"
        raise ParameterError(f"{name} {rule}, got {value!r}") from None
    return converted.rstrip("/") if name.endswith("_batch") else converted


def shown(value: object, separator: str = ", ") -> str:
    """Return the value of a parameter as text, floats in short."""
    if isinstance(value, list | tuple):
        return separator.join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def resolve_data_root(data_root: str | Path) -> Path:
    """Return the folder of a relative path in the working folder or, if not there, in `notebooks_folder`.

    So the default ``../data_samples`` works in JupyterLab, under nbval, and under papermill from anywhere in the
    repository.

    Raises
    ------
    ParameterError
        If there is no such folder.
    """
    for base in (Path(), notebooks_folder()):
        if (place := base / Path(data_root).expanduser()).is_dir():
            return place
    raise ParameterError(
        f"data_root must be a folder that exists, got {str(data_root)!r} (working folder: {Path.cwd()})"
    )


def notebooks_folder() -> Path:
    """Return the folder ``notebooks`` in the working folder, else that of the installed package or its checkout."""
    here = Path(__file__).resolve()
    places = [place / "notebooks" for place in (Path.cwd(), here.parents[1], here.parents[2])]
    return next(filter(Path.is_dir, places), places[0])


def _as_list(value: object) -> object:
    """Return the list that a text represents, or a list of the one value."""
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it is no literal
        value = ast.literal_eval(value) if isinstance(value, str) else value
    return [value] if isinstance(value, str | int | float) else value


def assigned(source: str) -> dict[str, Any]:
    """Return name -> value of the literals that a cell assigns."""
    literals = {}
    with suppress(SyntaxError):
        for line in ast.parse(source).body:
            match line:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                    with suppress(ValueError):  # it is no literal
                        literals[name] = ast.literal_eval(value)
    return literals


# --- chosen from the data ---------------------------------------------------------------------------------------------

_CHOSEN = ("large_batch", "small_batch", "eta", "etas", "subset_size")


class _Batch(NamedTuple):
    """Summary of the usable runs of a batch folder."""

    n: int  # sequences of a run: the median
    largest: int
    etas: tuple[float, ...]
    shared_etas: list[float]  # measured on most sequences: those of all runs, if there are any
    has_common: bool  # whether all runs have these


def data_state(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of the last change of each results file of a data root.

    Raises
    ------
    RunError
        If there is none.
    """
    files = [(path.relative_to(root).as_posix(), path.stat()) for path in result_files(root, depth=2)]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in files)


@lru_cache(maxsize=8)
def data_digest(root: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    """Return a digest of the contents of the results files of a data root, listed by `data_state`."""
    content = sha256()
    for name, *_ in state:
        with (root / name).open("rb") as file:
            content.update(name.encode() + file_digest(file, "sha256").digest())
    return content.hexdigest()


def _batches(root: Path) -> tuple[dict[str, _Batch], list[str]]:
    """Return the batch folders with usable runs, and the names of those without.

    They are read again only if a file has changed.
    """
    try:
        state = data_state(root)
        batches = _usable(root, state)
    except (RunError, OSError) as error:
        raise ParameterError(f"data_root must be a folder of batch folders with runs: {error}") from None
    return batches, sorted({name.split("/")[0] for name, *_ in state} - set(batches))


@lru_cache(maxsize=8)
def _usable(root: Path, _: object) -> dict[str, _Batch]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)  # notebooks warn about the runs that they skip
        return {name: _described(runs) for name, runs in sound_batches(root).items()}


def _described(runs: Runs) -> _Batch:
    largest, shared = max(run.n for run in runs.values()), runs.shared_etas
    return _Batch(runs.median_n, largest, runs.etas, shared, all(run.has_eta(shared[0]) for run in runs.values()))


def _choices(
    values: Mapping[str, Any], batches: Mapping[str, _Batch], unusable: Iterable[str]
) -> dict[str, tuple[Any, str]]:
    """Return defaults that fit the data and the given values: name -> value and its source."""
    sizes = {name: batch.n for name, batch in batches.items()}
    large, small = _large_and_small(values, sizes)
    shared = shared_etas(batches[large].shared_etas, batches[small].shared_etas if small else [])
    etas = values.get("etas") or shared
    source_of_n = f"that of {small}" if small else f"an eighth of {large}"
    which = "that the runs share" if batches[large].has_common else "measured on most sequences"
    return {
        "large_batch": (large, "; ".join(["most sequences a run", *(f"no usable run in {name}" for name in unusable)])),
        "small_batch": (small, "fewest sequences a run" if small else "none has fewer sequences"),
        "eta": (min(etas), f"smallest {'of etas' if 'etas' in values else which}"),
        "etas": (shared, f"all {which}"),
        "subset_size": (default_n(sizes[large], sizes.get(small, 0)), source_of_n),
    }


def _large_and_small(values: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, str]:
    """Return the two batches given, else those with the most and the fewest sequences per run; "": no small one."""
    for name in ("large_batch", "small_batch"):
        if values.get(name) and values[name] not in sizes:
            rule = f"must be a batch folder with usable runs (there: {', '.join(sizes)})"
            raise ParameterError(f"{name} {rule}, got {values[name]!r}")
    small = values.get("small_batch")
    others = [name for name in sizes if name != small]
    large: str = values.get("large_batch") or max(others, key=sizes.__getitem__, default=str(small))
    if small is None:
        small = min((name for name in sizes if sizes[name] < sizes[large]), key=sizes.__getitem__, default="")
    if small == large:
        raise ParameterError(f"small_batch must differ from large_batch, got {small!r} for both")
    return large, small


def _check_data(values: Mapping[str, Any], batch: _Batch) -> None:
    """Raise a `ParameterError` if a step size was not measured or subsets are larger than a run of the large batch."""
    for eta in (*values.get("etas", ()), values.get("eta", batch.etas[0])):
        if not any(same_eta(eta, measured) for measured in batch.etas):
            rule = f"must be a step size of {values['large_batch']} (there: {shown(batch.etas)})"
            raise ParameterError(f"eta {rule}, got {eta:g}")
    if {"num_samples", "samples_per_eta"} & set(values) and values.get("subset_size", 0) > batch.largest:
        rule = f"must be at most {batch.largest:,}, the sequences of the largest run of {values['large_batch']}"
        raise ParameterError(f"subset_size {rule}, got {values['subset_size']:,}")

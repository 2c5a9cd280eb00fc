"""Parameters of notebooks, each declared once with its type and its rule in words.

A new parameter is one field of `Parameters`; notebooks call `read_parameters`.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from statistics import median_low
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
import pandas as pd
from msgspec import Meta

from .._checks import RunError, RunWarning, same_eta, warn_about_runs
from ..estimators import ESTIMATORS, EstimatorName
from ..inference import explained, flags_at, run_health, unsound_flags
from ..runs import Runs, result_files, sound_batches, sound_runs

_Eta = Annotated[float, Meta(gt=0, le=1e308, description="must be a positive step size")]
_Etas = Annotated[list[_Eta], Meta(min_length=1, description="must be a list of positive step sizes")]
_Model = Annotated[str, Meta(min_length=1, description="must be a name or a path")]
_Count = Annotated[int, Meta(ge=1, description="must be a whole number of at least 1")]
_Folder = Annotated[str, Meta(min_length=1, description="must be the name of a folder")]
_Positive = Annotated[float, Meta(gt=0, le=1e308, description="must be a positive number")]
_Probability = Annotated[float, Meta(gt=0, lt=1, description="must lie between 0 and 1")]
_Estimator = Annotated[EstimatorName, Meta(description=f"must be one of {', '.join(map(repr, ESTIMATORS))}")]


class ParameterError(ValueError):
    """A notebook parameter that breaks a rule; the notebook stops with one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # asked for by IPython
        return [f"{type(self).__name__}: {self}"]


class Parameters(msgspec.Struct, frozen=True):
    """The parameters that a notebook may have; a default means that the notebook does not have it.

    ``sources`` says in a few words where a value comes from, if it is not the notebook's own.
    """

    data_root: _Folder = ""
    large_batch: _Folder = ""
    small_batch: str = ""
    model: _Model = ""
    prompts: _Model = ""
    eta: _Eta = -1.0
    step_sizes: _Etas = []
    etas: _Etas = []
    estimator: _Estimator | Literal[""] = ""
    sequences: _Count = -1
    max_new_tokens: _Count = -1
    subset_size: _Count = -1
    num_samples: _Count = -1
    samples_per_eta: _Count = -1
    tolerance: _Positive = -1.0
    probability: _Probability = -1.0
    seed: Annotated[int, Meta(ge=0, description="must be a whole number of at least 0")] = -1
    sources: Mapping[str, str] = {}

    @property
    def root(self) -> Path:
        """The data root as a folder that exists."""
        return resolve_data_root(self.data_root)

    def large_runs(self, needs: Sequence[str] = ()) -> Runs:
        """Return the runs of the large batch by `sound_runs`; warn about those that `run_health` finds unsound."""
        runs = sound_runs(self.root / self.large_batch, needs=needs)
        for flag in explained(unsound_flags(flags_at(run_health(runs), [self.eta, *self.etas]))):
            warn_about_runs(f"numbers here are not to be trusted; fix or exclude the run: {flag}")
        return runs

    def small_runs(self, needs: Sequence[str] = ()) -> Runs:
        """Return the runs of the small batch by `sound_runs`; none if there is no such batch."""
        return sound_runs(self.root / self.small_batch, needs=needs) if self.small_batch else Runs({})

    def recorded(self) -> dict[str, object]:
        """Return name -> value of the notebook's own parameters."""
        return {name: value for name, own in _DEFAULTS.items() if (value := getattr(self, name)) != own}

    def table(self) -> pd.DataFrame:
        """Return a row per parameter: name, value, and where it comes from if it is not the notebook's own."""
        values = self.recorded()
        names = {**values, **self.sources}
        rows = [(name, shown(values.get(name, "")), self.sources.get(name, "")) for name in names]
        return pd.DataFrame(rows, columns=["parameter", "value", "source"])


_DEFAULTS = {name: value for name, value in msgspec.structs.asdict(Parameters()).items() if name != "sources"}


def read_parameters(variables: Mapping[str, Any]) -> Parameters:
    """Return the notebook parameters among ``variables``, converted to their types and checked against the data.

    Papermill passes ``2e-6`` from the command line as text and ``1e3`` as a float; both are accepted. Those that are
    None are chosen from the data: the batch folders with the most and the fewest sequences a run, the step sizes
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
    >>> given = read_parameters({"seed": "7", "num_samples": 1e3})
    >>> given.seed, given.num_samples
    (7, 1000)
    >>> read_parameters({"num_samples": 256.5})
    Traceback (most recent call last):
        ...
    analysis_helpers.notebook.parameters.ParameterError: num_samples must be a whole number of at least 1, got 256.5
    """
    declared = {name: variables[name] for name in _DEFAULTS if name in variables}
    left_open = [name for name in CHOSEN if name in declared and declared[name] is None]
    values = {name: convert_parameter(name, value) for name, value in declared.items() if name not in left_open}
    sources: dict[str, str] = {}
    root = resolve_data_root(values["data_root"]) if "data_root" in values else None
    if root is not None and set(declared) & set(CHOSEN):
        batches, unusable = _batches(root)
        suited = _chosen(values, batches, unusable)
        for name in left_open:
            values[name], sources[name] = suited[name]
        if "large_batch" in values:
            _check_data(values, batches[values["large_batch"]])
    return Parameters(**values, sources=sources | _changed(variables))


def convert_parameter(name: str, value: object, default: object = None) -> Any:
    """Return the value of a parameter in its type, or raise a `ParameterError` if it breaks its rule.

    A parameter that is not one of `Parameters` has the type of its default, where it has one.
    """
    kind = _KINDS.get(name, Any if default is None else type(default))
    try:
        found = msgspec.convert(_as_list(value) if kind in (_Etas, list) else value, kind, strict=False)
    except (msgspec.ValidationError, OverflowError):
        raise ParameterError(f"{name} {_rule(kind) or f'must be of type {kind.__name__}'}, got {value!r}") from None
    return found.rstrip("/") if name.endswith("_batch") else found


def shown(value: object, separator: str = ", ") -> str:
    """Return the value of a parameter as text, floats in short."""
    if isinstance(value, list | tuple):
        return separator.join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rule(kind: Any) -> str:
    """Return the rule in words of a type, or of the first type of a union that has one."""
    notes = getattr(kind, "__metadata__", ())
    return notes[0].description if notes else next(filter(None, map(_rule, get_args(kind))), "")


_KINDS = get_type_hints(Parameters, include_extras=True)


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
    """Return the folder ``notebooks`` in the working folder, else that of the installed package or of its checkout."""
    here = Path(__file__).resolve()
    places = [place / "notebooks" for place in (Path.cwd(), here.parents[1], here.parents[2])]
    return next(filter(Path.is_dir, places), places[0])


def _as_list(value: object) -> object:
    """Return a list that is given as text, or as the one value in it."""
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it is no literal
        value = ast.literal_eval(value) if isinstance(value, str) else value
    return [value] if isinstance(value, str | int | float) else value


# --- chosen from the data ---------------------------------------------------------------------------------------------

CHOSEN = ("large_batch", "small_batch", "eta", "etas", "subset_size")
_Runs = Sequence[tuple[int, tuple[float, ...]]]  # sequences and etas of each run


def data_state(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of the last change of each results file of a data root.

    Raises
    ------
    RunError
        If there is none.
    """
    files = [(path.relative_to(root).as_posix(), path.stat()) for path in result_files(root, depth=2)]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in files)


def _batches(root: Path) -> tuple[Mapping[str, _Runs], list[str]]:
    """Return what is known of the runs of each batch folder, and the folders without a run that can be used.

    They are read again only if a file has changed.
    """
    try:
        state = data_state(root)
        batches = _described(root, state)
    except (RunError, OSError) as error:
        raise ParameterError(f"data_root must be a folder of batch folders with runs: {error}") from None
    return batches, sorted({name.split("/")[0] for name, *_ in state} - set(batches))


@lru_cache(maxsize=8)
def _described(root: Path, _: object) -> Mapping[str, _Runs]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)  # notebooks warn about the runs that they skip
        batches = sound_batches(root)
    return {name: [(run.n, run.etas) for run in runs.values()] for name, runs in batches.items()}


def _chosen(
    given: Mapping[str, Any], batches: Mapping[str, _Runs], unusable: Sequence[str]
) -> dict[str, tuple[Any, str]]:
    """Return what suits the data: name -> value and where it comes from."""
    sizes = {name: median_low(size for size, _ in runs) for name, runs in batches.items()}
    for name in ("large_batch", "small_batch"):
        if given.get(name) and given[name] not in sizes:
            there = ", ".join(sizes)
            raise ParameterError(
                f"{name} must be a batch folder with usable runs (there: {there}), got {given[name]!r}"
            )
    small = given.get("small_batch")
    others = [name for name in sizes if name != small]
    large: str = given.get("large_batch") or max(others, key=sizes.__getitem__, default=str(small))
    if small is None:
        small = min((name for name in sizes if sizes[name] < sizes[large]), key=sizes.__getitem__, default="")
    if small == large:
        raise ParameterError(f"small_batch must be another folder than large_batch, got {small!r} for both")
    etas = _shared_etas(batches[large])
    both = [eta for eta in etas if small and any(same_eta(eta, other) for other in _shared_etas(batches[small]))]
    everywhere = all(eta in etas_of_run for eta in etas for _, etas_of_run in batches[large])
    which = "that the runs share" if everywhere else "measured on most sequences"
    sequences, source = sizes[large] // 8, f"an eighth of {large}"
    if small:
        sequences, source = min(sizes[small], sizes[large]), f"that of {small}"
    return {
        "large_batch": (large, "; ".join(["most sequences a run", *(f"no usable run in {name}" for name in unusable)])),
        "small_batch": (small, "fewest sequences a run" if small else "none has fewer sequences"),
        "eta": ((both or etas)[0], f"smallest {which}"),
        "etas": (both or etas, f"all {which}"),
        "subset_size": (max(2, sequences), source),
    }


def _shared_etas(runs: _Runs) -> list[float]:
    """Return the step sizes measured on most sequences: those of all runs, if there are any."""
    counts: Counter[float] = Counter()
    for size, etas in runs:
        counts.update(dict.fromkeys(etas, size))
    return sorted(eta for eta, count in counts.items() if count == max(counts.values()))


def _check_data(values: Mapping[str, Any], runs: _Runs) -> None:
    """Raise a `ParameterError` if a step size was not measured or subsets are larger than a run."""
    large, most = values["large_batch"], max(size for size, _ in runs)
    measured = sorted({eta for _, etas in runs for eta in etas})
    for eta in (*values.get("etas", ()), values.get("eta", measured[0])):
        if not any(same_eta(eta, other) for other in measured):
            there = ", ".join(f"{other:g}" for other in measured)
            raise ParameterError(f"eta must be a step size of {large} (there: {there}), got {eta:g}")
    if {"num_samples", "samples_per_eta"} & set(values) and values.get("subset_size", 0) > most:
        rule = f"must be at most {most:,}, the sequences of the largest run of {large}"
        raise ParameterError(f"subset_size {rule}, got {values['subset_size']:,}")


# --- set by papermill -------------------------------------------------------------------------------------------------


def _changed(variables: Mapping[str, Any]) -> dict[str, str]:
    """Return what papermill set to other values than the notebook's own, and under names that the notebook has not.

    Papermill only warns of those. IPython keeps the source of each cell in ``In``.
    """
    cells = list(variables.get("In", ()))
    own: dict[str, Any] = next(filter(None, map(assigned, cells)), {})
    changed: dict[str, str] = {}
    for name, value in [item for cell in cells if cell.startswith("# Parameters") for item in assigned(cell).items()]:
        if name not in own:
            near = difflib.get_close_matches(name, own, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            changed[name] = f"{value!r} was given, but this notebook has no such parameter{hint}"
        elif value != own[name]:
            changed[name] = "given" if own[name] is None else f"given; default {own[name]!r}"
    return changed


def assigned(source: str) -> dict[str, Any]:
    """Return name -> value of the literals that a cell assigns."""
    found = {}
    with suppress(SyntaxError):
        for line in ast.parse(source).body:
            match line:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                    with suppress(ValueError):  # it is no literal
                        found[name] = ast.literal_eval(value)
    return found

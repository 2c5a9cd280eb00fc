"""Parameters of notebooks, each declared once with its type and its rule in words.

A new parameter is one field of `Parameters`; notebooks call `read_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from .._checks import canonical_eta
from ..estimators import ESTIMATORS, EstimatorName
from ..runs import RESULTS_FILE

_Eta = Annotated[float, Meta(gt=0, le=1e308, description="must be a positive step size")]
_Etas = Annotated[tuple[_Eta, ...], Meta(min_length=1, description="must be a list of positive step sizes")]
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
    """The parameters that a notebook may have; a default means that the notebook does not have it."""

    data_root: _Folder = ""
    large_batch: _Folder = ""
    small_batch: _Folder = ""
    model: _Model = ""
    prompts: _Model = ""
    eta: _Eta = -1.0
    step_sizes: _Etas = ()
    etas: _Etas = ()
    estimator: _Estimator | Literal[""] = ""
    sequences: _Count = -1
    max_new_tokens: _Count = -1
    subset_size: _Count = -1
    num_samples: _Count = -1
    samples_per_eta: _Count = -1
    tolerance: _Positive = -1.0
    probability: _Probability = -1.0
    replicates: _Count = -1
    seed: Annotated[int, Meta(ge=0, description="must be a whole number of at least 0")] = -1

    @property
    def root(self) -> Path:
        """The data root as a folder that exists."""
        return resolve_data_root(self.data_root)

    def recorded(self) -> dict[str, object]:
        """Return name -> value of the notebook's own parameters."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value != _DEFAULTS[name]}


_DEFAULTS = msgspec.structs.asdict(Parameters())


def read_parameters(variables: Mapping[str, object]) -> Parameters:
    """Return the notebook parameters among ``variables``, converted to their types and validated.

    Papermill passes ``2e-6`` from the command line as text and ``1e3`` as a float; both are accepted. Batch folders
    must exist below the data root.

    Parameters
    ----------
    variables
        Name -> value; in a notebook, ``globals()``. Other names are ignored.

    Raises
    ------
    ParameterError
        If a value breaks its rule: one sentence with name, rule and value.

    Examples
    --------
    >>> given = read_parameters({"data_root": ".", "eta": "2e-6", "subset_size": 1e3})
    >>> given.eta, given.subset_size
    (2e-06, 1000)
    >>> read_parameters({"subset_size": 256.5})
    Traceback (most recent call last):
        ...
    analysis_helpers.report.parameters.ParameterError: subset_size must be a whole number of at least 1, got 256.5
    """
    given = {name: convert_parameter(name, variables[name]) for name in _DEFAULTS if name in variables}
    found = Parameters(**given)
    if "data_root" in given:
        _ = found.root  # must exist
    for name in ("large_batch", "small_batch"):
        if name in given:
            _require_batch(name, str(given[name]), found.root)
    return found


def convert_parameter(name: str, value: object) -> Any:
    """Return the value of one of the `Parameters` in its type, or raise a `ParameterError` if it breaks its rule."""
    try:
        found = msgspec.convert(_as_list(value) if _KINDS[name] is _Etas else value, _KINDS[name], strict=False)
    except (msgspec.ValidationError, OverflowError):
        raise ParameterError(f"{name} {_rule(_KINDS[name])}, got {value!r}") from None
    if _KINDS[name] is _Etas:
        return tuple(map(canonical_eta, found))
    return canonical_eta(found) if name == "eta" else found


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
    for base in (Path(), *([folder] if (folder := notebooks_folder()) else [])):
        if (base / data_root).is_dir():
            return base / data_root
    raise ParameterError(
        f"data_root must be a folder that exists, got {str(data_root)!r} (working folder: {Path.cwd()})"
    )


def notebooks_folder() -> Path | None:
    """Return the folder ``notebooks`` beside the package, else in the working folder or the nearest parent."""
    here = Path.cwd()
    places = (Path(__file__).resolve().parents[2], here, *here.parents)
    return next((place / "notebooks" for place in places if (place / "notebooks").is_dir()), None)


def _as_list(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",")]
    return [value] if isinstance(value, int | float) else value


def _require_batch(name: str, batch: str, root: Path) -> None:
    there = sorted({path.parent.parent.name for path in root.glob(f"*/*/{RESULTS_FILE}")})
    if batch not in there:
        hint = "; is it a batch folder itself?" if any(root.glob(f"*/{RESULTS_FILE}")) else ""
        listed = ", ".join(there) or "none"
        raise ParameterError(f"{name} must be a batch folder in {root} (there: {listed}{hint}), got {batch!r}")

"""Interactive exploration in JupyterLab: choose folder, eta, subset size and estimator; see verdict, figure and table.

`explore` computes the results for one choice and keeps runs and draws for the next; `Explorer` puts controls over it
and needs the extra ``lab`` (ipywidgets). For fixed parameters use the functions of `analysis_helpers` directly.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import msgspec
import pandas as pd

from .._checks import RunError, warn_about_runs
from ..err_rel import (
    all_etas,
    collect_err_rel_across_runs,
    known_eta,
    reference_total,
    simulate_err_rel_across_runs,
    supported_estimators,
)
from ..inference import Verdict, required_batch_size, subset_moments, typical_standard_error, verdict
from ..plots import ESTIMATOR_LABELS, plot_exploration, png
from ..runs import Run, result_files, sound_runs
from .display import readable
from .parameters import ParameterError, Parameters, suitable_parameters

FALLBACK = "<em>The controls appear here in JupyterLab, once this cell is run.</em>"
"""Shown instead of the controls where a notebook is read without a kernel."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """Results for one choice of parameters.

    Attributes
    ----------
    given
        The parameters.
    moments
        Mean and SD of err_rel over subsets of each large run, in closed form: columns run, eta, mean, sd.
    draws
        err_rel on random subsets of the large runs: columns run, eta, err_rel.
    actual
        One row per small run that has the eta: columns run, eta, err_rel, n (its sequences).
    fresh_error
        Standard error of err_rel (the ratio) on one fresh batch of the subset's size.
    required_n
        Sequences from which the ratio of one batch is within the tolerance; None if no size is enough.
    verdict
        At the eta, for a batch of the subset's size.
    """

    given: Parameters
    moments: pd.DataFrame
    draws: pd.DataFrame
    actual: pd.DataFrame
    fresh_error: float
    required_n: int | None
    verdict: Verdict

    @property
    def mean(self) -> float:
        """Mean of err_rel over the subsets of all large runs."""
        return float(self.moments["mean"].mean())

    @property
    def sd(self) -> float:
        """SD of err_rel over the subsets of all large runs, within and between runs."""
        return math.sqrt((self.moments["sd"] ** 2).mean() + self.moments["mean"].var(ddof=0))

    def plot(self) -> Any:
        """Return the figure: histogram of the draws, closed form, actual runs, tolerance."""
        given = self.given
        name = ESTIMATOR_LABELS[given.estimator].capitalize()
        title = (
            f"{name}, eta {given.eta:g}, subsets of {given.subset_size}: {self.mean:+.2g} ± {self.sd:.2g} (mean ± SD)"
        )
        if given.estimator == "partial_sum":
            title += "\nnot comparable with actual runs"
        choice = {key: getattr(given, key) for key in ("subset_size", "num_samples", "estimator", "tolerance")}
        return plot_exploration(self.moments, self.actual, self.draws, title=title, **choice)

    def table(self) -> pd.DataFrame:
        """Return a table: columns what, closed_form, drawn (missing where not drawn), unit."""
        n, within = self.given.subset_size, f"±{self.given.tolerance:g} with probability {self.given.probability:.0%}"
        size = "no size is enough" if self.required_n is None else f"{self.required_n:,}"
        rows = [
            (f"mean err_rel over subsets of {n}", self.mean, self.draws["err_rel"].mean(), "true change"),
            (f"SD of err_rel over subsets of {n}", self.sd, self.draws["err_rel"].std(), "true change"),
            (f"standard error of the ratio on a fresh batch of {n}", self.fresh_error, math.nan, "true change"),
            (f"batch size for a ratio within {within}", size, math.nan, "sequences"),
        ]
        return pd.DataFrame(rows, columns=["what", "closed_form", "drawn", "unit"])

    def result(self) -> pd.DataFrame:
        """Return the numbers as one row, for collection."""
        answers = {name: answer.answer for name, answer in self.verdict.answers.items()}
        choice = {name: getattr(self.given, name) for name in ("eta", "subset_size", "estimator")}
        numbers = {name: getattr(self, name) for name in ("mean", "sd", "fresh_error", "required_n")}
        return pd.DataFrame([{**choice, **numbers, **answers}])


def explore(given: Parameters) -> Exploration:
    """Return the results for one choice; runs and draws are kept for the next choice.

    Parameters
    ----------
    given
        data_root, large_batch, small_batch ("", or the large one: no actual runs), eta, subset_size, estimator,
        num_samples, tolerance, probability and seed, as `read_parameters` returns them.

    Raises
    ------
    RunError
        If every run is skipped, a run lacks what the estimator needs, or runs must not be pooled.
    ValueError
        If no large run has the eta, or a value is out of range.
    """
    n, large_folder = given.subset_size, given.root / given.large_batch
    estimator: Any = given.estimator
    large = _runs(large_folder)
    eta = known_eta(large, given.eta)
    large = _having(large, eta)
    others = given.small_batch not in ("", given.large_batch)  # a run does not confirm itself
    small = _having(_runs(given.root / given.small_batch), eta) if others else {}
    reference = reference_total(large, eta)
    references = None if estimator == "partial_sum" else {eta: reference}  # None: each run's own total, as published
    limits: dict[str, Any] = {"tolerance": given.tolerance, "probability": given.probability}
    return Exploration(
        given=given,
        moments=subset_moments(large, [eta], n, estimator=estimator, references=references),
        draws=_draws(large_folder, eta, n, estimator, given.num_samples, given.seed, reference),
        actual=_actual(small, eta, reference, estimator),
        fresh_error=typical_standard_error(large, eta, n, reference=reference),
        required_n=required_batch_size(large, eta, **limits),
        verdict=verdict(large, eta, n, **limits, small_runs=small or None),
    )


@lru_cache(maxsize=16)
def _loaded(folder: Path) -> tuple[Mapping[str, Run], tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = sound_runs(folder, needs=("linear", "baseline_entropy"))
    return runs, tuple(str(warning.message) for warning in caught)


def _runs(folder: Path) -> Mapping[str, Run]:
    """Return the runs of a folder, read once; skipped runs are warned about each time."""
    runs, skipped = _loaded(folder)
    for message in skipped:
        warn_about_runs(message)
    return runs


@lru_cache(maxsize=64)
def _draws(
    folder: Path, eta: float, n: int, estimator: Any, num_samples: int, seed: int, reference: float
) -> pd.DataFrame:
    references = None if estimator == "partial_sum" else {eta: reference}
    options = {"num_samples": num_samples, "seed": seed, "estimator": estimator, "references": references}
    return simulate_err_rel_across_runs(_having(_loaded(folder)[0], eta), [eta], n, **options)


def _having(runs: Mapping[str, Run], eta: float) -> dict[str, Run]:
    return {name: run for name, run in runs.items() if run.has_eta(eta)}


def _actual(runs: Mapping[str, Run], eta: float, reference: float, estimator: Any) -> pd.DataFrame:
    if not runs:
        return pd.DataFrame(columns=["run", "eta", "err_rel", "n"]).astype({"eta": float, "err_rel": float})
    table = collect_err_rel_across_runs(runs, eta, reference, estimator=estimator)
    return table.assign(n=[runs[name].num_sequences for name in table["run"]])


class Explorer(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls of `explore`, displayed as the last line of a cell.

    Parameters
    ----------
    given
        Initial values of the controls, as for `explore`.
    """

    def __init__(self, given: Parameters) -> None:
        self._given, self._filling = given, False
        self.controls = _controls(given)
        self.controls["data_root"].observe(self._offer_batches, "value")
        self.controls["large_batch"].observe(self._offer_etas, "value")
        # Not an output widget: where a notebook is executed without a frontend, papermill waits for it for ever.
        self.answer, self.figure, self.table = widgets.HTML(), widgets.Image(format="png"), widgets.HTML()
        for part in (self.answer, self.table):
            part.add_class("jp-RenderedHTMLCommon")  # tables as in any other output
        self.figure.layout = {"max_width": "100%", "height": "auto", "align_self": "flex-start"}
        self._offer_batches()
        for control in self.controls.values():
            control.observe(self._show, "value")
        self._show()
        super().__init__([*self.controls.values(), self.answer, self.figure, self.table])
        self.add_class("entropy-explorer")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, object]:  # for IPython
        return {**super()._repr_mimebundle_(**kwargs), "text/html": FALLBACK}

    def _show(self, _: object = None) -> None:
        if self._filling:  # half of the controls belong to another folder
            return
        chosen = {name: control.value for name, control in self.controls.items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = explore(msgspec.structs.replace(self._given, **chosen))
            except (ValueError, OSError) as error:
                self.answer.value = f"<b>No answer:</b> {html.escape(str(error))}"
                self.figure.value, self.table.value = b"", ""
            else:
                self.answer.value = found.verdict._repr_html_()
                self.figure.value, self.table.value = png(found.plot()), readable(found.table()).to_html()
        notes = dict.fromkeys(html.escape(str(warning.message)) for warning in caught)
        self.answer.value += "".join(f"<p><b>Note:</b> {note}.</p>" for note in notes)

    def _offer_batches(self, change: object = None) -> None:
        """Offer the batch folders of the data root; of another one, with the values that suit its runs."""
        root = Path(self.controls["data_root"].value)
        if change is not None:
            with self._held(), suppress(ParameterError):  # a folder without runs is reported where the answer stands
                self._given = suitable_parameters(self._given, root)
                self.controls["subset_size"].value = self._given.subset_size
        found = {path.parent.parent.name for path in result_files(root, depth=2)} if root.is_dir() else set()
        batches = [(name, name) for name in sorted(found)]
        with self._held():
            self._offer("small_batch", [("none", ""), *batches])
            self._offer("large_batch", batches)
        self._offer_etas()

    def _offer_etas(self, _: object = None) -> None:
        """Offer the step sizes, estimators and subset sizes of the large batch."""
        batch, root = self.controls["large_batch"].value, Path(self.controls["data_root"].value)
        if batch is None:
            return
        with self._held(), suppress(RunError):  # a folder without usable runs is reported where the answer stands
            runs = _loaded(root / batch)[0]
            self._offer("eta", [(f"{eta:g}", eta) for eta in all_etas(runs)])
            self._offer("estimator", [(ESTIMATOR_LABELS[name], name) for name in supported_estimators(runs)])
            self.controls["subset_size"].max = min(run.num_sequences for run in runs.values())

    def _offer(self, name: str, options: Sequence[tuple[str, Any]]) -> None:
        """Set the options of a control; its value stays if it is one of them, else what suits the data."""
        control = self.controls[name]
        wanted = [control.value, getattr(self._given, name)]
        control.options = options
        offered = [value for _, value in options]
        control.value = next((value for value in wanted if value in offered), offered[-1] if offered else None)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Show nothing while half of the controls belong to another folder."""
        self._filling, before = True, self._filling
        try:
            yield
        finally:
            self._filling = before


def _controls(given: Parameters) -> dict[str, Any]:
    wide = {"layout": {"width": "100%", "max_width": "52rem"}, "style": {"description_width": "8rem"}}
    slider = {**wide, "continuous_update": False}
    return {
        "data_root": widgets.Text(str(given.root), description="data folder", **slider),
        "large_batch": widgets.Dropdown(description="large batch", **wide),
        "small_batch": widgets.Dropdown(description="actual runs", **wide),
        "eta": widgets.Dropdown(description="eta", **wide),
        "estimator": widgets.Dropdown(description="estimator", **wide),
        "subset_size": widgets.IntSlider(given.subset_size, 2, 1 << 24, description="subset size", **slider),
        "num_samples": widgets.IntSlider(given.num_samples, 100, 20_000, 100, description="draws per run", **slider),
        "tolerance": widgets.FloatSlider(
            given.tolerance, min=0.01, max=2, step=0.01, description="tolerance ±", **slider
        ),
        "probability": widgets.FloatSlider(
            given.probability, min=0.5, max=0.99, step=0.01, description="probability", **slider
        ),
    }

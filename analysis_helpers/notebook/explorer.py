"""Interactive exploration in JupyterLab: choose folder, eta, subset size and estimator; see verdict, figure and table.

`explore` computes the results for one choice; `Explorer` puts controls over it and needs the extra ``lab``
(ipywidgets). For fixed parameters use the functions of `analysis_helpers` directly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ipywidgets as widgets
import msgspec
import pandas as pd

from .._checks import notes_on_runs
from ..err_rel import Comparison
from ..estimators import EstimatorName, supported_estimators
from ..inference import (
    Verdict,
    moments_over_runs,
    required_batch_size,
    subset_moments,
    typical_standard_error,
    verdict,
)
from ..plots import plot_exploration, png
from ..published import compare_err_rel_distributions
from ..runs import Runs, result_files, sound_runs
from .display import readable
from .parameters import CHOSEN, Parameters, read_parameters

FALLBACK = "<em>The controls appear here in JupyterLab, once this cell is run.</em>"
"""Shown instead of the controls where a notebook is read without a kernel."""

_NEEDS = ("linear", "baseline_entropy")  # what a run must record to be explored


@dataclass(frozen=True, eq=False)
class Exploration:
    """Results for one choice of parameters.

    Attributes
    ----------
    given
        The parameters.
    comparison
        err_rel on random subsets of the large runs, and of the actual runs.
    moments
        Mean and SD of err_rel over subsets of each large run, in closed form: columns run, eta, mean, sd.
    mean, sd
        The same over the subsets of all large runs.
    fresh_error
        Standard error of err_rel (the ratio) on one fresh batch of the subset's size.
    required_n
        Sequences from which the ratio of one batch is within the tolerance; None if no size is enough.
    verdict
        At the eta, for a batch of the subset's size.
    """

    given: Parameters
    comparison: Comparison
    moments: pd.DataFrame
    mean: float
    sd: float
    fresh_error: float
    required_n: int | None
    verdict: Verdict

    def plot(self) -> Any:
        """Return the figure: histogram of the draws, closed form, actual runs, tolerance."""
        return plot_exploration(self.comparison, self.moments, tolerance=self.given.tolerance)

    def table(self) -> pd.DataFrame:
        """Return a table: columns what, closed_form, drawn (missing where not drawn), unit."""
        n, within = self.given.subset_size, f"±{self.given.tolerance:g} with probability {self.given.probability:.0%}"
        size = "no size is enough" if self.required_n is None else f"{self.required_n:,}"
        drawn = self.comparison.synthetic["err_rel"]
        rows = [
            (f"mean err_rel over subsets of {n}", self.mean, drawn.mean(), "true change"),
            (f"SD of err_rel over subsets of {n}", self.sd, drawn.std(), "true change"),
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


def explore(given: Parameters, large: Runs | None = None) -> Exploration:
    """Return the results for one choice.

    Parameters
    ----------
    given
        data_root, large_batch, small_batch ("", or the large one: no actual runs), eta, subset_size, estimator,
        num_samples, tolerance, probability and seed, as `read_parameters` returns them.
    large
        Runs of the large batch, if they have been read.

    Raises
    ------
    RunError
        If every run is skipped, a run lacks what the estimator needs, or runs must not be pooled.
    ValueError
        If no large run has the eta, or a value is out of range.
    """
    n, estimator = given.subset_size, cast("EstimatorName", given.estimator)
    loaded = large or given.large_runs(_NEEDS)
    eta = loaded.eta(given.eta)
    small = (
        given.small_runs(_NEEDS) if given.small_batch != given.large_batch else Runs({})
    )  # a run does not confirm itself
    large, small = (runs.where(lambda run: run.has_eta(eta)) for runs in (loaded, small))
    draws: Any = {"sample_size": n, "num_samples": given.num_samples, "seed": given.seed}
    comparison = compare_err_rel_distributions(large, small, eta, estimator=estimator, **draws)
    reference = comparison.reference_total
    references = None if estimator == "partial_sum" else {eta: reference}  # None: each run's own total, as published
    moments = subset_moments(large, [eta], n, estimator=estimator, references=references)
    mean, sd = moments_over_runs(moments)
    limits: Any = {"tolerance": given.tolerance, "probability": given.probability}
    return Exploration(
        given=given,
        comparison=comparison,
        moments=moments,
        mean=mean,
        sd=sd,
        fresh_error=typical_standard_error(large, eta, n, reference=reference),
        required_n=required_batch_size(large, eta, **limits),
        verdict=verdict(large, eta, n, **limits, small_runs=small or None),
    )


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
        # With tables as in any other output, but no output widget: where a notebook is executed without a frontend,
        # papermill waits for it for ever.
        left = {"max_width": "100%", "align_self": "flex-start"}
        self.answer, self.table = (widgets.HTML(layout=left).add_class("jp-RenderedHTMLCommon") for _ in range(2))
        self.figure = widgets.Image(layout={**left, "height": "auto"})
        super().__init__()
        self.add_class("entropy-explorer")
        self._show()
        for control in self.controls.values():
            control.observe(self._show, "value")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, object]:  # for IPython
        return {**super()._repr_mimebundle_(**kwargs), "text/html": FALLBACK}

    def _show(self, _: object = None) -> None:
        """Show the results of what is chosen, or why there are none."""
        if self._filling:  # by `_offer_what_is_there`: half of the controls belong to another folder
            return
        self._filling = True
        with notes_on_runs() as notes:
            try:
                runs = self._offer_what_is_there()
                chosen = {name: control.value for name, control in self.controls.items()}
                found = explore(msgspec.structs.replace(self._given, **chosen), runs)
            except (ValueError, OSError) as error:
                self.answer.value = f"<b>No answer:</b> {html.escape(str(error))}"
                below = [self.answer]
            else:
                self.answer.value = readable(found.verdict.table()).to_html()
                self.figure.value, self.table.value = png(found.plot()), readable(found.table()).to_html()
                below = [self.answer, self.figure, self.table]
            finally:
                self._filling = False
        self.answer.value += "".join(f"<p><b>Note:</b> {html.escape(note)}.</p>" for note in notes)
        self.children = [*self.controls.values(), *below]

    def _offer_what_is_there(self) -> Runs:
        """Offer the batch folders of the data root and what the runs of the large one have; return those runs.

        Another data root is shown with the values that suit its runs.
        """
        typed, size = self.controls["data_root"], self.controls["subset_size"]
        if typed.value != self._given.data_root:
            anew = {"data_root": typed.value, **dict.fromkeys(CHOSEN)}
            self._given = read_parameters({**self._given.recorded(), **anew})
            typed.value, size.value = self._given.data_root, self._given.subset_size
        batches = sorted({path.parent.parent.name for path in result_files(self._given.root, depth=2)})
        self._offer("large_batch", batches, str)
        large = self.controls["large_batch"].value
        others = [name for name in batches if name != large]  # a run does not confirm itself
        self._offer("small_batch", [*others, ""], lambda name: name or "none")
        runs = sound_runs(self._given.root / large, needs=_NEEDS)
        self._offer("eta", runs.etas, "{:g}".format)
        self._offer("estimator", supported_estimators(runs), lambda name: name.replace("_", " "))
        size.max = min(run.n for run in runs.values())
        return runs

    def _offer(self, name: str, values: Sequence[Any], label: Callable[[Any], str]) -> None:
        """Set the options of a control; its value stays if it is one of them, else what suits the data."""
        control = self.controls[name]
        wanted = (control.value, getattr(self._given, name), values[-1])
        control.options = [(label(value), value) for value in values]
        control.value = next(value for value in wanted if value in values)


def _controls(given: Parameters) -> dict[str, Any]:
    wide = {"layout": {"width": "100%", "max_width": "52rem"}, "style": {"description_width": "8rem"}}
    slider = {**wide, "continuous_update": False}
    share = {**slider, "step": 0.01}
    return {
        "data_root": widgets.Text(given.data_root, description="data folder", **slider),
        "large_batch": widgets.Dropdown(description="large batch", **wide),
        "small_batch": widgets.Dropdown(description="actual runs", **wide),
        "eta": widgets.Dropdown(description="eta", **wide),
        "estimator": widgets.Dropdown(description="estimator", **wide),
        "subset_size": widgets.IntSlider(given.subset_size, 2, 1 << 24, description="subset size", **slider),
        "num_samples": widgets.IntSlider(given.num_samples, 100, 20_000, 100, description="draws per run", **slider),
        "tolerance": widgets.FloatSlider(given.tolerance, min=0.01, max=2, description="tolerance ±", **share),
        "probability": widgets.FloatSlider(given.probability, min=0.5, max=0.99, description="probability", **share),
    }

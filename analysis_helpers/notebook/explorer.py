"""Interactive exploration in JupyterLab: choose batch, eta, subset size and estimator; see verdict and figure.

`explore` computes the results for one choice; `Explorer` adds controls and needs the extra ``lab`` (ipywidgets). For
fixed parameters use the functions of `analysis_helpers` directly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import msgspec
import numpy as np
import pandas as pd

from .._checks import notes_on_runs
from ..err_rel import Comparison
from ..estimators import supported_estimators
from ..inference import Verdict, answers_alone, estimator_table, moments_over_runs, subset_moments
from ..plots import plot_err_rel_comparison, png
from ..published import compare_err_rel_distributions
from ..runs import Runs, result_files, sound_runs
from .display import readable
from .parameters import Parameters, shown

FALLBACK = "<em>The controls appear here in JupyterLab, once this cell is run.</em>"
"""Shown instead of the controls if a notebook is read without a kernel."""

_ETA_CONTROLS = ("eta", "beside")
_NEEDS = ("linear", "baseline_entropy")  # what a run must record to be explored


@dataclass(frozen=True, eq=False)
class Exploration:
    """Results for one choice of parameters.

    Attributes
    ----------
    parameters
        The choice.
    comparison
        err_rel on random subsets of the large runs, and of the actual runs.
    moments
        Mean and SD of err_rel over subsets of each large run, in closed form: columns run, eta, mean, sd.
    mean, sd
        The same over the subsets of all large runs.
    fresh_error
        Standard error on one fresh batch of the subset's size, by the chosen estimator; NaN for the partial sum.
    required_n
        Sequences by which one batch estimates the error to within the tolerance; None if no size is enough.
    verdict
        The two answers at the eta, for a batch of the subset's size.
    """

    parameters: Parameters
    comparison: Comparison
    moments: pd.DataFrame
    mean: float
    sd: float
    fresh_error: float
    required_n: int | None
    verdict: Verdict

    @property
    def varies(self) -> bool:
        """Whether subsets differ: those of all sequences do not."""
        return bool((self.moments["sd"] > 0).any())

    def plot(self) -> Any:
        """Return the figure: histogram of the draws, closed form, actual runs, tolerance."""
        tolerance = self.parameters.tolerance
        return plot_err_rel_comparison(self.comparison, moments=self.moments, tolerance=tolerance).get_figure()

    def result(self) -> pd.DataFrame:
        """Return the choice, the numbers and the two answers as one row."""
        row = {name: getattr(self.parameters, name) for name in ("eta", "subset_size", "estimator")}
        row |= {name: getattr(self, name) for name in ("mean", "sd", "fresh_error", "required_n")}
        row |= {name: answer.answer for name, answer in self.verdict.answers.items()}
        return pd.DataFrame([row])

    def code(self) -> str:
        """Return the Python that makes the figure."""
        given = self.parameters
        small = repr(str(given.root / given.small_batch)) if given.small_batch else ""
        chosen = f"sample_size={given.subset_size}, num_samples={given.num_samples}, seed={given.seed}"
        references = "None" if given.estimator == "partial_sum" else "{eta: comparison.reference_total}"
        return f"""from analysis_helpers import compare_err_rel_distributions
from analysis_helpers.inference import subset_moments
from analysis_helpers.plots import plot_err_rel_comparison
from analysis_helpers.runs import sound_runs

eta, estimator, needs = {given.eta!r}, {given.estimator!r}, {list(_NEEDS)}
large = sound_runs({str(given.root / given.large_batch)!r}, needs=needs)
small = {f"sound_runs({small}, needs=needs)" if small else "{}"}
comparison = compare_err_rel_distributions(large, small, eta, estimator=estimator, {chosen})
references = {references}
moments = subset_moments(large, [eta], {given.subset_size}, estimator=estimator, references=references)
plot_err_rel_comparison(comparison, moments=moments, tolerance={given.tolerance!r})
"""


def explore(parameters: Parameters, large: Runs | None = None) -> Exploration:
    """Return the results for one choice.

    Parameters
    ----------
    parameters
        data_root, large_batch, small_batch ("": no actual runs), eta, subset_size, estimator, num_samples, tolerance,
        probability and seed, as `read_parameters` returns them.
    large
        Runs of the large batch, if they have been read.

    Raises
    ------
    RunError
        If every run is skipped, a run lacks what the estimator needs, or runs must not be pooled.
    ValueError
        If no large run has the eta, or a value is out of range.
    """
    n, estimator = parameters.subset_size, parameters.estimator
    large = large or parameters.large_runs(_NEEDS)
    eta = large.eta(parameters.eta)
    large, small = (runs.where(lambda run: run.has_eta(eta)) for runs in (large, parameters.small_runs(_NEEDS)))
    draws: Any = {"sample_size": n, "num_samples": parameters.num_samples, "seed": parameters.seed}
    comparison = compare_err_rel_distributions(large, small, eta, estimator=estimator, **draws)
    references = None if estimator == "partial_sum" else {eta: comparison.reference_total}  # None: as published
    moments = subset_moments(large, [eta], n, estimator=estimator, references=references)
    limits: Any = {"tolerance": parameters.tolerance, "probability": parameters.probability}
    table = estimator_table(large, eta, n, **limits)
    row: Any = next(
        iter(table[table["estimator"] == estimator].to_dict("records")), {"se": math.nan, "sequences": None}
    )
    required = None if pd.isna(row["sequences"]) else row["sequences"]
    answers = answers_alone(large, eta, n, **limits, small_runs=small or None)
    return Exploration(parameters, comparison, moments, *moments_over_runs(moments), row["se"], required, answers)


class Explorer(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls of `explore`, displayed as the last line of a cell.

    Parameters
    ----------
    parameters
        Initial values of the controls, as for `explore`.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters, self._filling = parameters, False
        self._batches = sorted({path.parent.parent.name for path in result_files(parameters.root, depth=2)})
        self.controls = _controls(parameters)
        # No output widget: without a frontend, papermill would wait for it forever.
        left = {"max_width": "100%", "align_self": "flex-start"}
        self.busy = widgets.HTML(layout={"min_height": "2rem"})
        self.answer = widgets.HTML(layout=left).add_class("jp-RenderedHTMLCommon")  # a table as in any other output
        self.figures = [widgets.Image(layout={**left, "height": "auto", "width": "36rem"}) for _ in _ETA_CONTROLS]
        self.code = widgets.HTML(layout=left)
        beside = widgets.HBox(self.figures, layout={"flex_flow": "row wrap"})
        self.results = widgets.VBox([self.answer, beside, self.code])
        super().__init__([*self.controls.values(), self.busy, self.results])
        self.add_class("entropy-explorer")
        self._show()
        for control in self.controls.values():
            control.observe(self._show, "value")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, object]:  # for IPython
        return {**super()._repr_mimebundle_(**kwargs), "text/html": FALLBACK}

    def _show(self, _: object = None) -> None:
        """Show the results for the choice, or why there are none; meanwhile neither these nor the old ones."""
        if self._filling:  # half of the controls still belong to the previous batch
            return
        self._filling, self.busy.value = True, "<em>Computing …</em>"
        self.results.layout.visibility = "hidden"
        with notes_on_runs() as notes:
            try:
                large = self._offer_what_is_there()
                self._fill([explore(chosen, large) for chosen in self._choices()])
            except (ValueError, OSError) as error:
                self.answer.value = f"<b>No answer:</b> {html.escape(str(error))}"
                self._draw([])
            finally:
                self._filling = False
        self.answer.value += "".join(f"<p><b>Note:</b> {html.escape(note)}.</p>" for note in notes)
        self.busy.value, self.results.layout.visibility = "", "visible"

    def _choices(self) -> list[Parameters]:
        """Return the parameters chosen, for each eta."""
        chosen = {name: control.value for name, control in self.controls.items()}
        etas = dict.fromkeys(eta for eta in map(chosen.pop, _ETA_CONTROLS) if eta)
        return [msgspec.structs.replace(self._parameters, eta=eta, **chosen) for eta in etas]

    def _fill(self, explorations: Sequence[Exploration]) -> None:
        numbers = pd.concat([each.result() for each in explorations], ignore_index=True)
        answers = [each.verdict.table() for each in explorations]
        for each, table in zip(explorations, answers, strict=True):
            table.insert(0, "eta", each.parameters.eta)
        tables = numbers.drop(columns=["linear", "recorded"]), pd.concat(answers, ignore_index=True)
        self.answer.value = "".join(readable(table).to_html() for table in tables)
        if not explorations[0].varies:
            size = explorations[0].parameters.subset_size
            self.answer.value += (
                f"<p>A subset of all {size:,} sequences is the run itself: there is nothing to draw.</p>"
            )
        self._draw([each for each in explorations if each.varies])

    def _draw(self, explorations: Sequence[Exploration]) -> None:
        """Draw the figures, on one scale, and show the code of the first."""
        drawn = [each.plot() for each in explorations]
        ends = np.array([figure.axes[0].get_xlim() for figure in drawn])
        for place, image in enumerate(self.figures):
            image.layout.display = None if place < len(drawn) else "none"
            if place < len(drawn):
                drawn[place].axes[0].set_xlim(ends[:, 0].min(), ends[:, 1].max())
                image.value = png(drawn[place])
        code = html.escape(explorations[0].code()) if explorations else ""
        self.code.value = f"<details><summary>Copy as code</summary><pre>{code}</pre></details>" if code else ""

    def _offer_what_is_there(self) -> Runs:
        """Set the options: the batch folders, and the etas and sizes of the large batch; return its runs."""
        self._offer("large_batch", self._batches)
        large = self.controls["large_batch"].value
        others = [name for name in self._batches if name != large]  # a run is not compared with itself
        self._offer("small_batch", [*others, ""])
        runs = sound_runs(self._parameters.root / large, needs=_NEEDS)
        self._offer("eta", runs.etas)
        self._offer("beside", [*runs.etas, 0.0])
        self._offer("estimator", supported_estimators(runs))
        self.controls["subset_size"].max = min(run.n for run in runs.values())
        return runs

    def _offer(self, name: str, values: Sequence[Any]) -> None:
        """Set the options of a control; its value is kept if it is one of them, else reset to the initial one."""
        control = self.controls[name]
        preferred = (control.value, getattr(self._parameters, name, None), values[-1])
        control.options = [(shown(value) if value else "none", value) for value in values]
        control.value = next(value for value in preferred if value in values)


def _controls(start: Parameters) -> dict[str, Any]:
    wide = {"layout": {"width": "100%", "max_width": "52rem"}, "style": {"description_width": "8rem"}}
    lists = {"large_batch": "large batch", "small_batch": "actual runs", "eta": "eta", "beside": "eta beside it"}
    lists["estimator"] = "estimator"
    controls: dict[str, Any] = {name: widgets.Dropdown(description=label, **wide) for name, label in lists.items()}
    for name, label, slider, least, most, step in (
        ("subset_size", "subset size", widgets.IntSlider, 2, 1 << 24, 1),
        ("num_samples", "draws per run", widgets.IntSlider, 100, 20_000, 100),
        ("tolerance", "tolerance ±", widgets.FloatSlider, 0.01, 2, 0.01),
        ("probability", "probability", widgets.FloatSlider, 0.5, 0.99, 0.01),
    ):
        ends = {"min": least, "max": most, "step": step, "value": getattr(start, name)}
        controls[name] = slider(**ends, description=label, continuous_update=False, **wide)
    seeds = {"min": 0, "max": 2**31 - 1, "value": start.seed}
    controls["seed"] = widgets.BoundedIntText(**seeds, description="seed", **wide)
    return controls

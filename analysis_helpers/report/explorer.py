"""Runs looked at by hand: one choice of folders, step size, subset size and estimator after another.

What takes long is kept: the runs of a folder, and the subsets drawn from them. What follows in closed form needs no
draws, so it is there at once.

The figure of an exploration: subsets, closed form and actual runs on one scale. A table in, a figure out.

Controls for an exploration, in JupyterLab: choose, and figure, table and verdict follow.

The closed form, the actual runs and the verdict answer at once; the histogram joins them when its subsets are drawn.
Without the extra ``lab`` (ipywidgets) this module cannot be imported; all that it shows is in
`analysis_helpers.exploration`.
"""

from __future__ import annotations

import html
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from .._checks import warn_about_runs
from ..err_rel import (
    all_etas,
    collect_err_rel_across_runs,
    known_eta,
    reference_total,
    simulate_err_rel_across_runs,
    supported_estimators,
)
from ..estimators import EstimatorName
from ..inference import (
    QUESTIONS,
    Verdict,
    normal_quantile,
    required_batch_size,
    subset_moments,
    typical_standard_error,
    verdict,
)
from ..plots import ANSWER_COLOURS, ESTIMATOR_LABELS, plot_exploration, png
from ..runs import Run, result_files, sound_runs
from .answers import describe_verdict
from .display import readable
from .parameters import Parameters

NEEDS = ("linear", "baseline_entropy")


@dataclass(frozen=True)
class Choice:
    """What to look at.

    Attributes
    ----------
    large_batch, small_batch
        Batch folders: the one that subsets are drawn from, and the one of actual runs.
    eta
        Step size.
    subset_size
        Sequences in a subset, and of the fresh batch in question.
    estimator
        "partial_sum", "ratio" or "matched".
    num_samples
        Subsets drawn from each large run.
    tolerance, probability
        Largest error to put up with, in units of the true change, and how often to keep to it.
    """

    large_batch: str
    small_batch: str
    eta: float
    subset_size: int
    estimator: EstimatorName = "ratio"
    num_samples: int = 2000
    tolerance: float = 0.25
    probability: float = 0.9

    @classmethod
    def of(cls, given: Parameters) -> Choice:
        """Return the choice that notebook parameters make."""
        return cls(**{field.name: getattr(given, field.name) for field in fields(cls)})


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """What follows from a choice without a draw.

    Attributes
    ----------
    choice
        What was asked.
    moments
        Mean and SD of err_rel over subsets of each large run: columns run, eta, mean, sd.
    actual
        A row for each small run that has the eta: columns run, eta, err_rel, n (its sequences).
    fresh_error
        Standard error of err_rel on one fresh batch: as all below by the ratio, whatever is chosen, because that is
        what an actual batch gives.
    precise_from, required_n
        Sequences from which on one batch's err_rel is within the tolerance, with the probability: of its expectation,
        and of zero; None where no size is enough.
    verdict
        Whether a batch of the subset's size is enough, and whether the linear approximation may be trusted.
    """

    choice: Choice
    moments: pd.DataFrame
    actual: pd.DataFrame
    fresh_error: float
    precise_from: int | None
    required_n: int | None
    verdict: Verdict

    @property
    def mean(self) -> float:
        """Mean of err_rel over the subsets of all large runs."""
        return float(self.moments["mean"].mean())

    @property
    def sd(self) -> float:
        """SD of err_rel over the subsets of all large runs: within runs, and between their means."""
        within, between = (self.moments["sd"] ** 2).mean(), self.moments["mean"].var(ddof=0)
        return math.sqrt(float(within + between))

    def plot(self, draws: pd.DataFrame | None = None) -> Any:
        """Return the figure, with the answers in its title; without ``draws``, of the closed form alone."""
        choice, found = self.choice, self.verdict
        name, n = ESTIMATOR_LABELS[choice.estimator].capitalize(), choice.subset_size
        compared = "\nnot comparable with actual runs" if choice.estimator == "partial_sum" else ""
        spread = f"{name}, eta {choice.eta:g}, subsets of {n}: {self.mean:+.2g} ± {self.sd:.2g} (mean ± SD){compared}"
        enough = f"{_by_ratio(choice)}Is a batch of {n} enough? {found.enough.capitalize()}."
        return plot_exploration(
            self.moments,
            self.actual,
            draws,
            subset_size=choice.subset_size,
            num_samples=choice.num_samples,
            estimator=choice.estimator,
            tolerance=choice.tolerance,
            title=f"{spread}\n{enough} {QUESTIONS['linear_trusted']} {found.linear_trusted.capitalize()}.",
        )

    def table(self, draws: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return columns what, closed_form, drawn (missing where nothing is drawn), unit."""
        choice, n = self.choice, self.choice.subset_size
        own = "own true change" if choice.estimator == "partial_sum" else "true change"
        drawn = (math.nan, math.nan) if draws is None else (draws["err_rel"].mean(), draws["err_rel"].std())
        by_ratio = "" if choice.estimator == "ratio" else ", by the ratio"
        within = f"n for ±{choice.tolerance:g} with probability {choice.probability:.0%}"
        rows = [
            (f"mean err_rel over subsets of {n}", self.mean, drawn[0], own),
            (f"SD of err_rel over subsets of {n}", self.sd, drawn[1], own),
            (f"standard error on one fresh batch of {n}{by_ratio}", self.fresh_error, math.nan, "true change"),
            (f"{within}, around its expectation{by_ratio}", _size(self.precise_from), math.nan, "sequences"),
            (f"{within}, around zero{by_ratio}", _size(self.required_n), math.nan, "sequences"),
        ]
        return pd.DataFrame(rows, columns=["what", "closed_form", "drawn", "unit"])

    def result(self) -> pd.DataFrame:
        """Return the numbers as one row, for collection."""
        answers = {"enough": self.verdict.enough, "linear_trusted": self.verdict.linear_trusted}
        choice = {name: getattr(self.choice, name) for name in ("eta", "subset_size", "estimator")}
        names = ("mean", "sd", "fresh_error", "precise_from", "required_n")
        return pd.DataFrame([{**choice, **{name: getattr(self, name) for name in names}, **answers}])


class Exploration:
    """The runs below a data root, looked at choice by choice.

    Parameters
    ----------
    data_root
        Folder of batch folders.
    seed
        Seed of the random draws.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs, write_run
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, run in synthetic_runs(2, 256).items():
    ...         write_run(f"{root}/E_256/{name}/results.json", run)
    ...     exploration = Exploration(root)
    ...     choice = exploration.nearest(Choice("E_256", "E_256", 1.5e-6, 60))
    ...     choice.eta, choice.subset_size, len(exploration.draws(choice))
    (1.6e-06, 64, 4000)
    """

    def __init__(self, data_root: Path | str, *, seed: int = 0) -> None:
        self.data_root, self.seed = Path(data_root), seed
        self.batches = sorted({path.parent.parent.name for path in result_files(data_root, depth=2)})
        self._runs: dict[str, dict[str, Run]] = {}
        self._left_out: dict[str, list[str]] = {}
        self._drawn: dict[Choice, pd.DataFrame] = {}

    def runs(self, batch: str) -> Mapping[str, Run]:
        """Return the runs of a batch folder that can be used; what is left out is warned about each time.

        Raises
        ------
        RunError
            If no run of the folder can be used.
        """
        if batch not in self._runs:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._runs[batch] = sound_runs(self.data_root / batch, needs=NEEDS)
            self._left_out[batch] = [str(warning.message) for warning in caught]
        for message in self._left_out[batch]:
            warn_about_runs(message)
        return self._runs[batch]

    def etas(self, batch: str) -> list[float]:
        """Return the step sizes on offer in a batch folder."""
        return all_etas(self.runs(batch))

    def estimators(self, batch: str) -> list[EstimatorName]:
        """Return the estimators on offer in a batch folder."""
        return supported_estimators(self.runs(batch))

    def sizes(self, batch: str) -> list[int]:
        """Return the subset sizes on offer, up to three quarters of a run: 16, 24, 32, 48, 64 and so on."""
        smallest = min(run.num_sequences for run in self.runs(batch).values())
        steps = sorted(base * 2**k for base in (2, 3) for k in range(3, smallest.bit_length()))
        return [n for n in steps if 4 * n <= 3 * smallest] or [smallest]

    def nearest(self, choice: Choice) -> Choice:
        """Return the choice moved to what its large batch has: the nearest eta and size, a supported estimator."""
        batch = choice.large_batch
        return replace(
            choice,
            eta=_nearest(choice.eta, self.etas(batch)),
            subset_size=int(_nearest(choice.subset_size, self.sizes(batch))),
            estimator=choice.estimator if choice.estimator in self.estimators(batch) else "ratio",
        )

    def closed_form(self, choice: Choice) -> ClosedForm:
        """Return what follows without a draw.

        Raises
        ------
        RunError
            If a run does not record what the estimator needs, or runs must not be pooled.
        ValueError
            If no large run has the eta, or an argument is out of range.
        """
        n, tolerance, probability = choice.subset_size, choice.tolerance, choice.probability
        eta = known_eta(self.runs(choice.large_batch), choice.eta)
        large, small = (_having(self.runs(batch), eta) for batch in (choice.large_batch, choice.small_batch))
        found = verdict(large, eta, n, tolerance=tolerance, probability=probability, small_runs=small or None)
        reference = found.numbers["reference"]
        return ClosedForm(
            choice=choice,
            moments=subset_moments(large, [eta], n, estimator=choice.estimator, references=self._references(choice)),
            actual=_actual(small, eta, reference, choice.estimator),
            fresh_error=typical_standard_error(large, eta, n, reference=reference),
            precise_from=required_batch_size(large, eta, target_sd=tolerance / normal_quantile(probability)),
            required_n=required_batch_size(large, eta, tolerance=tolerance, probability=probability),
            verdict=found,
        )

    def draws(self, choice: Choice) -> pd.DataFrame:
        """Return err_rel on random subsets of the large runs, drawn once a choice: columns run, eta, err_rel."""
        key = _drawn_for(choice)
        if key not in self._drawn:
            self._drawn[key] = simulate_err_rel_across_runs(
                self.runs(choice.large_batch),
                [choice.eta],
                choice.subset_size,
                num_samples=choice.num_samples,
                seed=self.seed,
                estimator=choice.estimator,
                references=self._references(choice),
            )
        return self._drawn[key]

    def has_drawn(self, choice: Choice) -> bool:
        """Return whether the subsets of a choice are drawn already."""
        return _drawn_for(choice) in self._drawn

    def _references(self, choice: Choice) -> dict[float, float] | None:
        """Return what err_rel is divided by; None for the partial sum: each run's own total, as published."""
        if choice.estimator == "partial_sum":
            return None
        return {choice.eta: reference_total(_having(self.runs(choice.large_batch), choice.eta), choice.eta)}


def _drawn_for(choice: Choice) -> Choice:
    """Return the choice without what draws do not depend on."""
    return replace(choice, small_batch="", tolerance=0.0, probability=0.0)


def _by_ratio(choice: Choice) -> str:
    return "" if choice.estimator == "ratio" else "By the ratio: "


def _size(n: int | None) -> str:
    return "no size is enough" if n is None else f"{n:,}"


def _having(runs: Mapping[str, Run], eta: float) -> dict[str, Run]:
    return {name: run for name, run in runs.items() if run.has_eta(eta)}


def _actual(runs: Mapping[str, Run], eta: float, reference: float, estimator: EstimatorName) -> pd.DataFrame:
    if not runs:
        return pd.DataFrame(columns=["run", "eta", "err_rel", "n"]).astype({"eta": float, "err_rel": float})
    table = collect_err_rel_across_runs(runs, eta, reference, estimator=estimator)
    return table.assign(n=[runs[name].num_sequences for name in table["run"]])


def _nearest(value: float, offered: Sequence[float]) -> float:
    """Return the one of the positive numbers offered that differs from ``value`` by the smallest factor."""
    return min(offered, key=lambda other: abs(math.log(other / value)))


FALLBACK = "<em>Here stand the controls, in JupyterLab, once this cell is run.</em>"
"""Shown instead of the controls where a notebook is read without a kernel."""

# Beside the controls where there is room, else below them; never larger than it was drawn.
_FIGURE = {
    "flex": "1 1 0",
    "min_width": "min(34rem, 100%)",
    "max_width": "858px",
    "height": "auto",
    "align_self": "flex-start",
}
_CONTROL = {"width": "100%", "max_width": "19rem"}
_DRAWS = (200, 500, 1000, 2000, 5000)
_TOLERANCES = (0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0)


class Explorer:
    """Controls over an exploration; make it the last line of a cell.

    Parameters
    ----------
    exploration
        The runs to look at.
    choice
        Where to begin.

    Attributes
    ----------
    controls
        Name of a field of `Choice` -> widget; setting its ``value`` does what moving it by hand does.
    choice
        What is shown.
    """

    def __init__(self, exploration: Exploration, choice: Choice) -> None:
        self.choice, self._exploration = choice, exploration
        self._filling, self._offered = False, ""  # the large batch whose etas and sizes are on offer
        self.controls = _controls(exploration.batches)
        self._answers, self._status, self._numbers, self._reasons = (widgets.HTML() for _ in range(4))
        self._figure = widgets.Image(format="png", layout=widgets.Layout(**_FIGURE))
        for name, control in self.controls.items():
            control.add_class(f"explore-{name.replace('_', '-')}")
            control.observe(self._changed, "value")
        self._follow(choice)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:  # for IPython
        beside = widgets.VBox([*self.controls.values(), self._status])
        above = widgets.HBox([beside, self._figure], layout=widgets.Layout(flex_flow="row wrap"))
        box = widgets.VBox([self._answers, above, self._numbers, self._reasons])
        box.add_class("entropy-explorer")
        return {**box._repr_mimebundle_(), "text/html": FALLBACK, "text/plain": "controls"}

    def _changed(self, _: object) -> None:
        if not self._filling:
            self._follow(replace(self.choice, **{name: control.value for name, control in self.controls.items()}))

    def _follow(self, wanted: Choice) -> None:
        """Show what follows from a choice; what goes wrong is told in its place, what is warned about below it."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if wanted.large_batch != self._offered:
                    wanted = self._exploration.nearest(wanted) if self._offered else wanted
                    self._fill(wanted)
                self.choice = wanted
                self._answer()
            except (ValueError, OSError) as error:
                self._tell(error)
        self._reasons.value += _list(dict.fromkeys(f"**Note:** {warning.message}." for warning in caught))

    def _answer(self) -> None:
        """Show the closed form, then draw what is not drawn yet, and show that too."""
        found, exploration = self._exploration.closed_form(self.choice), self._exploration
        self._answers.value = _answer_line(found)
        self._reasons.value = _list(describe_verdict(found.verdict))
        if not exploration.has_drawn(self.choice):
            count = f"{self.choice.num_samples:,} subsets of {self.choice.subset_size:,}"
            self._status.value = f"Drawing {count} from each large run …"
            self._show(found, None)
        self._show(found, exploration.draws(self.choice))
        self._status.value = ""

    def _show(self, found: ClosedForm, draws: pd.DataFrame | None) -> None:
        self._numbers.value = _table(found.table(draws))
        self._figure.value = png(found.plot(draws))

    def _tell(self, error: Exception) -> None:
        self._answers.value = f"<b>No answer:</b> {html.escape(str(error))}"
        self._status.value = self._numbers.value = self._reasons.value = ""
        self._figure.value = b""

    def _fill(self, choice: Choice) -> None:
        """Offer what the large batch has, and set every control to the choice."""
        exploration, batch = self._exploration, choice.large_batch
        offered: dict[str, Sequence[tuple[str, object]]] = {
            "eta": _named(sorted({*exploration.etas(batch), choice.eta})),
            "subset_size": _named(sorted({*exploration.sizes(batch), choice.subset_size})),
            "estimator": [
                (ESTIMATOR_LABELS[name], name) for name in exploration.estimators(batch) if name in ESTIMATOR_LABELS
            ],
            "num_samples": _named(sorted({*_DRAWS, choice.num_samples})),
            "tolerance": _named(sorted({*_TOLERANCES, choice.tolerance})),
        }
        self._filling = True
        try:
            for name, control in self.controls.items():
                if name in offered:
                    control.options = offered[name]
                control.value = getattr(choice, name)
            self._offered = batch
        finally:
            self._filling = False


def _controls(batches: Sequence[str]) -> dict[str, Any]:
    def slider(description: str) -> Any:
        return widgets.SelectionSlider(
            options=[0], description=description, continuous_update=False, layout=widgets.Layout(**_CONTROL)
        )

    def dropdown(description: str, options: Sequence[str] = ()) -> Any:
        return widgets.Dropdown(options=options, description=description, layout=widgets.Layout(**_CONTROL))

    return {
        "large_batch": dropdown("large batch", batches),
        "small_batch": dropdown("actual runs", batches),
        "eta": dropdown("eta"),
        "estimator": dropdown("estimator"),
        "subset_size": slider("subset size"),
        "num_samples": slider("draws a run"),
        "tolerance": slider("tolerance ±"),
    }


def _named(values: Iterable[float]) -> list[tuple[str, object]]:
    return [(f"{value:,}" if isinstance(value, int) else f"{value:g}", value) for value in values]


def _answer_line(found: ClosedForm) -> str:
    answers = {"enough": found.verdict.enough, "linear_trusted": found.verdict.linear_trusted}
    questions = {**QUESTIONS, "enough": f"Is a batch of {found.choice.subset_size:,} enough?"}
    style = "display: inline-block; line-height: 1.4; padding: .2em .6em; margin: 0 1em .3em 0; color: black"
    return _by_ratio(found.choice) + " ".join(
        f'<span style="{style}; background: {ANSWER_COLOURS[answer]}">{questions[name]} <b>{answer}</b></span>'
        for name, answer in answers.items()
    )


def _table(table: pd.DataFrame) -> str:
    shown = readable(table.rename(columns=lambda name: name.replace("_", " "))).to_html()
    return re.sub(r"<(t[dh])>", r'<\1 style="text-align: left; padding: 0 1em .3em 0; line-height: 1.4">', shown)


def _list(sentences: Iterable[str]) -> str:
    """Return sentences as an HTML list; what stands between ** is bold."""
    items = [re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(sentence)) for sentence in sentences]
    listed = "".join(f'<li style="line-height: 1.4">{item}</li>' for item in items)
    return f"<ul>{listed}</ul>" if items else ""

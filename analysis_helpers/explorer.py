"""Controls for an exploration, in JupyterLab: choose, and figure, table and verdict follow.

The closed form, the actual runs and the verdict answer at once; the histogram joins them when its subsets are drawn.
Without the extra ``lab`` (ipywidgets) this module cannot be imported; all that it shows is in
`analysis_helpers.exploration`.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import pandas as pd

from .answers import QUESTIONS
from .exploration import Choice, ClosedForm, Exploration, exploration_table
from .exploration_plots import plot_exploration
from .notebook import readable
from .plot_style import ANSWER_COLOURS, ESTIMATOR_LABELS, png
from .wording import describe_verdict

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
        self._numbers.value = _table(exploration_table(found, draws))
        self._figure.value = png(plot_exploration(found, draws))

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
    by_ratio = "" if found.choice.estimator == "ratio" else "By the ratio: "
    return by_ratio + " ".join(
        f'<span style="{style}; background: {ANSWER_COLOURS[answer]}">{questions[name]} <b>{answer}</b></span>'
        for name, answer in answers.items()
    )


def _table(table: pd.DataFrame) -> str:
    shown = readable(table.rename(columns=lambda name: name.replace("_", " "))).to_html(index=False, border=0)
    return re.sub(r"<(t[dh])>", r'<\1 style="text-align: left; padding: 0 1em .3em 0; line-height: 1.4">', shown)


def _list(sentences: Iterable[str]) -> str:
    """Return sentences as an HTML list; what stands between ** is bold."""
    items = [re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(sentence)) for sentence in sentences]
    listed = "".join(f'<li style="line-height: 1.4">{item}</li>' for item in items)
    return f"<ul>{listed}</ul>" if items else ""

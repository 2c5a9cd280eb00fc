from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch

from analysis_helpers.exploration import Choice, Exploration
from analysis_helpers.exploration_plots import plot_exploration
from analysis_helpers.plot_style import COLOURS

CHOICE = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=100)


@pytest.fixture(scope="module")
def exploration(sample_root: Path) -> Exploration:
    return Exploration(sample_root)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_subsets_join_on_the_scale_that_the_closed_form_has_set(exploration: Exploration, estimator: str) -> None:
    choice = replace(CHOICE, estimator=estimator)
    found, draws = exploration.closed_form(choice), exploration.draws(choice)
    [before], [after] = plot_exploration(found).axes, plot_exploration(found, draws).axes
    assert before.get_xlim() == after.get_xlim()
    assert not [p for p in before.patches if isinstance(p, StepPatch)]
    [bars] = [p for p in after.patches if isinstance(p, StepPatch)]
    assert bars.get_facecolor()[:3] == to_rgba(COLOURS[estimator])[:3]
    assert bars.get_data()[0].sum() == 400  # the furthest subsets stand in the outermost bins


def test_the_curve_holds_as_many_subsets_as_are_asked_for(exploration: Exploration) -> None:
    [ax] = plot_exploration(exploration.closed_form(CHOICE)).axes
    [curve] = [line for line in ax.lines if line.get_label() == "subsets, closed form"]
    x, y = np.asarray(curve.get_xydata()).T
    bin_width = (x[-1] - x[0]) / 60
    assert y.sum() * (x[1] - x[0]) / bin_width == pytest.approx(400, rel=1e-3)


def test_the_title_tells_spread_and_verdict(exploration: Exploration) -> None:
    [ax] = plot_exploration(exploration.closed_form(CHOICE)).axes
    assert ax.get_title() == (
        "Ratio, eta 1.6e-06: subsets of 256 scatter by ±0.53 about -0.098\n"
        "Is a batch of 256 enough? No. May the linear approximation be trusted? Cannot tell."
    )
    [ax] = plot_exploration(exploration.closed_form(replace(CHOICE, estimator="partial_sum"))).axes
    assert "not comparable with actual runs" in ax.get_title()


def test_actual_runs_of_another_size_are_paler_and_tell_their_size(exploration: Exploration) -> None:
    for size, label, alpha in ((256, "actual run_01: +0.23", 1.0), (64, "actual run_01 (n = 256): +0.23", 0.5)):
        [ax] = plot_exploration(exploration.closed_form(replace(CHOICE, subset_size=size))).axes
        [line] = [line for line in ax.lines if line.get_label() == label]
        assert line.get_alpha() == alpha


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_nothing_is_cut_off(exploration: Exploration, estimator: str) -> None:
    figure = plot_exploration(exploration.closed_form(replace(CHOICE, eta=3.2e-6, estimator=estimator)))
    figure.draw_without_rendering()
    title, whole = figure.axes[0].title.get_window_extent(), figure.bbox
    assert title.x0 >= 0
    assert title.x1 <= whole.x1
    assert title.y1 <= whole.y1


def test_a_tolerance_far_off_does_not_press_all_else_into_a_line(exploration: Exploration) -> None:
    found = exploration.closed_form(replace(CHOICE, estimator="matched", tolerance=1.0))
    low, high = plot_exploration(found).axes[0].get_xlim()
    assert high - low < 30 * found.sd


def test_all_sequences_at_once_have_no_curve(exploration: Exploration) -> None:
    [ax] = plot_exploration(exploration.closed_form(replace(CHOICE, subset_size=2048))).axes
    assert "subsets, closed form" not in [line.get_label() for line in ax.lines]
    low, high = ax.get_xlim()
    assert all(low < float(np.asarray(line.get_xdata())[0]) < high for line in ax.lines)

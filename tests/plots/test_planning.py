import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from analysis_helpers import Runs
from analysis_helpers.inference import budget_table, error_by_size
from analysis_helpers.plots import (
    ANSWER_COLOURS,
    plot_budget,
    plot_error_by_size,
    plot_required_sizes,
    plot_verdict_map,
)


def test_the_error_is_drawn_from_sampling_alone_and_in_all(large_runs: Runs) -> None:
    table = error_by_size(large_runs, 1.6e-6, [64, 256, 1024], tolerance=0.5)
    left, right = plot_error_by_size(table, tolerance=0.5, probability=0.9, eta=1.6e-6).axes
    assert np.array_equal(np.asarray(left.lines[0].get_ydata()), table["se"])
    [band] = [patch for patch in right.patches if "tolerance" in str(patch.get_label())]
    assert (band.get_extents().transformed(right.transData.inverted()).intervaly).tolist() == pytest.approx([-0.5, 0.5])
    assert all(f"{value:.2g}" in left.get_title() for value in table["se"].iloc[[-1, 0]])
    assert f"{table['low'].iloc[-1]:+.2f}" in right.get_title()


@pytest.mark.parametrize(
    ("rows", "texts", "markers"),
    [
        ([(1e-6, 100, 80, 130), (2e-6, None, 900, None)], ["100", "no size"], "o^"),
        ([(1e-6, None, None, None)], ["no size"], ""),
        ([(1e-6, 100, None, None)], ["100"], "o^"),  # most other pilots would find none
    ],
)
def test_required_sizes_are_marked_and_no_size_is_said(
    rows: list[tuple[float, int | None, int | None, int | None]], texts: list[str], markers: str
) -> None:
    plans = pd.DataFrame(rows, columns=["eta", "n", "low", "high"])
    plans = plans.astype(dict.fromkeys(("n", "low", "high"), "Int64"))
    [ax] = plot_required_sizes(plans, goal="Required").axes
    assert all(text in drawn.get_text().replace("\n", " ") for text, drawn in zip(texts, ax.texts, strict=True))
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{eta:g}" for eta in plans["eta"]]
    assert set(markers) <= {line.get_marker() for line in ax.lines}


def test_every_cell_of_the_map_has_the_colour_of_its_answer_and_its_size() -> None:
    answers = {"linear": ["yes", "no"], "recorded": ["cannot tell", "no"]}
    sizes = {"linear_required_n": [1234, None], "recorded_required_n": [500, 700]}
    table = pd.DataFrame({"eta": [1e-6, 2e-6], **answers, **sizes, "linear_estimator": "a", "recorded_estimator": "b"})
    [ax] = plot_verdict_map(table.astype({"linear_required_n": "Int64"})).axes
    assert [re.findall(r"\d[\d,]*\d", text.get_text()) for text in ax.texts] == [["1,234"], [], ["500"], ["700"]]
    colours = [tuple(np.asarray(cell.get_facecolor())[0]) for cell in ax.collections]
    assert colours == [to_rgba(ANSWER_COLOURS[answer]) for answer in ("yes", "no", "cannot tell", "no")]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1e-06", "2e-06"]


@pytest.mark.parametrize("count", [4, 1])
def test_the_budget_says_what_splitting_gains_also_where_tau_has_no_upper_end(large_runs: Runs, count: int) -> None:
    table = budget_table(large_runs.select(list(large_runs)[:count]), 1.6e-6)
    [ax] = plot_budget(table, sequences=2048).axes
    assert f"{1 - table['se'].iloc[-1] / table['se'].iloc[0]:.0%}" in ax.get_title()
    highest = table["se" if count == 1 else "se_high"].max()
    assert ax.get_ylim()[1] == pytest.approx(1.25 * highest)
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["1 × 2,048", "2 × 1,024"]

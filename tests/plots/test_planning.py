import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from analysis_helpers import Runs, verdict
from analysis_helpers.inference import budget_table, error_by_size, errors_by_run
from analysis_helpers.plots import (
    ANSWER_COLOURS,
    plot_budget,
    plot_error_by_size,
    plot_forest,
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
    ends = {"linear_low": [-0.05, np.nan], "linear_high": [0.02, np.nan], "recorded_low": -0.25, "recorded_high": 0.78}
    names = {"linear_estimator": "a", "recorded_estimator": "b"}
    table = pd.DataFrame({"eta": [1e-6, 2e-6], **answers, **sizes, **ends, **names})
    [ax] = plot_verdict_map(table.astype({"linear_required_n": "Int64"})).axes
    found = [re.findall(r"[-+]?\d[\d,]*\b", text.get_text()) for text in ax.texts]
    assert found == [["-5", "+2", "1,234"], [], ["-25", "+78", "500"], ["-25", "+78", "700"]]
    colours = [tuple(np.asarray(cell.get_facecolor())[0]) for cell in ax.collections]
    assert colours == [to_rgba(ANSWER_COLOURS[answer]) for answer in ("yes", "no", "cannot tell", "no")]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1e-06", "2e-06"]


def test_of_many_etas_the_map_shows_some_with_the_first_and_the_last() -> None:
    columns = {f"{name}_{end}": 0.1 for name in ("linear", "recorded") for end in ("low", "high", "required_n")}
    names = {"linear_estimator": "a", "recorded_estimator": "b", "linear": "yes", "recorded": "no"}
    [ax] = plot_verdict_map(pd.DataFrame({"eta": np.arange(1, 51) * 1e-6, **columns, **names})).axes
    labels = [float(label.get_text()) for label in ax.get_yticklabels()]
    assert (len(labels), labels[0], labels[-1]) == (16, 1e-6, 5e-5)


def test_a_forest_has_a_line_for_each_run_the_mean_and_the_next_update(large_runs: Runs, small_runs: Runs) -> None:
    found = verdict(large_runs, 1.6e-6, small_runs=small_runs)
    table = errors_by_run(found, large_runs, small_runs)
    axes = plot_forest(table, tolerance=0.3).axes
    for ax, (question, answer) in zip(axes, found.answers.items(), strict=True):
        rows = table[table["question"] == question]
        drawn = [line.get_segments()[0] for line in ax.collections if hasattr(line, "get_segments")]
        ends = np.array([[low, high] for (low, _), (high, _) in drawn])
        assert ends == pytest.approx(rows[["low", "high"]].to_numpy())
        assert rows.loc[rows["kind"] == "next update", ["low", "high"]].to_numpy()[0].tolist() == [
            answer.low,
            answer.high,
        ]
        [band] = [patch for patch in ax.patches if "tolerance" in str(patch.get_label())]
        assert band.get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([-0.3, 0.3])
    many = pd.concat([table[table["kind"] == "large run"]] * 250)
    for ax in plot_forest(many, tolerance=0.3).axes:
        assert len(ax.get_yticks()) == 40
        assert "960 runs" in ax.get_xlabel()


@pytest.mark.parametrize("count", [4, 1])
def test_the_budget_says_what_splitting_gains_also_where_tau_has_no_upper_end(large_runs: Runs, count: int) -> None:
    table = budget_table(large_runs.select(list(large_runs)[:count]), 1.6e-6)
    [ax] = plot_budget(table, sequences=2048).axes
    assert f"{1 - table['se'].iloc[-1] / table['se'].iloc[0]:.0%}" in ax.get_title()
    highest = table["se" if count == 1 else "se_high"].max()
    assert ax.get_ylim()[1] == pytest.approx(1.25 * highest)
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["1 × 2,048", "2 × 1,024"]

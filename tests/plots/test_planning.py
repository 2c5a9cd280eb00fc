from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from analysis_helpers import Run
from analysis_helpers.inference.planning import budget_table, error_by_size
from analysis_helpers.plots.planning import plot_budget, plot_error_by_size, plot_required_sizes, plot_verdict_map
from analysis_helpers.plots.style import ANSWER_COLOURS


def planned(*rows: tuple[float, int | None, int | None, int | None]) -> pd.DataFrame:
    """Return plans as `plan_batch_sizes` does."""
    table = pd.DataFrame(rows, columns=["eta", "n", "low", "high"])
    return table.astype(dict.fromkeys(("n", "low", "high"), "Int64"))


def test_the_error_is_drawn_from_sampling_alone_and_in_all(large_runs: dict[str, Run]) -> None:
    table = error_by_size(large_runs, 1.6e-6, [64, 256, 1024], tolerance=0.5)
    left, right = plot_error_by_size(table, tolerance=0.5, probability=0.9, eta=1.6e-6).axes
    assert np.array_equal(np.asarray(left.lines[0].get_ydata()), table["se"])
    [band] = [patch for patch in right.patches if patch.get_label() == "tolerance ±0.5"]
    assert (band.get_extents().transformed(right.transData.inverted()).intervaly).tolist() == pytest.approx([-0.5, 0.5])
    low, high = table["se"].iloc[[-1, 0]]
    assert left.get_title() == f"eta 1.6e-06: SE {high:.2g} on 64 sequences, {low:.2g} on 1,024"
    assert f"{table['low'].iloc[-1]:+.2f} to {table['high'].iloc[-1]:+.2f} on 1,024" in right.get_title()


def test_required_sizes_are_marked_and_labelled_and_no_size_is_said() -> None:
    plans = planned((1e-6, 100, 80, 130), (2e-6, None, 900, None))
    [ax] = plot_required_sizes(plans, goal="Required").axes
    assert [text.get_text() for text in ax.texts] == ["n = 100", "no size\nis enough"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1e-06", "2e-06"]
    markers = [line.get_marker() for line in ax.lines]
    assert markers.count("o") == 1
    assert markers.count("^") == 1


def test_plans_without_any_size_are_drawn_too() -> None:
    [ax] = plot_required_sizes(planned((1e-6, None, None, None)), goal="Required").axes
    assert ax.texts[0].get_text() == "no size is enough"


def test_every_cell_of_the_map_says_its_answer_and_has_its_colour() -> None:
    answers = {"enough": ["no", "cannot tell"], "linear_trusted": ["yes", "yes"]}
    table = pd.DataFrame({"eta": [1e-6, 1e-6], "n": [64, 256], **answers, "required_n": 1234})
    left, right = plot_verdict_map(table).axes
    assert left.get_title().endswith("\nfrom about 1,234 sequences")
    assert right.get_title().endswith("\nyes at every eta")
    assert [text.get_text() for text in left.texts] == ["no", "cannot\ntell"]
    assert [text.get_text() for text in right.texts] == ["yes", "yes"]
    colours = [tuple(np.asarray(cell.get_facecolor())[0]) for cell in left.collections]
    assert colours == [to_rgba(ANSWER_COLOURS[answer]) for answer in ("no", "cannot tell")]


def test_the_budget_says_what_splitting_gains(large_runs: dict[str, Run]) -> None:
    table = budget_table(large_runs, 1.6e-6)
    [ax] = plot_budget(table, sequences=2048).axes
    gain = 1 - table["se_high"].iloc[-1] / table["se_high"].iloc[0]
    assert ax.get_title().endswith(f"\nSE of the mean err_rel 0% smaller (at most {gain:.0%})")
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["1 × 2,048", "2 × 1,024"]


def test_the_budget_of_one_run_has_no_upper_end(large_runs: dict[str, Run]) -> None:
    table = budget_table({"run_01": large_runs["run_01"]}, 1.6e-6)
    [ax] = plot_budget(table, sequences=2048).axes
    assert ax.get_ylim()[1] == pytest.approx(1.25 * table["se"].max())
    assert ax.get_title().endswith("mean err_rel 0% smaller")


def test_the_map_tells_etas_apart_where_their_answers_differ() -> None:
    table = pd.DataFrame(
        {"eta": [1e-6, 2e-6], "n": 64, "enough": "no", "linear_trusted": ["yes", "no"], "required_n": [500, 700]}
    )
    left, right = plot_verdict_map(table).axes
    assert left.get_title().endswith("\nfrom about 500 to 700 sequences")
    assert right.get_title().endswith("\nyes at 1e-06, no at 2e-06")
    unsound = plot_verdict_map(table.assign(enough="cannot tell")).axes[0]
    assert unsound.get_title().endswith("\ncannot tell at every eta")


def test_a_size_is_drawn_even_where_most_other_pilots_would_find_none() -> None:
    [ax] = plot_required_sizes(planned((1e-6, 100, None, None)), goal="Required").axes
    assert [text.get_text() for text in ax.texts] == ["n = 100"]

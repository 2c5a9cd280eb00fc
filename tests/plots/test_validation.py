from __future__ import annotations

import pandas as pd
from matplotlib.patches import StepPatch

from analysis_helpers.plots.validation import (
    plot_calibration,
    plot_verdict_rates,
)


def test_shares_of_answers_add_up_to_bars_with_the_truth_below() -> None:
    table = pd.DataFrame(
        {
            "question": ["enough", "enough", "linear_trusted"],
            "setting": [64, 256, 0.0],
            "within": [0.7, 0.95, 1.0],
            "truth": ["no", "yes", "yes"],
            "yes": [0.04, 0.6, 1.0],
            "no": [0.9, 0.1, 0.0],
            "cannot_tell": [0.06, 0.3, 0.0],
        }
    )
    [ax] = plot_verdict_rates(table, "enough", "sequences").axes
    assert ax.get_title() == "false answers: at most 10% in any setting"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["64\ntruth: no\n(70%)", "256\ntruth: yes\n(95%)"]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["60%", "6%", "30%", "90%", "10%"]


def test_a_calibration_is_drawn_as_coverage_and_percentiles_with_what_was_found() -> None:
    coverage = pd.DataFrame(
        {"tau": 0.0, "n": [64, 64, 512, 512], "level": [0.5, 0.9] * 2, "covered": [0.48, 0.9, 0.6, 0.95], "error": 0.01}
    )
    pit = pd.DataFrame({"tau": 0.0, "low": [0.0, 0.5], "high": [0.5, 1.0], "count": [40, 60]})
    left, right = plot_calibration(coverage, pit).axes
    assert left.get_title().startswith("coverage − level: -2.0 to +10.0 points")
    assert left.get_legend_handles_labels()[1] == ["tau = 0, run of 64", "tau = 0, run of 512"]
    assert right.get_title() == "each 50% of percentiles holds 40.0% to 60.0% of runs"
    [stairs] = [patch for patch in right.patches if isinstance(patch, StepPatch)]
    assert stairs.get_data()[0].tolist() == [0.4, 0.6]

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import StepPatch

from analysis_helpers.plots import plot_calibration, plot_samplers
from analysis_helpers.synthetic import read_calibration


def test_a_calibration_is_drawn_as_coverage_and_percentiles_with_what_was_found() -> None:
    coverage = pd.DataFrame(
        {"tau": 0.0, "n": [64, 64, 512, 512], "level": [0.5, 0.9] * 2, "covered": [0.48, 0.9, 0.6, 0.95], "error": 0.01}
    )
    pit = pd.DataFrame({"tau": 0.0, "low": [0.0, 0.5], "high": [0.5, 1.0], "count": [40, 60]})
    left, right = plot_calibration(coverage, pit).axes
    assert all(points in left.get_title() for points in ("-2.0", "+10.0"))
    assert len(left.get_legend_handles_labels()[1]) == 2
    assert all(share in right.get_title() for share in ("40.0%", "60.0%"))
    [stairs] = [patch for patch in right.patches if isinstance(patch, StepPatch)]
    assert stairs.get_data()[0].tolist() == [0.4, 0.6]


def test_samplers_are_set_beside_each_other_by_excess_support_and_linear_change() -> None:
    table = read_calibration()["samplers"]
    excess, support, inflation = plot_samplers(table).axes
    names = table["sampler"].drop_duplicates().tolist()
    for ax, column in ((excess, "excess"), (support, "support"), (inflation, "linear")):
        assert [label.get_text() for label in ax.get_yticklabels()] == names
        drawn = np.concatenate([container[0].get_xdata() for container in ax.containers])
        assert sorted(drawn) == pytest.approx(sorted(table[column]))

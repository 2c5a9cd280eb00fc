import numpy as np
import pytest

from analysis_helpers import change_by_origin, synthetic_runs
from analysis_helpers.plots import plot_change_by_origin
from tests.building import ETAS, totals_only_run


def test_bars_end_at_the_part_on_the_same_states_and_at_the_total() -> None:
    table = change_by_origin(synthetic_runs(2, 128))
    true, linear = plot_change_by_origin(table, 1.6e-6).axes
    for ax, name in ((true, "true"), (linear, "linear")):
        same, other = ([bar.get_x() + bar.get_width() for bar in bars] for bars in ax.containers[:2])
        at_eta = table[table["eta"] == 1.6e-6]
        assert same == pytest.approx(1e3 * at_eta.query("part == 'same states'")[name].to_numpy(), rel=1e-9)
        assert other == pytest.approx(1e3 * at_eta.query("part == 'total'")[name].to_numpy(), rel=1e-9)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["run_01", "run_02", "pooled"]


def test_without_a_score_only_the_true_change_is_drawn() -> None:
    [ax] = plot_change_by_origin(change_by_origin({"run": totals_only_run()}), ETAS[0]).axes
    assert np.isfinite(ax.dataLim.get_points()).all()

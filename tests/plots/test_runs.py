import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from analysis_helpers import Runs
from analysis_helpers.inference import decomposition_table, run_totals
from analysis_helpers.plots import plot_decomposition, plot_totals


def test_totals_have_a_panel_an_eta_and_two_marks_a_run_with_their_standard_errors(large_runs: Runs) -> None:
    table = run_totals({"E_2048": large_runs})
    for ax, eta in zip(plot_totals(table).axes, [1.6e-6, 3.2e-6], strict=True):
        for name, drawn in zip(("true", "linear"), ax.containers, strict=True):
            assert isinstance(drawn, ErrorbarContainer)
            rows = table[table["eta"] == eta]
            assert np.asarray(drawn[0].get_ydata(), dtype=float) == pytest.approx(rows[name].to_numpy() * 1e3)
            [segments] = [np.array(lines.get_segments()) for lines in drawn[2]]
            half = (segments[:, 1, 1] - segments[:, 0, 1]) / 2
            assert half == pytest.approx(rows[f"{name}_se"].to_numpy() * 1e3)


def test_parts_have_two_panels_an_eta_with_every_run_and_the_pool(large_runs: Runs) -> None:
    axes = plot_decomposition(decomposition_table(large_runs, [1.6e-6, 3.2e-6])).axes
    assert [[tick.get_text() for tick in ax.get_xticklabels()] for ax in axes] == 4 * [[*large_runs, "pooled"]]
    assert len(axes[0].get_legend_handles_labels()[0]) == 2  # raw and adjusted

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from analysis_helpers import Run
from analysis_helpers.inference.decomposition import decomposition_table
from analysis_helpers.inference.health import contribution_table, run_totals
from analysis_helpers.plots.runs import plot_contribution_tails, plot_decomposition, plot_totals
from analysis_helpers.plots.style import PART_LABELS


def test_totals_have_a_panel_an_eta_and_two_marks_a_run(large_runs: dict[str, Run]) -> None:
    table = run_totals({"E_2048": large_runs})
    for ax, eta in zip(plot_totals(table).axes, [1.6e-6, 3.2e-6], strict=True):
        marks = {
            str(c.get_label()): np.asarray(c[0].get_ydata(), dtype=float)
            for c in ax.containers
            if isinstance(c, ErrorbarContainer)
        }
        rows = table[table["eta"] == eta]
        assert marks["true"] == pytest.approx(rows["true"].to_numpy() * 1e3)
        assert marks["linear"] == pytest.approx(rows["linear"].to_numpy() * 1e3)


def test_tails_start_at_all_sequences_and_end_at_the_last(large_runs: dict[str, Run]) -> None:
    [ax] = plot_contribution_tails(contribution_table(large_runs, 1.6e-6)).axes
    for line in ax.lines[:2]:
        share = np.asarray(line.get_ydata(), dtype=float)
        assert share[0] == 1.0
        assert share[-1] == pytest.approx(1 / (4 * 2048))
    assert ax.get_yscale() == "log"


def test_parts_have_two_panels_an_eta_with_every_run_and_the_pool(large_runs: dict[str, Run]) -> None:
    table = decomposition_table(large_runs, [1.6e-6, 3.2e-6])
    axes = plot_decomposition(table).axes
    raw = table[(table["run"] == "pooled") & ~table["score_adjusted"].astype(bool)].set_index("eta")
    assert [ax.get_title() for ax in axes] == [
        f"{label}, eta {eta:g}:\n{raw[part][eta]:+.2g} ± {raw[f'{part}_se'][eta]:.2g} pooled"
        for eta in (1.6e-6, 3.2e-6)
        for part, label in PART_LABELS.items()
    ]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == [*large_runs, "pooled"]
    assert [text.get_text() for text in axes[0].texts] == []
    handles, labels = axes[0].get_legend_handles_labels()
    assert labels == ["unadjusted", "score-adjusted"]
    assert len(handles) == 2


def test_no_parts_are_said_to_be_missing() -> None:
    assert plot_decomposition(pd.DataFrame({"eta": []})).axes[0].get_title() == "no run records the score"


def test_totals_have_their_standard_errors_as_bars(large_runs: dict[str, Run]) -> None:
    table = run_totals({"E_2048": large_runs})
    assert (table["linear_se"] > table["true_se"]).all()
    [true, linear] = plot_totals(table).axes[0].containers
    for drawn, name in ((true, "true"), (linear, "linear")):
        assert isinstance(drawn, ErrorbarContainer)
        [segments] = [np.array(lines.get_segments()) for lines in drawn[2]]
        half = (segments[:, 1, 1] - segments[:, 0, 1]) / 2
        assert half == pytest.approx(table.loc[table["eta"] == 1.6e-6, f"{name}_se"].to_numpy() * 1e3)

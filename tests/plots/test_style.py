"""Colours and labels stand in one place, so that one thing looks the same in every figure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from matplotlib.colors import is_color_like

from analysis_helpers import plots
from analysis_helpers.estimators import ESTIMATORS
from analysis_helpers.plots.style import (
    BACKGROUND,
    CHANGE_LABEL,
    COLOURS,
    ERR_REL_LABEL,
    ESTIMATOR_LABELS,
    PART_COLOURS,
    PART_LABELS,
    SERIES,
    legend_below,
    panels,
)

PLOTS = [path for path in sorted(Path(plots.__file__).parent.glob("*.py")) if path.stem not in ("__init__", "style")]
LABELS = {ESTIMATOR_LABELS["partial_sum"], *PART_LABELS.values(), ERR_REL_LABEL, CHANGE_LABEL}
MARKERS = set("osD^")  # single letters, some of which would do as colours
every_module_of_figures = pytest.mark.parametrize("path", PLOTS, ids=lambda path: path.stem)


def texts(path: Path) -> set[str]:
    """Return the strings of a module, whole or as pieces of f-strings, without docstrings and formats."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    passed_over = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    for node in nodes:
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:  # as in {eta:g}
            passed_over |= {id(part) for part in ast.walk(node.format_spec)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in passed_over]
    return {node.value for node in constants if isinstance(node.value, str)}


def test_every_estimator_has_a_colour_and_a_label_of_its_own() -> None:
    assert set(ESTIMATORS) <= set(COLOURS)
    assert set(ESTIMATORS) == set(ESTIMATOR_LABELS)
    assert len({*COLOURS.values(), BACKGROUND, *(colour for colour, _ in SERIES)}) == len(COLOURS) + 1 + len(SERIES)
    assert set(PART_COLOURS) == set(PART_LABELS)
    assert set(PART_COLOURS.values()) <= set(COLOURS.values())


@every_module_of_figures
def test_no_figure_has_a_colour_of_its_own(path: Path) -> None:
    assert {text for text in texts(path) if is_color_like(text)} <= MARKERS


@every_module_of_figures
def test_no_figure_spells_a_shared_label_itself(path: Path) -> None:
    assert {text for text in texts(path) for label in LABELS if label in text} == set()


@pytest.mark.parametrize("height", [2.5, 6.0])
@pytest.mark.parametrize("lines", [1, 3])
def test_a_legend_below_hides_no_label_whatever_the_height(height: float, lines: int) -> None:
    figure, (ax,) = panels(1)
    figure.set_figheight(height)
    ax.plot([0, 1], [0, 1], label="values")
    ax.set_xticks([0, 1], ["\n".join(["label"] * lines)] * 2, fontsize=8)
    ax.set_xlabel("numbers")
    legend_below(ax, 1, lines=lines)
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
    assert legend.get_window_extent().y0 >= 0

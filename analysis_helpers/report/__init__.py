"""Tools of notebooks (parameters, display, answers, controls), and their execution: reports and sweeps."""

from typing import TYPE_CHECKING, Any

from .answers import (
    describe_comparison,
    describe_distribution,
    describe_exploration,
    describe_linearity,
    describe_plans,
    describe_runs,
    describe_validation,
    describe_verdict,
)
from .display import AnswerInBrief, readable, show_result
from .execution import find_notebooks, run_notebooks
from .pages import write_report
from .parameters import read_parameters
from .sweep import run_and_report

if TYPE_CHECKING:
    from .explorer import Exploration, Explorer, explore

__all__ = [
    "AnswerInBrief",
    "Exploration",
    "Explorer",
    "describe_comparison",
    "describe_distribution",
    "describe_exploration",
    "describe_linearity",
    "describe_plans",
    "describe_runs",
    "describe_validation",
    "describe_verdict",
    "explore",
    "find_notebooks",
    "read_parameters",
    "readable",
    "run_and_report",
    "run_notebooks",
    "show_result",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import ipywidgets and matplotlib only when the controls are asked for."""
    if name in ("Exploration", "Explorer", "explore"):
        from . import explorer

        return getattr(explorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

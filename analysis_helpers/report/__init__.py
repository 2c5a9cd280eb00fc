"""Tools of notebooks (parameters, display, answers, controls), and their execution: reports and sweeps."""

from typing import TYPE_CHECKING, Any

from .answers import (
    describe_comparison as describe_comparison,
    describe_distribution as describe_distribution,
    describe_exploration as describe_exploration,
    describe_linearity as describe_linearity,
    describe_plans as describe_plans,
    describe_runs as describe_runs,
    describe_validation as describe_validation,
    describe_verdict as describe_verdict,
)
from .display import AnswerInBrief as AnswerInBrief, readable as readable, show_result as show_result
from .execution import How as How
from .parameters import read_parameters as read_parameters
from .sweep import make_report as make_report, make_sweep as make_sweep

if TYPE_CHECKING:
    from .explorer import Exploration as Exploration, Explorer as Explorer, explore as explore


def __getattr__(name: str) -> Any:
    """Import ipywidgets and matplotlib only when the controls are asked for."""
    if name in ("Exploration", "Explorer", "explore"):
        from . import explorer

        return getattr(explorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

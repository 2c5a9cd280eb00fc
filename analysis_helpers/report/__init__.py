"""Tools of notebooks (parameters, display, answers, controls), and their execution: reports and sweeps."""

from importlib import import_module
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
from .parameters import read_parameters as read_parameters

if TYPE_CHECKING:
    from .execution import How as How
    from .explorer import Explorer as Explorer, explore as explore
    from .sweep import make_report as make_report, make_sweep as make_sweep

_OF = {"How": "execution", "make_report": "sweep", "make_sweep": "sweep", "Explorer": "explorer", "explore": "explorer"}


def __getattr__(name: str) -> Any:
    """Import what needs the extras "notebooks" and "lab" only when it is asked for."""
    if name in _OF:
        return getattr(import_module(f"{__name__}.{_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

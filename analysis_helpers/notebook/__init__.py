"""What notebooks import: parameters, display, answers in brief, and the explorer."""

from importlib import import_module
from typing import Any

from .answers import (
    describe_comparison as describe_comparison,
    describe_distribution as describe_distribution,
    describe_exploration as describe_exploration,
    describe_health as describe_health,
    describe_linearity as describe_linearity,
    describe_origin as describe_origin,
    describe_plans as describe_plans,
    describe_runs as describe_runs,
    describe_sampler as describe_sampler,
    describe_validation as describe_validation,
    describe_verdict as describe_verdict,
)
from .display import (
    RESULT_MIME as RESULT_MIME,
    AnswerInBrief as AnswerInBrief,
    Listed as Listed,
    readable as readable,
    show_result as show_result,
)
from .parameters import (
    ParameterError as ParameterError,
    Parameters as Parameters,
    assigned as assigned,
    convert_parameter as convert_parameter,
    data_digest as data_digest,
    data_state as data_state,
    notebooks_folder as notebooks_folder,
    read_parameters as read_parameters,
    shown as shown,
)


def __getattr__(name: str) -> Any:
    """Import what needs the extra "lab" only when it is asked for."""
    if name in ("Explorer", "explore"):
        return getattr(import_module(f"{__name__}.explorer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

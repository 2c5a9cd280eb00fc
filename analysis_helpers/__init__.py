"""Is the step linear, is the recorded change right, and is the batch large enough?

The names that most users need; `analysis_helpers.inference`, `.runs` and `.plots` have more. The README shows what they
answer, and `notebooks/` how to use them. Importing this package imports NumPy, pandas and little else: plots, notebooks
and their execution are imported on first use.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ._checks import RunError as RunError
from .err_rel import Comparison as Comparison, explain_partial_sum as explain_partial_sum
from .inference import (
    Answer as Answer,
    Prediction as Prediction,
    Verdict as Verdict,
    change_by_origin as change_by_origin,
    check_prediction as check_prediction,
    decompose_err_rel as decompose_err_rel,
    entropy_trend as entropy_trend,
    err_rel_standard_error as err_rel_standard_error,
    nonlinearity as nonlinearity,
    predict_err_rel as predict_err_rel,
    required_batch_size as required_batch_size,
    run_health as run_health,
    trusted_eta as trusted_eta,
    verdict as verdict,
    verdict_map as verdict_map,
)
from .published import (
    aggregate_err_rel as aggregate_err_rel,
    collect_err_rel_across_runs as collect_err_rel_across_runs,
    compare_err_rel_distributions as compare_err_rel_distributions,
    per_sequence_contributions as per_sequence_contributions,
    reference_true_totals as reference_true_totals,
    sample_err_rel_across_runs as sample_err_rel_across_runs,
    simulate_err_rel as simulate_err_rel,
    simulate_err_rel_across_runs as simulate_err_rel_across_runs,
    summarize_err_rel_distribution as summarize_err_rel_distribution,
)
from .runs import (
    Run as Run,
    Runs as Runs,
    inventory as inventory,
    load_runs as load_runs,
    merge_runs as merge_runs,
    read_run as read_run,
    write_run as write_run,
)
from .synthetic import synthetic_runs as synthetic_runs, write_sample_data as write_sample_data

if TYPE_CHECKING:
    from .plots import (
        plot_err_rel_comparison as plot_err_rel_comparison,
        plot_err_rel_histograms as plot_err_rel_histograms,
    )

__all__ = [name for name, thing in globals().items() if str(getattr(thing, "__module__", "")).startswith(__name__)]
__all__ += ["plot_err_rel_comparison", "plot_err_rel_histograms"]

try:
    __version__ = version("entropy-batch-diagnostics")
except PackageNotFoundError:  # the source folder is on the path, but not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import matplotlib only when a plot is asked for."""
    if name.startswith("plot_"):
        return getattr(import_module(f"{__name__}.plots"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "inference", "plots", "runs", "synthetic", "notebook"]

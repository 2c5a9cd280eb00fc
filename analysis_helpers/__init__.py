"""Did you measure your policy's entropy change on a large enough batch?

The public names; see the README for what they answer, and `notebooks/` for how they are used. Importing this package
imports NumPy, pandas and little else: plots, notebooks and their execution are imported where they are used.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .checks import RunError
from .comparison import Comparison, compare_err_rel_distributions
from .decomposition import decompose_err_rel
from .err_rel import (
    aggregate_err_rel,
    collect_err_rel_across_runs,
    sample_err_rel_across_runs,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    summarize_err_rel_distribution,
)
from .estimators import per_sequence_contributions
from .health import run_health
from .inference import err_rel_standard_error
from .planning import required_batch_size
from .pooling import reference_true_totals
from .prediction import Prediction, predict_err_rel
from .prediction_check import check_prediction
from .run_files import load_runs, write_run
from .run_tables import inventory
from .runs import Run
from .synthetic import synthetic_runs, write_sample_data
from .verdict import Verdict, trusted_eta, verdict

if TYPE_CHECKING:
    from .plots import plot_err_rel_comparison, plot_err_rel_histograms

try:
    __version__ = version("entropy-batch-diagnostics")
except PackageNotFoundError:  # the source folder is on the path, but not installed
    __version__ = "0+unknown"

__all__ = [
    "Comparison",
    "Prediction",
    "Run",
    "RunError",
    "Verdict",
    "aggregate_err_rel",
    "check_prediction",
    "collect_err_rel_across_runs",
    "compare_err_rel_distributions",
    "decompose_err_rel",
    "err_rel_standard_error",
    "inventory",
    "load_runs",
    "per_sequence_contributions",
    "plot_err_rel_comparison",
    "plot_err_rel_histograms",
    "predict_err_rel",
    "reference_true_totals",
    "required_batch_size",
    "run_health",
    "sample_err_rel_across_runs",
    "simulate_err_rel",
    "simulate_err_rel_across_runs",
    "summarize_err_rel_distribution",
    "synthetic_runs",
    "trusted_eta",
    "verdict",
    "write_run",
    "write_sample_data",
]


def __getattr__(name: str) -> Any:
    """Import matplotlib only when a plot is asked for."""
    if name in ("plot_err_rel_comparison", "plot_err_rel_histograms"):
        from . import plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

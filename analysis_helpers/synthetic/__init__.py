"""A policy whose entropy change is known exactly, its runs, and verdicts compared with that answer."""

from .runs import synthetic_runs, write_sample_data
from .validation import Calibration, flag_overview, read_calibration, verdict_rates

__all__ = ["Calibration", "flag_overview", "read_calibration", "synthetic_runs", "verdict_rates", "write_sample_data"]

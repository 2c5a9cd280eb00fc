"""A policy whose entropy change is known exactly, its runs, and verdicts compared with that answer."""

from .policy import Baseline as Baseline, Steps as Steps
from .runs import synthetic_runs as synthetic_runs, write_sample_data as write_sample_data
from .validation import flag_overview as flag_overview, read_calibration as read_calibration

"""A policy whose entropy change is known exactly, its runs, and the stored calibration against that answer."""

from .calibration import (
    answer_overview as answer_overview,
    flag_overview as flag_overview,
    read_calibration as read_calibration,
)
from .policy import Baseline as Baseline, Steps as Steps
from .runs import synthetic_runs as synthetic_runs, write_sample_data as write_sample_data

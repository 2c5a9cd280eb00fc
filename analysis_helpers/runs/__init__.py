"""Runs: one evaluation batch in memory, runs chosen together, as ``results.json``, and in folders."""

from .collection import Runs as Runs, default_n as default_n, shared_etas as shared_etas
from .folders import (
    RESULTS_FILE as RESULTS_FILE,
    inventory as inventory,
    load_runs as load_runs,
    read_run as read_run,
    result_files as result_files,
    sound_batches as sound_batches,
    sound_runs as sound_runs,
    write_in_one_step as write_in_one_step,
    write_run as write_run,
)
from .run import (
    FIELDS_BEHIND as FIELDS_BEHIND,
    Measurement as Measurement,
    Run as Run,
    merge_runs as merge_runs,
    require_run as require_run,
)

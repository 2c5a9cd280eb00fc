"""Runs: one evaluation batch in memory, as ``results.json``, and in folders."""

from .folders import (
    RESULTS_FILE,
    inventory,
    load_runs,
    read_run,
    result_files,
    sound_batches,
    sound_runs,
    write_in_one_step,
    write_run,
)
from .run import (
    FIELDS_BEHIND,
    Measurement,
    Run,
    ScoreTerms,
    ShardError,
    integrity_problems,
    merge_runs,
    require_batches,
    require_run,
    require_runs,
)

__all__ = [
    "FIELDS_BEHIND",
    "RESULTS_FILE",
    "Measurement",
    "Run",
    "ScoreTerms",
    "ShardError",
    "integrity_problems",
    "inventory",
    "load_runs",
    "merge_runs",
    "read_run",
    "require_batches",
    "require_run",
    "require_runs",
    "result_files",
    "sound_batches",
    "sound_runs",
    "write_in_one_step",
    "write_run",
]

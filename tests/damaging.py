"""A small results file and its fields; damaged files are read within limits of time and memory."""

import faulthandler
import json
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from analysis_helpers.runs.json import encode_run
from tests.building import random_run

SECONDS = 60.0
TIMES_THE_FILE, ALLOWANCE = 8, 2**18

GOOD = random_run(6)
TREE: dict[str, Any] = json.loads(encode_run(GOOD))
FILE = "E_6/run_01/results.json"

COLUMNS = dict.fromkeys(("normalized_weights", "h_new", "token_counts"), "refused")
COLUMNS |= {"log_weights": "nothing", "h_base": "baseline_entropy"}
TERMS = ("gdotv", "index", "extras", "extras.wjlogp_sum", "extras.jH_sum", "extras.denom_corr_unscaled")
NEEDED = "approx approx.delta_h_per_lr approx.per_sequence.2 true true.entries true.entries.1.eta "
NEEDED += "true.entries.1.delta_h_true true.entries.1.diagnostics true.entries.1.diagnostics.base_entropy"
# Every field in use, with what a run loses where it is missing: all ("refused"), nothing, or one of the supports.
FIELDS = {
    "approx.per_sequence": "linear",
    "approx.per_sequence_meta": "score",
    "approx.per_sequence_meta.H_base_mean": "score",
    "true.entries.1": "fewer etas",
    "true.entries.1.diagnostics.ess": "nothing",
    **dict.fromkeys(NEEDED.split(), "refused"),
    "approx.per_sequence.2.length": "nothing",
    "approx.per_sequence_meta.scale": "nothing",
    **{f"approx.per_sequence.2.{name}": "refused" for name in TERMS},
    **{f"true.entries.1.diagnostics.{name}": loss for name, loss in COLUMNS.items()},
    **{f"true.entries.1.diagnostics.{name}.3": "refused" for name in COLUMNS},
}


@contextmanager
def limits(size: int) -> Iterator[None]:
    """End the test run if the block hangs; fail if it takes memory beyond a few times ``size`` bytes."""
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        faulthandler.cancel_dump_traceback_later()
        assert peak <= TIMES_THE_FILE * size + ALLOWANCE

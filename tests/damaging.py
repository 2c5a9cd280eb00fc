"""A small results file, its fields, and ways to damage it; damaged files are read within limits of time and memory."""

import dataclasses
import faulthandler
import json
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from analysis_helpers import Run, RunError
from analysis_helpers.estimators import estimate
from analysis_helpers.runs.json import encode_run, parse_run
from analysis_helpers.runs.run import ShardError
from tests.building import random_run

SECONDS = 60.0
TIMES_THE_FILE, ALLOWANCE = 8, 2**18

GOOD = dataclasses.replace(
    random_run(6, curvature=True),
    shard_errors=(
        ShardError("approx.variance.se_shard", 0.5, 3),
        ShardError("approx.quadratic.variance.se_vHvv", 0.25, 2),
    ),
)
TREE: dict[str, Any] = json.loads(encode_run(GOOD))
FILE = "E_6/run_01/results.json"

COLUMNS = dict.fromkeys(("normalized_weights", "h_new", "token_counts"), "refused")
COLUMNS |= {"log_weights": "nothing", "h_base": "baseline_entropy"}
TERMS = ("gdotv", "index", "vhvv", "extras", "extras.wjlogp_sum", "extras.jH_sum", "extras.denom_corr_unscaled")
# Every field in use, with what a run loses where it is missing: all ("refused"), nothing, or one of the supports.
FIELDS = {
    "approx": "refused",
    "approx.delta_h_per_lr": "refused",
    "approx.per_sequence": "linear",
    "approx.per_sequence.2": "refused",
    "approx.per_sequence.2.length": "nothing",
    **{f"approx.per_sequence.2.{name}": "refused" for name in TERMS},
    "approx.variance": "nothing",
    "approx.variance.num_shards": "nothing",
    "approx.variance.se_shard": "nothing",
    "approx.quadratic": "nothing",
    "approx.quadratic.variance": "nothing",
    "approx.quadratic.variance.se_vHvv": "nothing",
    "approx.per_sequence_meta": "score",
    "approx.per_sequence_meta.scale": "nothing",
    "approx.per_sequence_meta.H_base_mean": "score",
    "true": "refused",
    "true.entries": "refused",
    "true.entries.1": "fewer etas",
    "true.entries.1.eta": "refused",
    "true.entries.1.delta_h_true": "refused",
    "true.entries.1.diagnostics": "refused",
    "true.entries.1.diagnostics.base_entropy": "refused",
    "true.entries.1.diagnostics.ess": "nothing",
    **{f"true.entries.1.diagnostics.{name}": loss for name, loss in COLUMNS.items()},
    **{f"true.entries.1.diagnostics.{name}.3": "refused" for name in COLUMNS},
}
PARENTS = ("per_sequence_meta", "variance", "quadratic", "quadratic.variance")
MAY_HOLD_OTHER_THINGS = {f"approx.{parent}" for parent in PARENTS}
_WITH_A_SIGN = "eta index length token_counts.3 normalized_weights.3 H_base_mean num_shards se_shard se_vHvv"
MUST_NOT_BE_NEGATIVE = tuple(f".{name}" for name in _WITH_A_SIGN.split())
WRONG = {
    "text": "1.0",
    "true": True,
    "a list of text": ["x"],
    "an object of other things": {"x": 1},
    "an empty list": [],
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "a huge integer": 10**400,
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


def read(data: bytes) -> Run:
    with limits(len(data)):
        return parse_run(data, FILE)


def damaged(field: str, change: Any, *, remove: bool = False) -> bytes:
    tree = json.loads(json.dumps(TREE))
    *path, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    node = tree
    for key in path:
        node = node[key]
    if remove:
        del node[last]
    else:
        node[last] = change
    return json.dumps(tree).encode()


def refusal(data: bytes) -> RunError:
    with pytest.raises(RunError) as caught:
        read(data)
    assert caught.value.file == FILE
    assert str(caught.value).startswith(f"{FILE}: {caught.value.field} ")
    return caught.value


def names(error: RunError, field: str) -> bool:
    """Return whether the error points at the field, or at what holds it or stands in it."""
    plain = [part for part in error.field.replace("[", ".").replace("]", "").split(".") if part and not part.isdigit()]
    wanted = [part for part in field.split(".") if not part.isdigit()]
    return plain[: len(wanted)] == wanted[: len(plain)]


def same_where_supported(run: Run, good: Run) -> bool:
    """Return whether every estimate that the run still supports is that of the undamaged one."""
    estimators = {"partial_sum": {"linear"}, "ratio": {"linear", "score", "baseline_entropy"}}
    possible = [name for name, needs in estimators.items() if needs <= set(run.supports)]
    return all(estimate(run, eta, name) == estimate(good, eta, name) for eta in run.etas for name in possible)

"""Small runs for tests, changes to them, and what tests say of errors."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from analysis_helpers import Run, write_run
from analysis_helpers.estimators import columns
from analysis_helpers.inference.prediction import PooledEstimate
from tests.plain.estimates import changes
from tests.plain.reading import as_batch

T = TypeVar("T")
ETAS = (1e-6, 2e-6)

# What real files record about each sequence beyond the fields in use is as long as this.
_UNUSED = {group: {f"{group}_{k}": -(k + 1) / 7 for k in range(9)} for group in ("audit", "features")}


def random_run(size: int = 12, seed: int = 0, *, score: bool = True) -> Run:
    """Return a run whose entropy falls by about 10 % and 20 %, so that its true total is far from zero."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 20, size)
    h_base = tokens * rng.uniform(0.4, 0.8, size)
    h_new = {eta: h_base * (1 - 1e5 * eta * rng.uniform(0.8, 1.2, size)) for eta in ETAS}
    log_weights = {eta: rng.normal(0, 0.05, size) for eta in ETAS}
    parts: dict[str, Any] = {
        "score": rng.normal(0, 1e3, size),
        "wjlogp_sum": rng.normal(-3e4, 1e4, size) * tokens,
        "jH_sum": rng.normal(-2e4, 1e4, size) * tokens,
    }
    linear: dict[str, Any] = parts if score else {"gdotv": rng.normal(-5e4, 1e4, size) / size}
    arrays: dict[str, Any] = {"token_counts": tokens, "h_base": h_base, "h_new": h_new, "log_weights": log_weights}
    return Run.from_arrays(source=f"run {seed}", **arrays, **linear)


def two_sequences(**changed: Any) -> Run:
    """Return a run of two sequences with weights 1 : 3 at one eta; its arrays may be changed by name."""
    arrays: dict[str, Any] = {
        "token_counts": [2, 3],
        "h_base": [1.0, 2.0],
        "h_new": {1e-6: [0.9, 1.8]},
        "log_weights": {1e-6: [0.0, np.log(3)]},
        "gdotv": [-1.0, -2.0],
    }
    return Run.from_arrays(**{**arrays, **changed})


def without_score(run: Run) -> Run:
    """Return the run as it is without the denominator correction."""
    return dataclasses.replace(run, wjlogp_sum=None, jH_sum=None, denom_corr_unscaled=None, h_base_mean=None)


def totals_only_run() -> Run:
    return two_sequences(log_weights={1e-6: [0.0, 0.1]}, gdotv=None, delta_h_per_lr=-5.0)


def altered(run: Run, eta: float | None = None, **changed: Any) -> Run:
    """Return the run with fields of its measurements replaced, at one eta or at all; a callable gets the old value."""

    def replaced(m: Any) -> Any:
        if eta is not None and m.eta != eta:
            return m
        return dataclasses.replace(
            m, **{name: new(getattr(m, name)) if callable(new) else new for name, new in changed.items()}
        )

    return dataclasses.replace(run, measurements=tuple(map(replaced, run.measurements)))


def pilot(values: Sequence[float], *, spread: float = 1.0, size: float = 1.0, kurtosis: float = 3.0) -> PooledEstimate:
    """Return a pilot of runs of that size with these errors; a run's standard error is spread / sqrt(size)."""
    ones = np.ones(len(values))
    return PooledEstimate(1e-6, -1.0, size * ones, np.array(values), spread * ones, kurtosis * ones, 0.0)


def known(value: T | None) -> T:
    """Return a value that may be missing in other runs."""
    assert value is not None
    return value


def estimate(run: Run, eta: float, estimator: str = "ratio") -> tuple[float, float]:
    """Return the full-batch estimates (true, linear)."""
    true, linear = columns(run, eta, estimator).estimates
    return true.value, linear.value


def plain_estimate(run: Run, eta: float, chosen: Iterable[int], estimator: str) -> tuple[float, float]:
    """Return (true, linear) on the chosen sequences, by the second implementation."""
    return changes(as_batch(run), eta, chosen, estimator)


@contextmanager
def refused(start: str, *parts: object, error: type[Exception] = ValueError) -> Iterator[None]:
    """Expect an error in one line that starts with what is wrong and names each of the parts."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(start), message
    assert [part for part in map(str, parts) if part not in message] == [], message


def in_prompts(run: Run, responses: int) -> Run:
    """Return the run with so many consecutive sequences for each prompt."""
    return dataclasses.replace(run, prompt_ids=np.arange(run.n) // responses)


def write_like_a_real_file(path: Path, run: Run) -> int:
    """Write the run with the unused fields of real files, about 1,470 bytes a sequence; return the bytes."""
    write_run(path, run)
    unused = json.dumps(_UNUSED, indent=6).encode()[1:-1].rstrip() + b",\n"
    plain = path.rename(path.with_suffix(".plain"))
    with plain.open("rb") as lines, path.open("wb") as padded:
        for line in lines:
            padded.write(line)
            if line.startswith(b'    "length":'):
                padded.write(unused)
    plain.unlink()
    return path.stat().st_size

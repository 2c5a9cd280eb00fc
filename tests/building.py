"""Small runs for tests, and a plain second implementation of the estimators to hold the package against."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from analysis_helpers import Run, write_run

ETAS = (1e-6, 2e-6)

# What real files record about each sequence beyond the fields in use.
_UNUSED = {
    "": ("sum_logp", "mean_logp", "var_logp", "max_logp", "min_logp", "delta_h_seq", "entropy_before", "entropy_after"),
    "audit": ("rb_entropy_sum", "sum_w", "sum_w2", "sum_w_abs", "sum_abs_jlogp", "mean_abs_jlogp", "token_share"),
    "features": ("length_log", "sum_w", "sum_w2", "rb_entropy_sum", "var_logp"),
}


def random_run(size: int = 12, seed: int = 0, *, score: bool = True, curvature: bool = False) -> Run:
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
    vhvv = rng.normal(size=size) if curvature else None
    return Run.from_arrays(
        token_counts=tokens,
        h_base=h_base,
        h_new=h_new,
        log_weights=log_weights,
        vhvv=vhvv,
        source=f"run {seed}",
        **linear,
    )


def write_like_a_real_file(path: Path, run: Run) -> int:
    """Write the run with the unused fields of real files, about 1,470 bytes a sequence; return the bytes."""
    write_run(path, run)
    plain = path.rename(path.with_suffix(".plain"))
    unused = _unused_fields()
    with plain.open("rb") as lines, path.open("wb") as padded:
        for line in lines:
            padded.write(line)
            if line.startswith(b'    "length":'):
                padded.write(unused)
    plain.unlink()
    return path.stat().st_size


def _unused_fields() -> bytes:
    lines = []
    for group, names in _UNUSED.items():
        fields = [f'{" " * 10}"{name}": {-(k + 1) / 7!r}' for k, name in enumerate(names)]
        block = ",\n".join(fields)
        lines.append(f'{" " * 8}"{group}": {{\n{block}\n{" " * 8}}}' if group else block)
    return (",\n".join(lines) + ",\n").encode()


def totals_only_run() -> Run:
    return Run.from_arrays(
        token_counts=[2, 3],
        h_base=[1.0, 2.0],
        h_new={1e-6: [0.9, 1.8]},
        log_weights={1e-6: [0.0, 0.1]},
        delta_h_per_lr=-5.0,
    )


def plain_estimate(run: Run, eta: float, chosen: Iterable[int], estimator: str) -> tuple[float, float]:
    """Return (true, linear) on the chosen sequences, by plain loops over the formulas."""
    [measured] = [m for m in run.measurements if abs(m.eta / eta - 1) < 1e-6]
    tokens_all = sum(run.token_counts)
    assert run.gdotv is not None
    assert measured.h_base is not None
    tokens = h_base = w_tokens = w_h_new = linear = tokens_score = direct = 0.0
    for i in (int(i) for i in chosen):
        tokens += run.token_counts[i]
        h_base += measured.h_base[i]
        w_tokens += measured.weights[i] * run.token_counts[i]
        w_h_new += measured.weights[i] * measured.h_new[i]
        linear += run.gdotv[i]
        if run.score is not None:
            t_j = -run.score.denom_corr_unscaled[i] / run.score.h_base_mean
            tokens_score += t_j
            direct += run.score.jH_sum[i] + measured.h_base[i] * t_j / run.token_counts[i]
    if estimator == "partial_sum":
        all_w_tokens = sum(w * t for w, t in zip(measured.weights, run.token_counts, strict=True))
        return w_h_new / all_w_tokens - tokens / tokens_all * measured.base_entropy, eta * linear
    if estimator == "matched":
        return w_h_new / w_tokens - h_base / tokens, eta * (direct - h_base / tokens * tokens_score) / tokens
    correction = (h_base / tokens - run.score.h_base_mean) * tokens_score if run.score is not None else 0.0
    return w_h_new / w_tokens - h_base / tokens, eta * (linear * tokens_all - correction) / tokens

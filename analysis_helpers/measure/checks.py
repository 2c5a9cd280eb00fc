"""Self-tests of a measurement, on the longest sequences, before the expensive part.

A fault in a pass, or in its derivative, falsifies the true and the linear change alike: no later check sees it. So each
measurement asks three questions first. Did the responses come from this policy? Are the derivatives those of the
policy? Does the change along the step follow from them, or does it jump, as where tokens change experts?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import Module

from .._checks import FloatArray, warn_about_runs
from ..inference import sampler_mismatch
from .derivatives import Tensors, TokenPolicy
from .sampling import IntArray

Change = Literal["midpoint", "difference"]

WIDE = 0.2  # SD of log weights above which a step is measured at two points instead of its midpoint
MOST_DERIVATIVE_ERROR = 0.005  # healthy float32 models: up to 0.001
MOST_DIFFERENCE_ERROR = 0.02  # of central differences that are taken in place of derivatives
MOST_CHANGE_ERROR = 0.1  # models without jumps: up to 0.05, where log pi changes by 0.1 nats per token
_SIZES = (1e-2, 1e-3, 1e-4, 1e-5)  # nats by which log pi changes: large, curvature counts; small, rounding does
_OUTLIERS = 0.1  # share of the tokens: in a mixture of many experts some change theirs at any step


def self_test(policy: TokenPolicy, etas: Sequence[float], change: Change) -> Change:
    """Return how the change is to be taken, and have derivatives taken as they can be; warn of what differs.

    Raises ValueError if the responses are not the policy's, v does not change it, or it has no derivative that passes.
    """
    precisions = tuple(dict.fromkeys((policy.dtype, torch.float64)))
    rows = np.searchsorted(policy.steps.starts, policy.probe[0], side="right") - 1
    chosen = np.unique(rows)
    logp = policy.probed(0.0, None, derivatives=False)[0]
    require_same_policy(policy, np.bincount(rows, logp)[chosen].astype(float), chosen)
    start = policy.probed(0.0, precisions[0])
    _require_derivatives(policy, start, precisions)
    if change == "difference":
        refuse_low_precision(policy.model)
        return change
    error = _change_error(policy, etas, precisions, rows, start)
    if error < MOST_CHANGE_ERROR:
        return change
    found = f"derivatives miss {error:.0%} of the change along the step: it jumps, as in a mixture where tokens change "
    found += "experts, or is far from linear"
    try:
        refuse_low_precision(policy.model)
    except ValueError as reason:
        raise ValueError(f"{found}; differences take float32: load the model in it, or take smaller etas") from reason
    warn_about_runs(f'{found}; the true change is taken by change="difference"')
    return "difference"


def require_same_policy(policy: TokenPolicy, logp: FloatArray, chosen: IntArray | slice = slice(None)) -> None:
    """Raise a ValueError if log pi of the sequences chosen is not the sampler's, beyond rounding in 16 bits."""
    if policy.batch.sampler_logp is None:
        return
    sampler_logp, tokens = policy.batch.sampler_logp[chosen], policy.batch.token_counts[chosen].astype(float)
    found = sampler_mismatch(logp, sampler_logp, tokens)
    if not found.value <= found.limit:
        raise ValueError(
            "responses must come from the policy that is measured: its log-probabilities differ from the sampler's by "
            f"{found.value:.2g} nats times the square root of the tokens (limit {found.limit:g}), at most "
            f"{np.abs(logp - sampler_logp).max():.3g} nats in a sequence; {_why_another_policy(policy.model)}"
        )


def _why_another_policy(model: Module) -> str:
    config: Any = getattr(model, "config", None)
    kinds = str(getattr(config, "rope_parameters", None))
    if kind := next((kind for kind in ("dynamic", "longrope") if repr(kind) in kinds), None):
        return f"its {kind} rope scaling depends on the length of what is fed: keep to the original length"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its soft prompt must stand before the prompt once: sample without a cache"
    return "was there top-k, top-p or a temperature, another model, or an input (position ids, mask) for one of them?"


def _require_derivatives(policy: TokenPolicy, start: FloatArray, precisions: tuple[torch.dtype, ...]) -> None:
    """Hold derivatives against central differences of plain passes, and take these instead where they are wrong.

    They are right if they agree at one width, in one precision: kinks and rounding disappear at some, a tangent lost on
    the way at none.
    """
    least = math.inf
    for dtype in precisions:
        tangents = start[2:] if dtype == precisions[0] else policy.probed(0.0, dtype)[2:]
        width = _scale(tangents[0])
        for size in _SIZES:
            width, differences = _central(policy, size, width, dtype)
            least = min(least, _error(tangents, differences, _OUTLIERS))
            policy.width = policy.width or width
            if least < MOST_DERIVATIVE_ERROR:
                return
    found = f"forward mode is off by {least:.0%} from central differences"
    if min(p.dtype.itemsize for p in policy.model.parameters()) < 4:
        raise ValueError(f"model must have derivatives: {found}, which are lost in 16 bits: load it in float32")
    widths = [policy.width * size / _SIZES[0] for size in _SIZES]
    taken = [policy.differences(policy.probe[1], 0.0, width, policy.dtype) for width in widths]
    error, width = min((_error(*pair), width) for pair, width in zip(pairwise(taken), widths, strict=False))
    if not error < MOST_DIFFERENCE_ERROR:
        raise ValueError(
            f"model must have derivatives: {found}, and these by {error:.0%} among themselves: it rounds (TF32 or "
            "autocast are on?), or jumps (straight-through estimators, quantisation)"
        )
    policy.width, policy.by_difference = width, True
    warn_about_runs(
        f"{found}: the model drops derivatives (detach, as in DoRA, or an operation without forward mode); all are "
        f"taken by central differences, which agree to {error:.1%}"
    )


def _central(policy: TokenPolicy, size: float, width: float, dtype: torch.dtype | None) -> tuple[float, FloatArray]:
    """Return central differences on the probe, and their half-width, at which log pi changes by about ``size``."""
    for _ in range(8):
        differences = policy.differences(policy.probe[1], 0.0, width, dtype)
        made = width * _rms(differences[0])
        if size / 3 <= made <= 3 * size:
            break
        factor = size / made if made else 1e3
        width *= float(np.clip(factor, 1e-3, 1e3)) if math.isfinite(made) else 1e-3
    if size == _SIZES[0] and width > _size_of(dict(policy.model.named_parameters())) / _size_of(policy.direction):
        rule = "where it moves parameters by more than their own size, log pi changes by"
        raise ValueError(f"v must change the policy: {rule} {made:.1g} nats per token")
    return width, differences


def _change_error(
    policy: TokenPolicy, etas: Sequence[float], precisions: tuple[torch.dtype, ...], rows: IntArray, start: FloatArray
) -> float:
    """Return by how much of the change, by sequence, derivatives miss it at the largest eta.

    Or at one where log pi changes by 0.001 nats per token, so that rounding does not count, or by 0.1, if beyond.
    """

    def by_sequence(values: FloatArray) -> FloatArray:
        return np.stack([np.bincount(rows, row)[np.unique(rows)] for row in values])

    error = math.inf
    for dtype in precisions:
        if policy.by_difference or dtype != precisions[0]:
            start = policy.probed(0.0, dtype)
        unit = _scale(start[2])
        eta = float(np.clip(max(etas), 1e-3 * unit, 0.1 * unit))
        nodes = nodes_of(eta * float(np.std(by_sequence(start[2:])[0])))
        taken = eta * np.mean([policy.probed(eta * node, dtype)[2:] for node in nodes], axis=0)
        made = policy.probed(eta, dtype, derivatives=False)[:2] - start[:2]
        error = min(error, _rms(by_sequence(taken - made)) / _rms(by_sequence(made)))
        if error < MOST_CHANGE_ERROR:
            break
    return error


def nodes_of(spread: float) -> tuple[float, ...]:
    """Return where in a step derivatives are taken: in its middle, or at two points if log weights spread widely."""
    return (0.5 - 12**-0.5, 0.5 + 12**-0.5) if spread > WIDE else (0.5,)


def _scale(slopes: FloatArray) -> float:
    """Return the step at which log pi changes by 1 nat per token."""
    return 1 / size if (size := _rms(slopes)) else 1.0


def _size_of(tensors: Tensors) -> float:
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in tensors.values()))


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _error(found: FloatArray, wanted: FloatArray, outliers: float = 0.0) -> float:
    """Return the size of ``found - wanted`` over that of ``wanted``, both without the tokens where they are largest."""
    kept = math.ceil((1 - outliers) * found.shape[1])
    error, size = (np.sort((x**2).sum(axis=0)) for x in (found - wanted, wanted))
    scale = float(max(size[:kept].sum(), 1e-2 * size.sum()))
    return math.sqrt(float(error[:kept].sum()) / scale) if scale else math.inf


def refuse_low_precision(model: Module) -> None:
    """Raise a ValueError if differences of log-probabilities would be lost in rounding."""
    p = min(model.parameters(), key=lambda p: p.dtype.itemsize)
    autocast = torch.is_autocast_enabled(p.device.type)
    tf32 = torch.backends.cuda.matmul.fp32_precision.replace("none", torch.backends.fp32_precision) == "tf32"  # type: ignore[attr-defined]
    if p.dtype.itemsize < 4 or autocast or tf32:
        raise ValueError(
            'change="difference" must not be used in low precision, where rounding exceeds a difference of log-'
            f"probabilities; got {p.dtype}, autocast {autocast}, TF32 {tf32} (which torch.set_float32_matmul_precision"
            '("high") turns on even after allow_tf32 = False): use change="midpoint"'
        )

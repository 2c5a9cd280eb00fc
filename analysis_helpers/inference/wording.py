"""The basis of answers as data (a code, the runs that it concerns, its numbers), and the sentence for each code.

Decisions read codes and numbers (`analysis_helpers.inference.verdicts`); sentences are made only here, from one
template per code. Changing a sentence changes no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .health import CHECKS, Finding, by_check
from .prediction import LEAST

QUESTIONS = {"linear": "Is the step linear?", "recorded": "Is the recorded linear change right?"}

CONCERN_NO_ANSWER = ("noise_share", "step_error")
"""Checks whose flags say how precise a run is, which its standard errors hold already."""

_CONSEQUENCES = {
    "score_z": "The recorded linear change is biased.",
    "log_probability_excess_z": "The recorded linear change is biased.",
    "log_weight_slope": "Both answers: the true change may be that of another step size.",
}

DoubtCode = (
    Literal["unsound", "skipped_step", "nothing_recorded", "linear_terms_missing", "correction_missing"]
    | Literal["no_parabola", "estimates_differ", "weak_reference", "another_unit", "correction_unknown"]
    | Literal["actual_run_unsound", "actual_runs_contradict"]
)


@dataclass(frozen=True)
class Note:
    """A fact as data.

    Attributes
    ----------
    code
        What it is.
    runs
        Names of the runs that it concerns; empty: all.
    values
        Its numbers, and names such as that of a check, by name.
    """

    code: str
    runs: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Doubt(Note):
    """A reason to give no answer."""

    code: DoubtCode


class _Values(dict[str, Any]):
    """Values of a note; parts of sentences that follow from them are made when a template needs one."""

    def __missing__(self, name: str) -> Any:
        return _PARTS[name](self)


def words(note: Note) -> str:
    """Return the sentence for a note."""
    return WORDS[note.code].format_map(_Values(note.values, runs=note.runs))


def explained(flagged: Iterable[Finding]) -> list[str]:
    """Return for each flagged check its values, the runs, and its meaning."""
    return [_flag(_Values(values, runs=runs)) for runs, values in by_check(flagged)]


def plus_minus(mean: float, se: float) -> str:
    """Return a mean and its standard error with as many decimals as the error needs."""
    if math.isnan(mean):
        return "-"
    decimals = _decimals(se)
    return f"{mean:+z.{decimals}f} ± {se:.{decimals}f}"


def low_to_high(low: float, high: float) -> str:
    """Return the ends of an interval with as many decimals as its width needs."""
    decimals = _decimals(high - low)
    return "-" if math.isnan(low) else f"{low:+z.{decimals}f} to {high:+z.{decimals}f}"


def percent(mean: float, se: float) -> str:
    """Return a mean and its standard error, both shares, in per cent."""
    decimals = _percent_decimals(2 * se)
    return f"{mean:+z.{decimals}%} ± {se:.{decimals}%}"


def percent_range(low: float, high: float) -> str:
    """Return the ends of an interval of shares in per cent.

    Examples
    --------
    >>> percent_range(-0.0483, 0.0214), percent_range(0.0002, 0.001)
    ('-5% to +2%', '+0.02% to +0.10%')
    """
    decimals = _percent_decimals(high - low)
    return f"{low:+z.{decimals}%} to {high:+z.{decimals}%}"


def allowed(tolerance: float) -> str:
    """Return a tolerance in per cent of the true change."""
    return f"±{100 * tolerance:.3g}%"


def sizes(n: int | None, low: int | None, high: int | None) -> str:
    """Return required sequences with their interval, where there is one."""
    if (n if high is None else high) == LEAST:
        return f"at most {LEAST}"
    return "-" if n is None else f"{n:,}" if low is None else f"{n:,} ({low:,} to {high:,})"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> counted(1, "run"), counted(2048, "sequence")
    ('1 run', '2,048 sequences')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _decimals(scale: float) -> int:
    return 2 if not 0 <= scale < 0.01 else min(6, 1 - math.floor(math.log10(scale))) if scale else 3


def _percent_decimals(width: float) -> int:
    return min(4, max(0, -math.floor(math.log10(100 * width)))) if 0 < width < math.inf else 0


def _flag(values: _Values) -> str:
    ends = " to ".join(dict.fromkeys(f"{values[end]:.3g}" for end in ("low", "high")))
    at = f" at eta {', '.join(f'{eta:g}' for eta in values['etas'])}" if values["etas"] else ""
    meaning = f"{values['detail']} {CHECKS[values['check']].meaning} {_CONSEQUENCES.get(values['check'], '')}"
    where = f"(limit {values['limit']:.3g}) in {values['names']}{at}"
    return f"{values['check']} {ends} {where}. {meaning.strip().rstrip('.')}"


def _milli(values: _Values, side: str = "") -> str:
    return f"{values[f'{side}mean'] * 1e3:+.3f} ± {values[f'{side}se'] * 1e3:.3f}"


def _beside(values: _Values) -> str:
    p = "; actual runs {} (p = {:.2g} for no difference)"
    return p.format(_milli(values, "small_"), values["p"]) if "p" in values else ""


def _bounds(values: _Values) -> str:
    bounds = [f"{tau:.{_decimals(tau)}f} ({_BY[name]})" for name, tau in values["tau_high"].items()]
    return f": tau may be as large as {' or '.join(bounds)}" if bounds else ""


_BY = {"trend": "by the trend over etas", "matched": "by matched − true"}
_WHETHER = {"linear": "whether the step is linear", "recorded": "whether the recorded linear change is right"}
_OF_ONE = {
    "no": "this update's error is beyond the tolerance",
    "cannot tell": "a yes needs more updates",
}


def _margin_interval(values: _Values) -> str:
    low, high, decimals = values["low"], values["high"], _decimals(values["margin"])
    return "" if math.isnan(low) else f" ({low:.{decimals}f} to {high:.{decimals}f})"


def _same_states(values: _Values) -> str:
    at_etas = ", ".join(f"{_per_cent(error)} at {eta:g}" for eta, error in values["errors"].items())
    extrapolated = f", {_per_cent(values['derivative'])} extrapolated to eta 0" if values["derivative"] else ""
    return f"{at_etas}{extrapolated}: {_SOURCES[values['source']]}"


_SOURCES = {
    "derivative": "an error of the derivative",
    "curvature": "curvature",
    "either": "curvature or an error of the derivative",
}


def _per_cent(error: Mapping[str, float]) -> str:
    decimals = 1 if not 0 < error["se"] < 5e-4 else min(3, -2 - math.floor(math.log10(error["se"])))
    return f"{error['mean']:+z.{decimals}%} ± {error['se']:.{decimals}%}"


_MISMATCH = "the sampler had another temperature or precision, or was another version of the model"
_CAUSES = {
    "truncated": (
        ": the sampler drew from about {support:.0f}{of_vocabulary} tokens at each position{if_larger}. Matched and "
        "the true change are hardly affected (1 to 4 % in simulation), the recorded one can be far off. {options}"
    ),
    "not truncated": (
        ": {mismatch}, as it drew from at least {support:,.0f} tokens at each position. Every change is biased, the "
        "recorded linear change most"
    ),
    "either": ": the sampler truncates, or {mismatch} (at least {support:.0f} tokens at each position). {options}",
    "unknown": ". min_logp, which shows whether the sampler truncates, is not recorded. {options}",
}
_OPTIONS = (
    "Options that keep all tokens: transformers, generate(top_k=0, top_p=1.0, min_p=0); TRL, GRPOConfig(top_k=0, "
    "top_p=1.0); vLLM, SamplingParams(top_k=-1, top_p=1.0). A model's generation_config.json may set "
    "others, also temperature and repetition_penalty"
)
_ALL_TOKENS = "sample from all tokens (transformers: top_k=0, top_p=1.0, min_p=0; it keeps 50 tokens by default)"
_SAME_POLICY = "sample from the policy that is differentiated: same temperature, weights and dtype"
_REMEDIES = {
    "truncated": _ALL_TOKENS,
    "not truncated": _SAME_POLICY,
    "either": f"{_SAME_POLICY}; {_ALL_TOKENS}",
    "unknown": f"{_SAME_POLICY}; {_ALL_TOKENS}",
}
_PARTS: dict[str, Callable[[_Values], Any]] = {
    "of_one": lambda values: _OF_ONE[values["answer"]],
    "either": lambda values: values["yes"] + values["no"],
    "names": lambda values: ", ".join(values["runs"]),
    "s": lambda values: "" if values["count"] == 1 else "s",
    "by": lambda values: _BY[values["method"]],
    "whether": lambda values: _WHETHER[values["question"]],
    "estimate": lambda values: plus_minus(values["mean"], values["se"]),
    "margin_text": lambda values: f"{values['margin']:.{_decimals(values['margin'])}f}",
    "margin_interval": _margin_interval,
    "poorly": lambda values: "not" if values["count"] == 1 else "poorly",
    "over_updates": lambda values: ", mean by random effects" if "tau" in values else " of this update",
    "tau_share": lambda values: f", tau {values['tau'] / abs(values['mean']):.0%}" if "tau" in values else "",
    "matched_size": lambda values: sizes(values["matched_n"], None, None),
    "milli": _milli,
    "beside": _beside,
    "bounds": _bounds,
    "flag": _flag,
    "same_states": _same_states,
    "cause_words": lambda values: _CAUSES[values["cause"]].format_map(values),
    "allowed": lambda values: allowed(values["tolerance"]),
    "remedy": lambda values: _REMEDIES[values["cause"]],
    "mismatch": lambda _: _MISMATCH,
    "options": lambda _: _OPTIONS,
    "of_vocabulary": lambda values: f" of {values['vocabulary']:,}" if values["vocabulary"] else "",
    "if_larger": lambda values: (
        ": it truncates" if values["vocabulary"] else "; if the vocabulary is larger, it truncates"
    ),
}

WORDS = {
    # doubts
    "unsound": "fix or exclude the run: {flag}",
    "skipped_step": "the step changed nothing in {names}: exclude the run",
    "nothing_recorded": (
        "nonlinearity cannot be estimated without two etas per run or the score: measure more etas on the same "
        "sequences, or record the score"
    ),
    "linear_terms_missing": "linear terms by sequence (approx.per_sequence[].gdotv) are not recorded in {names}",
    "correction_missing": "the denominator correction of other runs is not recorded in {names}",
    "no_parabola": (
        "a parabola does not describe the true change beyond eta {up_to:g}: record the score, or measure smaller etas"
    ),
    "estimates_differ": ("the trend and matched − true differ by {difference:+.2f}, {z:.1f} standard errors"),
    "weak_reference": "the reference, the mean true change, is known only to ±{relative:.0%}",
    "another_unit": ("the linear change is {times:,.0f} times the true one: gdotv or entropies may have another unit"),
    "correction_unknown": "whether the linear terms include the denominator correction is not recorded",
    "actual_run_unsound": "the totals of actual run {names} do not add up",
    "actual_runs_contradict": "the actual runs contradict the prediction from the large runs",
    # reasons of an answer
    "this_update": "one run describes only its own update: {of_one}",
    "parabola_up_to": "a parabola describes the true change up to eta {up_to:g}; larger ones are left out of the trend",
    "parabola_untested": (
        "a parabola does not describe the true change at all etas; up to eta {up_to:g} too few are left to test it"
    ),
    "updates_differ": "updates differ too much for a yes: tau is at least {tau_low:.2g}",
    "nonlinearity": "nonlinearity {by}: {estimate}",
    "err_rel": "err_rel by the ratio: {estimate}",
    "score_adjusted": "score-adjusted: {estimate}",
    "actual_runs": (
        "{count:,} actual run{s} against the prediction: p = {p_spread:.2g} for their spread, {p_mean:.2g} for their "
        "mean"
    ),
    "same_states": "on the same states the recorded linear change is off by {same_states}",
    "off_policy": "sequences are off-policy (sampler-trainer mismatch) by {checks}{cause_words}",
    "batch": ("one batch of {n} is off by at most {margin_text}{margin_interval} in {probability:.0%} of cases"),
    # reasons of both answers
    "true_change": "true change{over_updates}: {milli} (10⁻³ nats per token{tau_share}){beside}",
    "health": "health: {flag}",
    # next steps
    "fix_runs": "fix or exclude the runs named above",
    "fix_sampler": "{remedy}: the recorded linear change then has no bias from sampling",
    "clear_change": (
        "measure updates whose true change is clear of 0, at larger etas or on more sequences: errors are divided by it"
    ),
    "larger_etas": "measure larger etas on the same sequences: this makes nonlinearity more precise at every eta",
    "use_matched": (
        "use the matched linear change (the exact derivative on the same sequences), not the recorded one: knowing its "
        "error to {allowed} takes {matched_size} sequences, not {ratio_n:,}"
    ),
    "record_score": "record score, wjlogp_sum and jH_sum of each sequence in every run, in place of gdotv",
    "other_updates": "measure other updates (prompts may be the same): one run shows only its own",
    "more_runs": (
        "{count:,} more run{s} like these: {either:.0%} chance of settling {whether} (yes {yes:.0%}, no {no:.0%})"
    ),
    "more_runs_in_vain": "more runs of this size are unlikely to settle {whether}",
    # not established
    "shared_prompts": (
        "the mean on other prompts: runs share prompts, and with them {share:.0%} of a run's squared standard error"
    ),
    "few_prompts": "precise standard errors: a run has only {prompts} prompts",
    "one_prompt": "anything about other prompts: all responses of a run are to one; given it they are independent",
    "tau": "how much updates differ; with {count:,} large run{s} tau is {poorly} known{bounds}",
    "other_etas": "agreement between etas: step sizes within a run share sequences and are not independent",
    "true_change_closer": "the true change to better than ±{relative:.0%}",
    "independence": "that sequences are independent (prompts sampled more than once?): no prompt ids are recorded",
    "log_weights": "that log weights have the right sign and scale: the score is not recorded",
    "entropies": "that entropies are sums of nats over the sequence: log-probabilities are not recorded",
    "batch_of_n": "how a batch of {n} behaves: no run is as large",
    "no_actual_runs": "that actual small runs fall where predicted: none were given at this eta",
    "actual_runs_unused": "that actual small runs fall where predicted",
    "small_misfit": (
        "a small misfit of the actual runs: with {count:,} run{s} a sign test cannot reach p < {smallest_p:g}"
    ),
}

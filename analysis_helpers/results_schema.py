"""The fields of `results.json` that are in use, as typed structs; everything else in a file is ignored.

Fields stand in the order of real files, which msgspec reads fastest.
"""

from __future__ import annotations

import msgspec


class Diagnostics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What was recorded at one step size; lists have one number a sequence."""

    base_entropy: float
    ess: float | None = None
    normalized_weights: list[float]
    log_weights: list[float] | None = None
    h_base: list[float] | None = None
    h_new: list[float]
    token_counts: list[float]


class Entry(msgspec.Struct):
    """One step size."""

    eta: float
    delta_h_true: float
    diagnostics: Diagnostics


class TrueChange(msgspec.Struct):
    """The true change."""

    entries: list[Entry]


class Extras(msgspec.Struct, omit_defaults=True, gc=False):
    """The parts of a linear term."""

    wjlogp_sum: float | None = None
    jH_sum: float | None = None
    denom_corr_unscaled: float | None = None


class WrittenExtras(Extras, omit_defaults=True, gc=False):
    """The same with a part that is written and not read."""

    denom_corr_scaled: float | None = None  # not read: it is the unscaled one times scale


class Sequence(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The linear term of one sequence."""

    index: int | None = None
    gdotv: float
    length: float | None = None
    extras: Extras | None = None
    vhvv: float | None = None


class Meta(msgspec.Struct, omit_defaults=True):
    """What all linear terms have in common."""

    scale: float | None = None
    T_total: msgspec.Raw = msgspec.Raw(b"null")  # written; in reading, passed over
    H_base_mean: float | None = None


class Variance(msgspec.Struct, omit_defaults=True):
    """Standard errors as stored: of means over shards."""

    num_shards: int | None = None
    se_shard: float | None = None
    se_jackknife: float | None = None
    se_gdotv: float | None = None
    se_vHvv: float | None = None


class Quadratic(msgspec.Struct, omit_defaults=True):
    """The curvature."""

    variance: Variance | None = None


class Approx(msgspec.Struct, omit_defaults=True):
    """The linear change."""

    delta_h_per_lr: float
    variance: Variance | None = None
    per_sequence: list[Sequence] | None = None
    per_sequence_meta: Meta | None = None
    quadratic: Quadratic | None = None


class Results(msgspec.Struct, rename={"true_": "true"}):
    """The whole file."""

    approx: Approx
    true_: TrueChange

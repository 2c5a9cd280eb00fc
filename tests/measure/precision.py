"""How much of the log weights is rounding, by precision of matrix products and by the way the change is taken.

``python -m tests.measure.precision`` prints the table. TF32 and bfloat16 are emulated: the operands of every matrix
product are rounded, tangents too, as a GPU's tensor cores do; products are summed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from analysis_helpers.measure import Batch, sample
from analysis_helpers.measure.measuring import measure
from tests.measure.models import gpt2, normal_direction

BITS = {"tf32": 10, "bf16": 7}  # of mantissa, as stored
PRODUCTS = {torch.addmm: (1, 2), torch.nn.functional.linear: (0, 1), torch.matmul: (0, 1), torch.Tensor.matmul: (0, 1)}


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return float32 values rounded to a mantissa of so many bits."""
    step = 1 << (23 - bits)
    return ((x.contiguous().view(torch.int32) + step // 2) & -step).view(torch.float32)


class Rounding(torch.autograd.Function):
    """Rounds values, and tangents alike."""

    @staticmethod
    def forward(x: torch.Tensor, bits: int) -> torch.Tensor:  # noqa: D102
        return rounded(x, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:  # noqa: D102
        ctx.bits = inputs[1]

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:  # noqa: D102
        return rounded(tangent, ctx.bits)


class LowPrecision(TorchFunctionMode):
    """Rounds the operands of matrix products."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            args = [
                Rounding.apply(  # type: ignore[no-untyped-call]
                    x, self.bits
                )
                if k in PRODUCTS[func]
                else x
                for k, x in enumerate(args)
            ]
        return func(*args, **(kwargs or {}))


def noise_table() -> pd.DataFrame:
    """Return the share of the variance of log weights that is rounding, at an eta where their SD is 0.01.

    Returns
    -------
    DataFrame
        Columns precision, change, noise (share of the variance), change_error (of the true change, relative).
    """
    model = gpt2()
    model.set_attn_implementation("eager")  # so that its products are seen
    exact = gpt2().double()
    batch = sample(model, [[1, 5], [3], [2, 4, 6]] * 40, max_new_tokens=24, eos=0, seed=3)
    v = normal_direction(model, scale=1e-2)
    logs, true = _measured(exact, batch, {name: values.double() for name, values in v.items()}, "difference")
    rows = []
    for precision in ("float32", *BITS):
        for change in ("difference", "midpoint"):
            if precision == "float32":
                found, total = _measured(model, batch, v, change)
            else:
                with LowPrecision(BITS[precision]):
                    found, total = _measured(model, batch, v, change)
            rows.append((precision, change, np.var(found - logs) / np.var(logs), total / true - 1))
    return pd.DataFrame(rows, columns=["precision", "change", "noise", "change_error"])


def _measured(model: Any, batch: Batch, v: dict[str, torch.Tensor], change: Any) -> tuple[NDArray[np.float64], float]:
    [m] = measure(model, batch, v, [_ETA], microbatch=32, change=change).measurements
    assert m.log_weights is not None
    return m.log_weights, m.delta_h_true


_ETA = 0.02

if __name__ == "__main__":
    print(noise_table().to_string(index=False, float_format="{:.2g}".format))

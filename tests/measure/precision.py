"""How much of the log weights is rounding, by precision of matrix products and by the way the change is taken.

``python -m tests.measure.precision`` prints the table. TF32 and bfloat16 are emulated: the operands of every matrix
product are rounded, tangents too, as a GPU's tensor cores do; products are summed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.overrides import TorchFunctionMode

from analysis_helpers.measure import measure, sample
from tests.measure.models import known, normal_direction, tiny

BITS = {"float32": 23, "tf32": 10, "bf16": 7}  # of mantissa, as stored
PRODUCTS = {torch.addmm: (1, 2), torch.nn.functional.linear: (0, 1), torch.matmul: (0, 1), torch.Tensor.matmul: (0, 1)}
ETA = 0.02  # the SD of log weights is 0.01


class LowPrecision(TorchFunctionMode):
    """Rounds the operands of matrix products to a mantissa of so many bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.factor = 2.0 ** (23 - bits) + 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = PRODUCTS.get(func, ()) if self.factor > 2 else ()
        return func(*(self.rounded(x) if k in places else x for k, x in enumerate(args)), **(kwargs or {}))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Return values rounded by Veltkamp's splitting, whose derivative rounds the tangent in the same way."""
        split = x * self.factor
        return split - (split - x)


def noise_table() -> pd.DataFrame:
    """Return the share of the variance of log weights that is rounding, and the relative error of the true change."""
    model, exact = tiny(), tiny().double()
    model.set_attn_implementation("eager")  # so that its products are seen
    batch = sample(model, [[1, 5], [3], [2, 4, 6]] * 40, max_new_tokens=24, eos=0, seed=3)
    v = normal_direction(model, 1e-2)
    wanted = measure(exact, batch, v, [ETA], change="difference").measurements[0]
    rows = []
    for precision, bits in BITS.items():
        for change in ("difference", "midpoint"):
            with LowPrecision(bits):
                m = measure(model, batch, v, [ETA], microbatch=32, change=change).measurements[0]
            noise = np.var(known(m.log_weights) - known(wanted.log_weights)) / np.var(known(wanted.log_weights))
            rows.append((precision, change, noise, m.delta_h_true / wanted.delta_h_true - 1))
    return pd.DataFrame(rows, columns=["precision", "change", "noise", "change_error"])


if __name__ == "__main__":
    print(noise_table().to_string(index=False, float_format="{:.2g}".format))

"""Log pi and entropy of every response token along a line through the parameters, and their derivatives.

Derivatives are taken by forward mode: a dual number carries each parameter and its direction through the model. Where a
model loses them on the way, `checks` has central differences of plain passes taken instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .._checks import FloatArray, checked_count
from ..synthetic import Steps
from .resuming import Arrays, resumed
from .sampling import Batch, IntArray, called, output_layer, undisturbed

Tensors = Mapping[str, Tensor]
Group = tuple[IntArray, tuple[Tensor, ...]]

_CHUNK = 2**24  # logits at once
_PROBED = 16  # sequences that the self-tests look at


class TokenPolicy(Module):
    """A model and N responses; as a module, it returns log pi and entropy of their tokens.

    Arrays concatenate the tokens of the responses, so that a single long response does not make them large.

    Hidden states are captured at the input of the output layer, which then gets one position per sequence; those of the
    response pass through it in chunks. If the model changes logits after that layer, the full logits are used.

    Attributes
    ----------
    groups, probe
        Microbatches, and a small one of the longest sequences, for self-tests.
    vocabulary
        Tokens that the model chooses from: logits that are not -inf.
    dtype
        That of the model, and at least float32.
    width, by_difference
        Half-width of central differences, and whether they are taken in place of forward mode.
    """

    def __init__(self, model: Module, batch: Batch, microbatch: int, v: Tensors | None = None) -> None:
        super().__init__()
        _refuse_what_has_no_forward_mode(model)
        self.model, self.direction, self.whole = model, {} if v is None else checked_direction(model, v), False
        self.width, self.by_difference = 0.0, False
        self.kept: str | None = None  # how the names of files with computed values begin
        self.device = next(model.parameters()).device
        self.dtype = reduce(torch.promote_types, {p.dtype for p in model.parameters()}, torch.float32)
        self.batch, self.steps = batch, Steps(batch.token_counts)
        order = np.argsort(batch.prompt_lengths + batch.token_counts, kind="stable")
        starts = range(0, len(batch), checked_count(microbatch, "microbatch"))
        self.groups = [self._group(order[first : first + microbatch]) for first in starts]
        self.probe = self._group(order[-min(microbatch, _PROBED) :])
        with undisturbed(model):
            head, hidden, logits = self._caught(self.groups[0][1][0][:1].to(self.device))
            self.whole = not torch.equal(head(hidden[:, :1]), logits[:, :1])  # it changes them afterwards
        self.vocabulary = int((logits[0, 0] > -torch.inf).sum())

    def _group(self, chosen: IntArray) -> Group:
        """Return the places of the tokens of some sequences, and the arguments of `forward`."""
        batch, counts = self.batch, self.batch.token_counts
        rows = np.repeat(np.arange(len(chosen)), counts[chosen])
        places = np.concatenate([self.steps.starts[i] + np.arange(counts[i]) for i in chosen])
        columns = batch.prompt_lengths[chosen][rows] + self.steps.positions[places]
        # Padded on the right, where causal attention never looks: no mask, no position ids.
        ids = pad_sequence([torch.from_numpy(batch.sequences[i]) for i in chosen], batch_first=True)
        # The token before predicts the one at this place.
        return places, (ids, *map(torch.from_numpy, (rows, columns - 1)), ids[rows, columns])

    def forward(self, ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Return log pi of ``targets`` and entropy (nats), each after the token at a row and column of ``ids``."""
        head, states, logits = self._caught(ids)
        columns = columns + states.shape[1] - ids.shape[1]  # soft prompts stand in front
        chunk = max(1, _CHUNK // logits.shape[-1])
        parts = []
        for state, target in zip(states[rows, columns].split(chunk), targets.split(chunk), strict=True):
            values = head(state) / self.batch.temperature
            log_probs = torch.log_softmax(values, dim=-1, dtype=torch.promote_types(values.dtype, torch.float32))
            finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # a vocabulary may be padded with -inf
            entropy = -(log_probs.exp() * finite).sum(dim=-1)
            parts.append(torch.stack((log_probs.gather(1, target[:, None])[:, 0], entropy)))
        return torch.cat(parts, dim=1)

    def _caught(self, ids: Tensor) -> tuple[Module, Tensor, Tensor]:
        """Return the output layer, what enters it, and the model's logits; or a layer that does nothing, and logits."""
        captured: list[Tensor] = []

        def keep(_: Module, inputs: tuple[Tensor, ...]) -> Tensor:
            captured.append(inputs[0])
            return inputs[0][:, :1]

        head = None if self.whole else output_layer(self.model)
        with nullcontext() if head is None else head.register_forward_pre_hook(keep):
            logits = called(self.model, ids, {"use_cache": False}).logits
        return (torch.nn.Identity(), logits, logits) if head is None else (head, captured[0], logits)

    def tokens(self, step: float, *, derivatives: bool = True) -> FloatArray:
        """Return log pi and entropy of every token at ``theta + step * v``, and the derivatives of both along v.

        Shape ``(4, tokens)``; the derivatives are 0 if not requested.
        """
        out = np.zeros((4, self.steps.lengths.sum()))
        if derivatives and self.by_difference:
            low, high = (self.tokens(step + side, derivatives=False) for side in (-self.width, self.width))
            out[:2], out[2:] = self.tokens(step, derivatives=False)[:2], (high - low)[:2] / (2 * self.width)
            return out
        moved = self._moved(step, None)
        along = self._along(moved) if derivatives else {}

        def computed(group: Group) -> Arrays:
            values, slopes = self._passed(group[1], moved, along)
            if derivatives and slopes is None:  # what is missing is not taken for 0
                slopes = self.differences(group[1], step, self.width)
            return (values if slopes is None else np.concatenate((values, slopes)),)

        bar = tqdm(self.groups, desc=f"step {step:g}", unit="microbatch", disable=None, leave=False)
        path = None if self.kept is None else Path(f"{self.kept}-{step!r}-{len(along)}.values")
        for (places, _), [values] in resumed(path, bar, computed):
            out[: len(values), places] = values
        return out

    def probed(self, step: float, dtype: torch.dtype | None, *, derivatives: bool = True) -> FloatArray:
        """Return `tokens` of the probe alone, computed in ``dtype``; derivatives that are missing are 0."""
        given, moved = self.probe[1], self._moved(step, dtype)
        values, slopes = self._passed(
            given, moved, self._along(moved) if derivatives and not self.by_difference else {}
        )
        if derivatives and self.by_difference:
            slopes = self.differences(given, step, self.width, dtype)
        return np.concatenate((values, np.zeros_like(values) if slopes is None else slopes))

    def differences(
        self, given: tuple[Tensor, ...], step: float, width: float, dtype: torch.dtype | None = None
    ) -> FloatArray:
        """Return the derivatives of some sequences as central differences of plain passes, shape ``(2, tokens)``."""
        low, high = (self._passed(given, self._moved(step + side, dtype), {})[0] for side in (-width, width))
        return (high - low) / (2 * width)

    def _passed(
        self, given: tuple[Tensor, ...], moved: Tensors, along: Tensors
    ) -> tuple[FloatArray, FloatArray | None]:
        """Return log pi and entropy of some sequences, and what forward mode gives as their derivatives."""
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(moved[name], tangent) for name, tangent in along.items()}
            try:
                result = functional_call(self, {**moved, **duals}, tuple(x.to(self.device) for x in given))
            except NotImplementedError as error:
                rule = "consist of operations that have a forward mode"
                hint = " (load it with experts_implementation='eager')" if "grouped_mm" in str(error) else ""
                raise ValueError(f"model must {rule}{hint}: {error}") from error
            pair = forward_ad.unpack_dual(result)
            return _array(pair.primal), None if pair.tangent is None else _array(pair.tangent)

    def _along(self, moved: Tensors) -> dict[str, Tensor]:
        """Return the direction of each parameter that moves, in the dtype of that parameter."""
        return {(key := f"model.{name}"): values.to(moved[key]) for name, values in self.direction.items()}

    def _moved(self, step: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Return the parameters that v names at ``theta + step * v``; with a dtype, all parameters and buffers in it.

        Raises if rounding removes most of the step in the model's own dtype.
        """
        moved, lost, made = {}, 0.0, 0.0
        if dtype is not None:
            tensors = (*self.model.named_parameters(), *self.model.named_buffers())
            moved = {f"model.{name}": x.detach().to(dtype) for name, x in tensors if x.is_floating_point()}
        for name, values in self.direction.items():
            p = self.model.get_parameter(name).detach()
            wanted = step * values.to(p.device).double()
            to = (p.double() + wanted).to(dtype) if dtype is not None else p + wanted.to(p.dtype)
            moved[f"model.{name}"] = to
            rounding = to.double() - p.double() - wanted
            lost, made = lost + float(rounding.square().sum()), made + float(wanted.square().sum())
        if dtype is None and lost > made / 4:
            own = str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"eta must be large enough to move the parameters: a step of {step:g} v is lost in the rounding of "
                f"{own} (error {(lost / made) ** 0.5:.0%} of the step); load the model in float32"
            )
        return moved


def _array(x: Tensor) -> FloatArray:
    values: FloatArray = x.double().cpu().numpy()
    return values


def checked_direction(model: Module, v: Tensors) -> dict[str, Tensor]:
    """Return ``v`` by the first name of each parameter: tied weights have several."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    direction: dict[str, Tensor] = {}
    for name, values in v.items():
        if name not in parameters:
            kind = "a buffer" if name in dict(model.named_buffers()) else "not in the model"
            raise ValueError(f"v must name parameters of the model; {name!r} is {kind}")
        shape, own = tuple(parameters[name].shape), first[parameters[name]]
        if values.shape != shape:
            raise ValueError(f"v[{name!r}] must have shape {shape}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"v[{name!r}] must be finite")
        if own in direction and not torch.equal(values.to(direction[own]), direction[own]):
            raise ValueError(
                f"v must move tied weights together; {name!r} is {own!r} in this model, but moves otherwise"
            )
        direction[own] = values.detach()
    if not any(values.any() for values in direction.values()):
        raise ValueError("v must move something; it is zero everywhere")
    return direction


def _refuse_what_has_no_forward_mode(model: Module) -> None:
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise ValueError("model must not be quantised: rounded weights have no derivative; load it in float32")
    kind = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kind not in (None, "eager", "sdpa"):
        raise ValueError(
            f"model must use attention that has a forward mode, 'eager' or 'sdpa', got {kind!r}; "
            'load it with attn_implementation="sdpa"'
        )

"""The update direction v: what a training step adds to the parameters, per unit of learning rate."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from .._checks import checked_eta


def direction_from_optimizer(model: Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what the optimizer's next step adds to each parameter, per unit of learning rate.

    Call it after ``backward`` (and clipping), before ``step``. The step is made on copies, one parameter at a time, at
    learning rate 1 and in float64: parameters, optimizer state, hooks and schedule stay as they are. So v is exact to
    float32 for any dtype of the model, if a step treats each parameter separately and is proportional to the learning
    rate. This holds for SGD, Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019), weight decay included.

    Parameters
    ----------
    model
        The model whose parameters the optimizer moves.
    optimizer
        With gradients in place. If groups have different learning rates, their ratios to the first group's are kept,
        and eta is the learning rate of the first group.

    Returns
    -------
    dict
        Name of a parameter -> change per unit of learning rate, of its shape and in at least float32, for every
        parameter that has a gradient.

    Raises
    ------
    ValueError
        If no parameter has a gradient, or the optimizer moves parameters that the model does not have.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    >>> (3.0 * model.weight).sum().backward()
    >>> direction_from_optimizer(model, optimizer)["weight"].tolist()  # minus the gradient
    [[-3.0]]
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # as wrapped by accelerate
    names = {p: name for name, p in model.named_parameters()}
    moved = [(p, group) for group in inner.param_groups for p in group["params"] if p.grad is not None]
    if not moved:
        raise ValueError("optimizer must have gradients in place: call backward() first")
    if unknown := [str(tuple(p.shape)) for p, _ in moved if p not in names]:
        shapes = ", ".join(unknown[:3])
        raise ValueError(f"optimizer must move parameters of the model only; it has {len(unknown)} others ({shapes})")
    first = float(inner.param_groups[0]["lr"])
    return {names[p]: _step_alone(inner, group, p, float(group["lr"]) / first if first else 1.0) for p, group in moved}


def difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor], lr: float) -> dict[str, Tensor]:
    """Return ``(after - before) / lr`` for every tensor that moved: the direction of a past step.

    Prefer `direction_from_optimizer`: after a step, changes below parameter precision are lost.

    Parameters
    ----------
    before, after
        Name -> tensor, as from ``state_dict()``: before and after one step. Clone `before`; training updates it in
        place.
    lr
        Learning rate of the step.

    Returns
    -------
    dict
        Name of a tensor -> its direction, of its shape and in at least float32.

    Raises
    ------
    ValueError
        If names or shapes differ, ``lr`` is not positive, nothing moved, only ``after`` was rounded to bfloat16, or
        less than half of the elements moved in rows that moved at all. In the last case the step was made in bfloat16,
        or is smaller than the rounding of the parameters.

    Examples
    --------
    >>> one, other = {"w": torch.zeros(2)}, {"w": torch.tensor([1e-6, -2e-6])}
    >>> [round(x, 6) for x in difference(one, other, 1e-6)["w"].tolist()]
    [1.0, -2.0]
    """
    checked_eta(lr, "lr")
    one, other = ({f"{name} {tuple(x.shape)}" for name, x in state.items()} for state in (before, after))
    if different := ", ".join(sorted(one ^ other)[:3]):
        raise ValueError(f"before and after must hold the same names, of the same shapes; only one has {different}")
    if _in_16_bits(after) and not _in_16_bits(before):
        raise ValueError(
            "after must not be rounded to bfloat16 where before is not: the rounding would be most of the difference; "
            "save both in float32"
        )
    made: dict[str, Tensor] = {}
    changed = reached = 0
    for name, old in before.items():
        exact = torch.promote_types(old.dtype, torch.float32)
        step = after[name].to(exact) - old.to(exact)
        if old.is_floating_point() and step.any():
            made[name] = step / lr
            rows = torch.atleast_2d(step).flatten(1)
            rows = rows[rows.any(dim=1)]  # an embedding moves where its token was seen
            changed, reached = changed + int(rows.count_nonzero()), reached + rows.numel()
    if not made:
        raise ValueError("before and after must differ, got the same values: clone before the step")
    if changed < reached / 2:
        raise ValueError(
            f"before and after must differ in most elements, got {changed / reached:.0%}: a step with this lr is "
            "lost in the rounding of the parameters (bfloat16?); keep them in float32, or use direction_from_optimizer"
        )
    return made


def _in_16_bits(state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(x, x.bfloat16().to(x.dtype)) for x in state.values() if x.is_floating_point())


def _step_alone(optimizer: Optimizer, group: dict[str, Any], p: Tensor, rate: float) -> Tensor:
    """Return what a step at learning rate ``rate`` adds to one parameter, made in float64 on copies."""
    alone = p.detach().double().clone().requires_grad_()
    alone.grad = None if p.grad is None else p.grad.detach().double()
    twin = copy.copy(optimizer)  # as pickled: the same settings, no hooks
    plain: dict[str, Any] = {name: False for name in ("capturable", "foreach", "fused") if name in group}
    twin.param_groups = [{**group, **plain, "params": [alone], "lr": rate}]
    state = copy.deepcopy(optimizer.state.get(p, {}))
    exact = {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in state.items()}
    twin.state = defaultdict(dict, {alone: exact})
    twin.step()
    return (alone.detach() - p.detach().double()).to(torch.promote_types(p.dtype, torch.float32))

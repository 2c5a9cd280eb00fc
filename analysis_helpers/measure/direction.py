"""The update direction v: what a training step adds to the parameters, per unit of learning rate."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from .._checks import checked_eta

_MOST_ERROR = 0.01  # of a step that is made, from rate times v
_MOST_ROUNDING = 0.1  # of the step between two states


class NoStepError(ValueError):
    """The optimizer makes no step now, as happens: gradients are 0 or overflowed, or its rate is 0."""


def direction_from_optimizer(model: Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what the optimizer's next step adds to each parameter, per unit of learning rate.

    Call it after ``backward`` (and clipping), before ``step``. The step is made on copies, one parameter at a time, at
    learning rate 1 and in float64: parameters, optimizer state, hooks and schedule stay as they are. So v is exact to
    float32 for any dtype of the model, if a step treats each parameter separately and is proportional to the learning
    rate. This holds for SGD, Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019), weight decay included;
    it is tested: each group's step is made too, at its own rate, on a float32 copy of the group.

    Parameters
    ----------
    model
        The model whose parameters the optimizer moves.
    optimizer
        With gradients in place; those that a ``GradScaler`` has scaled are unscaled. If groups have different learning
        rates, their ratios to the first group's are kept, and eta is the learning rate of the first group.

    Returns
    -------
    dict
        Name of a parameter -> change per unit of learning rate, of its shape and in at least float32, for every
        parameter that has a gradient.

    Raises
    ------
    NoStepError
        A ValueError: if gradients are all zero or one is not finite, or the first group's learning rate is 0 (warm-up).
    ValueError
        If no parameter has a gradient, the optimizer moves parameters that the model does not have, or its step is not
        the rate times a direction (norms clipped inside ``step``, Adafactor).

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    >>> (3.0 * model.weight).sum().backward()
    >>> direction_from_optimizer(model, optimizer)["weight"].tolist()  # minus the gradient
    [[-3.0]]
    """
    inner, scale = _unwrapped(optimizer)
    names = {p: name for name, p in model.named_parameters()}
    groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in inner.param_groups]
    moved = [p for _, members in groups for p in members]
    if not moved:
        raise ValueError("optimizer must have gradients in place: call backward() first")
    if unknown := [str(tuple(p.shape)) for p in moved if p not in names]:
        shapes = ", ".join(unknown[:3])
        raise ValueError(f"optimizer must move parameters of the model only; it has {len(unknown)} others ({shapes})")
    if wrong := [names[p] for p in moved if not p.grad.isfinite().all()]:
        raise NoStepError(f"gradients must be finite, not those of {wrong[0]!r}; a GradScaler skips such a step")
    if not any(p.grad.any() for p in moved):
        raise NoStepError("gradients must not all be zero: this step follows no direction")
    rates = [group["lr"] for group, _ in groups]
    if rates[0] is None:
        raise ValueError("the optimizer must have a learning rate, got None (Adafactor has a rate of its own)")
    if not rates[0]:
        rule = "must have a learning rate above 0, to which those of other groups are compared"
        raise NoStepError(f"the optimizer's first group {rule}, got {float(rates[0])} (as at the start of a warm-up)")
    first, v = float(rates[0]), dict[str, Tensor]()
    for k, (group, members) in enumerate(groups):
        rate = float(group["lr"])
        alone = [_step(inner, group, [p], rate / first, scale)[0] for p in members]
        _require_rate_times(alone, inner, group, members, scale, f"group {k}", first)
        v |= {names[p]: x.to(torch.promote_types(p.dtype, torch.float32)) for p, x in zip(members, alone, strict=True)}
    return v


def _unwrapped(optimizer: Any) -> tuple[Optimizer, float]:
    """Return the optimizer inside those of accelerate, and what its gradients are still multiplied by."""
    scale = 1.0
    while hasattr(optimizer, "optimizer"):
        scaler, optimizer = getattr(optimizer, "scaler", None), optimizer.optimizer
        if scaler is not None and scaler.is_enabled():
            stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
            scale = scaler.get_scale() if stage.name == "READY" else 1.0
    given = getattr(optimizer, "grad_scale", None)  # to a fused optimizer, which unscales on its own
    return optimizer, scale if given is None else float(given)


def _step(
    optimizer: Optimizer,
    group: dict[str, Any],
    members: Sequence[Tensor],
    rate: float,
    scale: float,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Return what a step at learning rate ``rate`` adds to some parameters of a group, made on copies."""
    copies = [p.detach().to(dtype, copy=True).requires_grad_() for p in members]
    twin: Any = copy.copy(optimizer)  # as pickled: settings of groups, no hooks
    for name, value in vars(optimizer).items():
        if name not in vars(twin) and not callable(value):  # settings of its own, but not a step that others wrapped
            setattr(twin, name, copy.copy(value))
    twin.grad_scale = twin.found_inf = None
    plain: dict[str, Any] = {name: False for name in ("capturable", "foreach", "fused") if name in group}
    twin.param_groups = [{**group, **plain, "params": copies, "lr": rate}]
    twin.state = defaultdict(dict)
    for p, alone in zip(members, copies, strict=True):
        alone.grad = p.grad.detach().to(dtype, copy=True) / scale  # type: ignore[union-attr]
        state = copy.deepcopy(optimizer.state.get(p, {}))
        floating = {k: x.to(dtype) for k, x in state.items() if isinstance(x, Tensor) and x.is_floating_point()}
        twin.state[alone] = state | floating
    twin.step()
    return [alone.detach() - p.detach().to(dtype) for p, alone in zip(members, copies, strict=True)]


def _require_rate_times(
    v: Sequence[Tensor],
    optimizer: Optimizer,
    group: dict[str, Any],
    members: Sequence[Tensor],
    scale: float,
    where: str,
    first: float,
) -> None:
    """Raise a ValueError if a step of the whole group, at its rate, is not the first rate times v."""
    wanted, rate = [first * x.float() for x in v], float(group["lr"])
    if (
        error := _distance(_step(optimizer, group, members, rate, scale, torch.float32), wanted, members)
    ) > _MOST_ERROR:
        alone = [_step(optimizer, group, [p], rate, scale, torch.float32)[0] for p in members]
        by_itself = _distance(alone, wanted, members) < error / 2
        cause = "parameters change each other's steps (norms clipped inside step?)"
        if not by_itself:
            cause = "it is not proportional to the rate (Adafactor and others have a rate of their own)"
        raise ValueError(f"the optimizer's step must be rate times v; that of {where} is off by {error:.0%}: {cause}")


def _distance(made: Sequence[Tensor], wanted: Sequence[Tensor], members: Sequence[Tensor]) -> float:
    """Return the size of ``made - wanted`` over that of ``wanted``, beyond the rounding of parameters in float32."""
    off, size, rounding = (
        sum(float(x.detach().double().square().sum()) for x in tensors) ** 0.5
        for tensors in ([one - other for one, other in zip(made, wanted, strict=True)], wanted, members)
    )
    return max(off - torch.finfo(torch.float32).eps * rounding, 0.0) / size if size else float(off > 0)


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
        Name of a tensor -> its direction, of its shape and in at least float32. Tied weights, one tensor under several
        names, are there once.

    Raises
    ------
    ValueError
        If names or shapes differ, ``lr`` is not positive, nothing moved, a tensor is not finite, or the rounding of
        ``after`` to the dtype that its values have (float32, or 16 bits by tensor) is more than a tenth of the step.

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
    made: dict[str, Tensor] = {}
    seen, sizes, roundings = set[tuple[object, ...]](), list[float](), dict[str, float]()
    for name, old in before.items():
        new = after[name].detach()
        storage = (new.untyped_storage().data_ptr(), new.storage_offset(), new.shape, new.stride())
        exact = torch.promote_types(old.dtype, torch.float32)
        step = new.to(old.device, exact) - old.detach().to(exact)
        if storage in seen or not old.is_floating_point() or not step.any():
            continue
        seen.add(storage)
        made[name] = step / lr
        sizes.append(float(step.double().square().sum()))
        roundings[name] = _rounding(new, step)
    if not made:
        raise ValueError("before and after must differ, got the same values: clone before the step")
    lost = (sum(roundings.values()) / sum(sizes)) ** 0.5
    if not lost < _MOST_ROUNDING:
        worst = max(roundings, key=roundings.__getitem__)
        raise ValueError(
            f"the step from before to after must be larger than the rounding of after, which is {lost:.0%} of it "
            f"({_grid(after[worst])} values in {worst!r}): save both in float32, or use direction_from_optimizer"
        )
    return made


def _grid(x: Tensor) -> str:
    """Return the narrowest dtype that holds all values of a tensor but whole numbers, as of norms before training."""
    x = x[x != x.round()]
    kinds = (torch.bfloat16, torch.float16, torch.float32) if len(x) else (torch.float32,)
    return str(next((kind for kind in kinds if torch.equal(x, x.to(kind).to(x.dtype))), x.dtype)).removeprefix("torch.")


def _rounding(new: Tensor, step: Tensor) -> float:
    """Return the squared size of the rounding of a tensor, in rows that moved: an embedding moves where it was used."""
    rows = torch.atleast_2d(step).flatten(1).any(dim=1)
    values = torch.atleast_2d(new).flatten(1)[rows].double()
    eps = torch.finfo(getattr(torch, _grid(new))).eps
    spacing = torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - 1) * eps
    return float(spacing[values != 0].square().sum()) / 12

"""The command ``measure``: what can fail is tried before a model is loaded, and nothing that was computed is lost."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from .._checks import FloatArray
from ..runs import Run
from .checks import Change
from .direction import difference
from .measuring import entropy_baseline, measure
from .resuming import claimed
from .sampling import Batch, drawn_prompts, ends_of, load_model, read_prompts, read_responses, sample

_PILOT = 64  # responses from which several processes make the baseline that they share


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of the command. Of several processes each measures a slice, and the last to finish merges them."""

    model: str
    prompts: str | None
    responses: str | None
    before: str | None
    after: str
    lr: float
    etas: tuple[float, ...]
    sequences: int
    max_new_tokens: int
    temperature: float
    sample_microbatch: int
    microbatch: int
    change: Change
    device: str
    seed: int
    rank: int
    world_size: int

    def run(self, out: Path) -> Path | None:
        """Write the run below ``out``, and return its path; None if other processes have not finished theirs.

        Raises
        ------
        ValueError, OSError
            As `read_prompts`, `read_responses`, `difference`, `sample` and `measure` do; or if prompt and response are
            longer than the model's positions, or its parameters larger than the memory.
        RuntimeError, AssertionError
            Of PyTorch: there is no such device, or too little memory on it.
        """
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be below the world size, {self.world_size}, got {self.rank}")
        if self.responses is not None:
            given: Batch | list[Any] = read_responses(self.responses, temperature=self.temperature)
        else:
            given = drawn_prompts(read_prompts(str(self.prompts), self.model), self.sequences, self.seed)
        torch.empty(0, device=self._device)
        self._require_room(given)
        command = {name: str(value) for name, value in asdict(self).items() if name != "rank" and value is not None}
        with claimed(out / f"E_{len(given)}", command, self.rank) as claim:
            return claim.finish(self._measured(given, claim.work), self.rank, self.world_size)

    @property
    def _device(self) -> str:
        """Of several processes on a machine, as torchrun starts them, each has its own GPU."""
        return self.device if self.device != "cuda" else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"

    def _require_room(self, given: Batch | list[Any]) -> None:
        """Raise if a model is missing, responses exceed its positions, or what is loaded at once exceeds the memory."""
        configs: dict[str, Any] = {}
        for name in filter(None, (self.after, self.before, self.model)):
            with suppress(ValueError):  # the folder of an adapter
                configs[name] = transformers.AutoConfig.from_pretrained(name)
        if (config := configs.get(self.model)) is None:
            return
        text = config.get_text_config()
        rotary = any(hasattr(text, name) for name in ("rope_parameters", "rope_theta"))  # has no last position
        positions = math.inf if rotary else getattr(text, "max_position_embeddings", math.inf)
        if isinstance(given, Batch):
            longest = int((given.prompt_lengths + given.token_counts).max())
        else:
            longest = max(map(len, given)) + self.max_new_tokens
        if longest > positions:
            rule = f"must fit the model's {positions} positions, got up to {longest}"
            raise ValueError(f"tokens of prompt and response (max_new_tokens) {rule}")
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        needed, memory = 4 * sum(p.numel() for p in model.parameters()), math.inf
        if self._device.startswith("cuda"):
            memory = torch.cuda.mem_get_info(self._device)[1]
        elif hasattr(os, "sysconf"):
            needed *= 2 if self.before is None else 3  # with the models before and after the step
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            sizes = f"{needed / 2**30:,.1f} GiB of parameters in float32, got {memory / 2**30:,.1f} GiB"
            raise ValueError(f"memory of {self._device} must hold the models: {sizes}")

    def _measured(self, given: Batch | list[Any], work: Path) -> Run:
        policy = load_model(self.model)
        old = load_model(self.before) if self.before else policy
        v = difference(old.state_dict(), load_model(self.after).state_dict(), self.lr)
        del old
        policy.to(self._device)
        baseline = self._baseline(policy, given) if self.world_size > 1 else None
        seed = [self.seed, self.rank] if self.world_size > 1 else self.seed
        batch = self._responses(policy, given, slice(self.rank, None, self.world_size), seed, work)
        options: dict[str, Any] = {"microbatch": self.microbatch, "change": self.change}
        return measure(policy, batch, v, self.etas, baseline=baseline, keep=work, **options)

    def _baseline(self, policy: Any, given: Batch | list[Any]) -> FloatArray:
        """Return a baseline that all processes make alike, from responses that none measures if it samples them."""
        pilot = self._responses(policy, given, slice(_PILOT), [self.seed, self.world_size], None)
        positions = int(given.token_counts.max()) if isinstance(given, Batch) else self.max_new_tokens
        return entropy_baseline(policy, pilot, positions, microbatch=self.microbatch)

    def _responses(
        self, policy: Any, given: Batch | list[Any], part: slice, seed: int | list[int], keep: Path | None
    ) -> Batch:
        if isinstance(given, Batch):
            return given.part(part)
        drawn: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        ends, microbatch = ends_of(policy), self.sample_microbatch
        return sample(policy, given[part], eos=ends, seed=seed, microbatch=microbatch, keep=keep, **drawn)

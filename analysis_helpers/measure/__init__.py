"""From a causal language model to runs: sample responses, take the direction of a step, measure the change of entropy.

Needs PyTorch and transformers, the extra ``measure``; no other part of the package imports them.

**A loop of your own**, any optimizer; the hook sees each step just before it is made:

    optimizer.register_step_pre_hook(before_step)

    def before_step(optimizer, args, kwargs):
        v = direction_from_optimizer(model, optimizer)
        batch = sample(model, prompts, max_new_tokens=256, eos=eos, seed=step)
        write_run(f"my_runs/E_{len(batch)}/step_{step}/results.json", measure(model, batch, v, etas))

**Several processes or machines**: each measures its slice and writes a run; `merge_runs` joins them. With one baseline,
made from a pilot batch with the same seed everywhere, the merged run is exactly that of the whole batch:

    baseline = entropy_baseline(model, sample(model, prompts[:256], max_new_tokens=256, eos=eos, seed=1), 256)
    batch = sample(model, prompts[rank::world_size], max_new_tokens=256, eos=eos, seed=[2, rank])
    write_run(f"shards/{rank:03d}/results.json", measure(model, batch, v, etas, baseline=baseline))

    write_run("my_runs/E_2048/run_01/results.json", merge_runs(load_runs("shards")))  # once, afterwards

Rank and world size come from whatever starts the processes (``RANK`` and ``WORLD_SIZE`` under torchrun,
``SLURM_ARRAY_TASK_ID``, the argument of a Ray or Dask task): they need not talk to each other.
"""

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"{error}; analysis_helpers.measure needs the extra: pip install 'entropy-batch-diagnostics[measure]'",
        name=error.name,
    ) from error

from .direction import difference as difference, direction_from_optimizer as direction_from_optimizer
from .measuring import entropy_baseline as entropy_baseline, measure as measure
from .sampling import Batch as Batch, sample as sample
from .training import (
    MeasureEntropy as MeasureEntropy,
    drawn_prompts as drawn_prompts,
    load_policy as load_policy,
    measured_steps as measured_steps,
    reinforce as reinforce,
    tiny_model as tiny_model,
    write_demo as write_demo,
)

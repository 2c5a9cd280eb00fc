"""From a causal language model to runs: sample responses, take the direction of a step, measure the change of entropy.

Needs PyTorch and transformers, the extra ``measure``; no other part of the package imports them.

**Your own training loop**, with any optimizer; the hook runs just before each step::

    def before_step(optimizer, args, kwargs):
        v = direction_from_optimizer(model, optimizer)
        batch = sample(model, prompts, max_new_tokens=256, eos=eos, seed=next(numbers))
        write_run(f"my_runs/E_{len(batch)}/{next(names)}/results.json", measure(model, batch, v, etas))

    optimizer.register_step_pre_hook(before_step)

**Several processes or machines**: each measures its slice of the prompts and writes a run. With one baseline, from a
pilot batch with the same seed everywhere, the merged run is exactly that of the whole batch::

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    pilot = sample(model, prompts[:256], max_new_tokens=256, eos=eos, seed=1)
    baseline = entropy_baseline(model, pilot, 256)
    batch = sample(model, prompts[rank::world_size], max_new_tokens=256, eos=eos, seed=[2, rank])
    write_run(f"shards/{rank:03d}/results.json", measure(model, batch, v, etas, baseline=baseline))

and finally, when all processes have finished::

    write_run("my_runs/E_2048/run_01/results.json", merge_runs(load_runs("shards")))

torchrun sets ``RANK`` and ``WORLD_SIZE``; in a Slurm array they are ``SLURM_ARRAY_TASK_ID`` and
``SLURM_ARRAY_TASK_COUNT``; with Ray or Dask they are arguments of a task. The processes need not communicate. The
command ``measure`` does the same with ``--rank`` and ``--world-size``.

**Responses of another sampler**, such as vLLM; the policy is measured at their temperature::

    outputs = llm.generate(texts, SamplingParams(temperature=0.7, top_k=-1, top_p=1.0, min_p=0.0, max_tokens=256))
    run = measure(model, Batch.from_vllm(outputs, temperature=0.7), v, etas)
"""

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    hint = 'measuring needs PyTorch and transformers: pip install ".[measure]" in a checkout'
    raise ImportError(f"{error}; {hint}", name=error.name) from error

from .command import Command as Command
from .direction import (
    NoStepError as NoStepError,
    difference as difference,
    direction_from_optimizer as direction_from_optimizer,
)
from .measuring import (
    MeasureEntropy as MeasureEntropy,
    entropy_baseline as entropy_baseline,
    measure as measure,
    measured_steps as measured_steps,
    summary as summary,
)
from .sampling import (
    Batch as Batch,
    drawn_prompts as drawn_prompts,
    load_model as load_model,
    load_policy as load_policy,
    read_prompts as read_prompts,
    read_responses as read_responses,
    sample as sample,
)

"""Worlds of known truth for both questions: many updates, each with its own curvature and its own standard error.

Each update sharpens a small policy, by other weights for each prompt and state, so that updates differ in curvature and
in sampling error together. All updates of a world have the same exact derivative; their exact changes at every step
size follow without sampling. A `Population` holds the updates that runs are drawn from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np

from analysis_helpers import err_rel_standard_error
from analysis_helpers._checks import FloatArray
from analysis_helpers.inference.trend import fit_trend
from analysis_helpers.runs import Run
from analysis_helpers.synthetic.policy import (
    Policy,
    entropy_change,
    entropy_derivative,
    random_policy,
    sample_sequences,
)
from analysis_helpers.synthetic.runs import evaluate, update_direction
from tests.calibration.drawing import short_policy

ETAS = (1e-6, 2e-6, 4e-6, 8e-6)
ASKED = 8e-6
ESTIMATORS = ("trend", "matched", "ratio")
LEAST_ESS_SHARE, MOST_CUBIC = 0.6, 0.1  # at the largest eta; other updates are not drawn
_UNIT = 1e-6  # of `World.step`
_PILOT = 500  # sequences from which the standard errors of an update are known, to a few percent
_MANY_PROMPTS = 100

Weights = Callable[[Policy, np.random.Generator], FloatArray]


def by_state(policy: Policy, rng: np.random.Generator) -> FloatArray:
    """Return how strongly each prompt and state is sharpened: more where entropy is high, or low, as it comes."""
    entropies = policy.state_entropies()[..., None]
    return np.asarray(rng.exponential(size=entropies.shape) * entropies ** rng.uniform(-1, 4))


def blended(policy: Policy, rng: np.random.Generator) -> FloatArray:
    """Return a mixture of even weights and `by_state`: the more of the latter, the more nonlinear, and the noisier."""
    log_probs, uneven, share = policy.log_probs(), by_state(policy, rng), rng.uniform(-1.5, 2.5)
    even, other = (entropy_derivative(policy, raw) for raw in (log_probs, log_probs * uneven))
    return np.asarray((1 - share) / even + share * uneven / other)


def on_few_prompts(policy: Policy, rng: np.random.Generator) -> FloatArray:
    """Return weights that are 0 on all prompts but eight: few sequences carry the whole change."""
    changed = np.zeros((len(policy.logits), 1, 1))
    changed[rng.choice(len(changed), 8, replace=False)] = rng.exponential(size=(8, 1, 1)) + 0.2
    return changed * by_state(policy, rng)


def by_prompt(policy: Policy, rng: np.random.Generator) -> FloatArray:
    """Return weights that vary between states and, for all states together, between prompts."""
    prompts, tokens, _ = policy.logits.shape
    return np.asarray(rng.exponential(size=(1, tokens, 1)) * rng.exponential(size=(prompts, 1, 1)))


@dataclass(frozen=True)
class World:
    """How runs are made, of n sequences each.

    Every update lowers per-token entropy by ``step`` nats per token at eta 1e-6, to first order; ``weights`` says how
    much in each prompt and state. Of a ``pool`` of updates those within `LEAST_ESS_SHARE` and `MOST_CUBIC` are kept.
    All runs of a replicate share their ``prompts``, if any, with equally many sequences; 0: sequences are independent.
    """

    policy: Callable[[], Policy]
    step: float
    n: int = 256
    weights: Weights = by_state
    prompts: int = 0
    pool: int = 60


def _policy(shape: tuple[int, int] = (6, 12), **options: float) -> Callable[[], Policy]:
    return lambda: random_policy(np.random.default_rng(3), shape, **options)  # type: ignore[arg-type]


def _of_many_prompts(deviation: float, length: int, end_logit: float = -9.0) -> Callable[[], Policy]:
    """Return a policy of 100 prompts: the shorter its sequences, the more they have in common within a prompt."""

    def policy() -> Policy:
        few = random_policy(np.random.default_rng(3), shape=(1, 12), end_logit=end_logit).logits
        rng = np.random.default_rng(4)
        return Policy(few + rng.normal(0, deviation, (_MANY_PROMPTS, *few.shape[1:])), length)

    return policy


DIFFERING = "steps that differ"
SHORT = _policy(end_logit=4.5, max_length=12)
WORLDS = {
    DIFFERING: World(short_policy, 0.012, weights=blended, pool=400),
    "short sequences": World(SHORT, 0.02, pool=150),
    "short sequences, runs of 2048": World(SHORT, 0.02, 2048, pool=150),
    "large steps": World(short_policy, 0.018, pool=100),
    "heavy tails": World(_policy(shape=(40, 12), end_logit=2.0, max_length=30), 0.003, 512, on_few_prompts),
} | {
    f"{prompts} shared prompts, correlation {correlation}": World(policy, step, 256, weights, prompts)
    for correlation, policy, weights, step in (
        (0.1, _of_many_prompts(1.0, 20, end_logit=2.0), by_state, 0.012),
        (0.5, _of_many_prompts(3.0, 3), by_prompt, 0.006),
        (0.8, _of_many_prompts(1.0, 2), by_prompt, 0.006),
    )
    for prompts in (16, 64)
}


@dataclass(frozen=True, eq=False)
class Updates:
    """The updates of a world: what they change exactly, and the sampling errors of a run.

    Changes (nats per token) and effective shares have shape ``(updates, etas)``; curvatures are half the exact second
    derivative; spreads, shape ``(estimators, updates)``, are SEs of the error at `ASKED` times the root of n.
    """

    policy: Policy
    baseline: FloatArray
    directions: tuple[FloatArray, ...]
    changes: FloatArray
    curvatures: FloatArray
    spreads: FloatArray
    ess_shares: FloatArray


@cache
def updates(world: World) -> Updates:
    """Return the updates of a world: at every eta they leave an effective sample, and terms beyond eta^2 are small."""
    rng = np.random.default_rng(5)
    policy = world.policy()
    log_probs = policy.log_probs()
    _, batch = update_direction(policy, rng)
    baseline = batch.baseline(policy.state_entropies()[batch.places], policy.max_length, "centred")
    sequences = sample_sequences(policy, _PILOT, rng)
    directions, changes, curvatures, spreads, shares = [], [], [], [], []
    for _ in range(world.pool):
        raw = log_probs * world.weights(policy, rng)
        direction = raw * (-world.step / _UNIT / entropy_derivative(policy, raw))
        run = evaluate(policy, direction, sequences, ETAS, baseline)
        share = [(m.ess or 0) / run.n for m in run.measurements]
        change, curvature = entropy_change(policy, direction, ETAS[-1]), _curvature(policy, direction)
        cubic = change + world.step / _UNIT * ETAS[-1] - curvature * ETAS[-1] ** 2
        if min(share) < LEAST_ESS_SHARE or abs(cubic) > MOST_CUBIC * abs(change):
            continue
        directions.append(direction)
        curvatures.append(curvature)
        changes.append([entropy_change(policy, direction, eta) for eta in ETAS])
        spreads.append(_spreads(run, changes[-1][ETAS.index(ASKED)], world.step))
        shares.append(share)
    return Updates(
        policy, baseline, tuple(directions), *map(np.array, (changes, curvatures, np.transpose(spreads), shares))
    )


def _curvature(policy: Policy, direction: FloatArray) -> float:
    """Return half the second derivative, by a central difference of the exact first."""
    step = ETAS[0] / 100
    above, below = (entropy_derivative(policy.step(direction, sign * step), direction) for sign in (1, -1))
    return (above - below) / (4 * step)


def _spreads(run: Run, change: float, step: float) -> tuple[float, float, float]:
    trend = fit_trend(run).curvature.estimate.se * ASKED * _UNIT / step * math.sqrt(run.n)  # of sampling alone
    matched, ratio = (
        err_rel_standard_error(run, ASKED, 1, reference=change, estimator=name) for name in ("matched", "ratio")
    )
    return trend, matched, ratio


@dataclass(frozen=True, eq=False)
class Population:
    """Updates (``members``) of a world that runs are drawn from, each as likely as another, and what is then true."""

    world: World
    members: np.ndarray

    @property
    def straight(self) -> float:
        """The straight line at `ASKED` (nats per token), the same for every update."""
        return -self.world.step * ASKED / _UNIT

    @cached_property
    def change(self) -> float:
        """The true change at `ASKED`, mean over updates (nats per token)."""
        return float(updates(self.world).changes[self.members, ETAS.index(ASKED)].mean())

    def errors(self, estimator: str) -> FloatArray:
        """Return the exact error of each member at `ASKED`, in the unit of an estimator: line - true change.

        The unit of the trend is the straight line, that of the others the mean true change.
        """
        missed = self.straight - updates(self.world).changes[self.members, ETAS.index(ASKED)]
        return np.asarray(missed / (self.straight if estimator == "trend" else self.change))

    def sampling_sd(self, estimator: str) -> float:
        """Return the SE of a run's error, root mean square over members."""
        spreads = updates(self.world).spreads[ESTIMATORS.index(estimator), self.members]
        return float(np.sqrt(np.mean(spreads**2) / self.world.n))

    def relative_tau(self, estimator: str) -> float:
        """Return the SD between updates over the SE of a run."""
        return float(self.errors(estimator).std()) / self.sampling_sd(estimator)

    def draw(self, count: int, rng: np.random.Generator, *, n: int | None = None) -> tuple[list[Run], np.ndarray]:
        """Return runs, each of a member that is drawn anew, and which members; by default of the world's size."""
        known, world, size = updates(self.world), self.world, n or self.world.n
        which = rng.integers(len(self.members), size=count)
        everything = np.arange(len(known.policy.logits))
        kept = rng.choice(everything, world.prompts) if world.prompts else everything
        policy = Policy(known.policy.logits[kept], known.policy.max_length)
        prompts = np.repeat(np.arange(len(kept)), size // len(kept)) if world.prompts else None
        runs = []
        for member in self.members[which]:
            sequences = sample_sequences(policy, size, rng, prompts=prompts)
            run = evaluate(policy, known.directions[member][kept], sequences, ETAS, known.baseline)
            runs.append(run if prompts is None else replace(run, prompt_ids=prompts))
        return runs, which


def population(world: World) -> Population:
    """Return all updates of a world."""
    return Population(world, np.arange(len(updates(world).changes)))


@cache
def chosen(mean: float, tau: float, size: int = 32) -> Population:
    """Return updates whose nonlinearity has about this mean, and SD in units of a run's SE, both by the trend.

    They are those nearest to quantiles of a normal distribution, of the world `DIFFERING` or, where few of its updates
    are as nonlinear, of short sequences with steps as large as it takes.
    """
    few, much = (
        replace(WORLDS[DIFFERING], n=1024, step=0.009, pool=600),
        replace(WORLDS["short sequences"], n=512, step=mean / 8, weights=blended, pool=500),
    )
    world = few if mean <= 0.05 else much
    errors = population(world).errors("trend")
    places = np.array([NormalDist().inv_cdf((k + 0.5) / size) for k in range(size)])
    near = Population(world, np.argsort(np.abs(errors - mean))[:size])
    tries = []
    for spread in np.linspace(0.5, 2.5, 11) * tau * near.sampling_sd("trend"):  # updates further off have another SE
        members: list[int] = []
        for place in sorted(places / places.std(), key=abs, reverse=True):  # the rarest first, none twice
            distances = np.abs(errors - mean - spread * place)
            distances[members] = np.inf
            members.append(int(np.argmin(distances)))
        tries.append(Population(world, np.array(members)))

    def off(found: Population) -> float:
        aside = abs(float(found.errors("trend").mean()) - mean) / near.sampling_sd("trend")
        return abs(found.relative_tau("trend") - tau) + 2 * aside

    return min(tries, key=off)

"""A tiny language-model policy whose entropy, and every change in it, is known exactly.

Use it to check estimators against the truth or to teach what they estimate. It does not model any real network: a
first-order Markov chain over a dozen tokens, just rich enough that sequences differ in length and entropy.

Sequences start in state 0 ("start"). At each step the policy, given the prompt and the previous token, draws a token by
a softmax. Token 0 ends the sequence; any other token becomes the next state. A sequence is cut after ``max_length``
tokens, the end token counted. With so few states, expectations are computed by propagating state probabilities, without
sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._checks import FloatArray, checked_count

IntArray = NDArray[np.intp]
Baseline = Literal["entropy_to_go", "centred"]

END = 0  # as an action: ends the sequence; as a state: the start
_LOGIT_SD, _PROMPT_SD = 3.2, 1.0  # of the common table, and of the deviation per prompt
_COMPLEX_STEP = 1e-30


@dataclass(frozen=True, eq=False)
class Policy:
    """A softmax policy: ``logits[prompt, previous token, next token]``.

    Parameters
    ----------
    logits
        Shape ``(prompts, tokens, tokens)``. Row 0 of the second axis is the start state, column 0 of the third the end
        token. Complex for a derivative by complex step.
    max_length
        Tokens after which a sequence is cut, the end token counted.
    """

    logits: NDArray[Any]
    max_length: int = 150

    def step(self, direction: FloatArray, eta: complex) -> Policy:
        """Return the policy with logits moved by ``eta * direction`` (shape of ``logits``)."""
        return Policy(self.logits + eta * direction, self.max_length)

    def log_probs(self) -> NDArray[Any]:
        """Return log pi(token | prompt, state) in nats, shape ``(prompts, tokens, tokens)``."""
        shifted = self.logits - np.max(np.real(self.logits), axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))

    def state_entropies(self) -> NDArray[Any]:
        """Return the entropy of the next-token distribution in nats, shape ``(prompts, tokens)``."""
        log_probs = self.log_probs()
        return np.asarray(-np.sum(np.exp(log_probs) * log_probs, axis=-1))


@dataclass(frozen=True, eq=False)
class Steps:
    """Positions of the steps of N sequences in arrays that concatenate the sequences.

    Attributes
    ----------
    lengths
        Steps of each sequence, at least one, shape ``(N,)``. Arrays by step have shape ``(sum of lengths,)``.
    """

    lengths: IntArray

    @property
    def starts(self) -> IntArray:
        """First step of each sequence, shape ``(N,)``."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def positions(self) -> IntArray:
        """Position of every step in its sequence, from 0."""
        return np.arange(self.lengths.sum()) - np.repeat(self.starts, self.lengths)

    def sums(self, values: FloatArray) -> FloatArray:
        """Return per-sequence sums of one value per step, shape ``(N,)``."""
        return np.add.reduceat(values, self.starts)

    def to_go(self, entropies: FloatArray) -> FloatArray:
        """Return, for every step, the entropy of the later steps of its sequence."""
        running = np.cumsum(entropies)
        return np.repeat(running[np.cumsum(self.lengths) - 1], self.lengths) - running

    def baseline(self, entropies: FloatArray, size: int, kind: Baseline) -> FloatArray:
        """Return the baseline b_t of linear terms by position, shape ``(size,)``, in nats.

        With the entropy-to-go G_t, the length T of a sequence and the per-token entropy H of all: "entropy_to_go" is
        the mean of ``G_t`` over the sequences that reach position t, 0 past the longest; "centred" that of ``G_t - H
        T``, ``-H (t + 1)`` past the longest: the full factor of a token's score in the linear term, including the
        denominator correction.
        """
        mean = float(entropies.mean()) if kind == "centred" else 0.0
        values = self.to_go(entropies) - mean * np.repeat(self.lengths, self.lengths)
        counts = np.bincount(self.positions, minlength=size)
        means = np.bincount(self.positions, values, size) / np.maximum(counts, 1)
        return np.where(counts > 0, means, -mean * (np.arange(len(counts)) + 1.0))[:size]


@dataclass(frozen=True, eq=False)
class Sequences(Steps):
    """Sampled sequences.

    Attributes
    ----------
    prompts
        Prompt of each sequence, shape ``(N,)``.
    states, actions
        Previous and sampled token of every step.
    """

    prompts: IntArray
    states: IntArray
    actions: IntArray

    @property
    def places(self) -> tuple[IntArray, IntArray]:
        """Prompt and previous token of every step: its place in a policy's tables."""
        return np.repeat(self.prompts, self.lengths), self.states


def random_policy(
    rng: np.random.Generator,
    shape: tuple[int, int] = (6, 12),
    *,
    end_logit: float = -0.5,
    max_length: int = 150,
    logit_sd: float = _LOGIT_SD,
) -> Policy:
    """Return a policy with normally distributed logits: a common table, a deviation per prompt, and a rare end token.

    ``shape`` is the number of prompts and of tokens, ``end_logit`` the mean logit of the end token, ``logit_sd`` the SD
    of the common table.
    """
    tokens = shape[1]
    logits = rng.normal(0.0, logit_sd, (1, tokens, tokens)) + rng.normal(0.0, _PROMPT_SD, (*shape, tokens))
    logits[:, :, END] = end_logit + rng.normal(0.0, _PROMPT_SD, shape)
    return Policy(logits, max_length)


def sampler_of(policy: Policy, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Policy:
    """Return the policy that a sampler with these options draws from, applied in this order.

    Parameters
    ----------
    policy
        The policy as it is differentiated.
    temperature
        Divides the logits.
    top_k
        Tokens kept at each position, the most probable ones; None: all.
    top_p
        Probability kept at each position: the fewest tokens, most probable first, that have it together.

    Raises
    ------
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> skewed = Policy(np.log([[[0.6, 0.3, 0.1]] * 3]), max_length=5)
    >>> np.exp(sampler_of(skewed, top_k=2).log_probs())[0, 0].round(3).tolist()
    [0.667, 0.333, 0.0]
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be positive and at most 1, got {top_p!r}")
    scaled = Policy(policy.logits / temperature, policy.max_length)
    probs = np.exp(scaled.log_probs())
    descending = np.argsort(-probs, axis=-1, kind="stable")
    rank = np.argsort(descending, axis=-1)
    before = np.take_along_axis(probs, descending, axis=-1)
    before = np.take_along_axis(np.cumsum(before, axis=-1) - before, rank, axis=-1)  # probability of likelier tokens
    kept = before < top_p if top_p < 1 else np.full(probs.shape, True)
    if top_k is not None:
        kept &= rank < checked_count(top_k, "top_k")
    return Policy(np.where(kept, scaled.logits, -np.inf), policy.max_length)


def per_token_entropy(policy: Policy) -> float:
    """Return the exact per-token entropy ``E[sum_t H_t] / E[T]`` in nats per token, prompts equally likely.

    Examples
    --------
    A policy that draws each of two tokens with probability 1/2 has ln 2 nats per token:

    >>> import numpy as np
    >>> round(per_token_entropy(Policy(np.zeros((1, 2, 2)), max_length=5)), 12) == round(float(np.log(2)), 12)
    True
    """
    return float(_per_token_entropy(policy))


def entropy_change(policy: Policy, direction: FloatArray, eta: float) -> float:
    """Return the exact change of per-token entropy under ``logits + eta * direction``, in nats per token."""
    return per_token_entropy(policy.step(direction, eta)) - per_token_entropy(policy)


def entropy_derivative(policy: Policy, direction: FloatArray) -> float:
    """Return the exact derivative of per-token entropy along ``direction``, in nats per token per unit eta.

    By complex step: ``Im f(logits + i h direction) / h``, exact to rounding because f is analytic (Squire & Trapp,
    1998).

    Examples
    --------
    It agrees with a central difference:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> policy, v = random_policy(rng), rng.normal(size=(6, 12, 12))
    >>> central = (entropy_change(policy, v, 1e-5) - entropy_change(policy, v, -1e-5)) / 2e-5
    >>> abs(entropy_derivative(policy, v) - central) < 1e-8
    True
    """
    moved = policy.step(direction, 1j * _COMPLEX_STEP)
    return float(np.imag(_per_token_entropy(moved)) / _COMPLEX_STEP)


def sample_sequences(
    policy: Policy, num_sequences: int, rng: np.random.Generator, *, prompts: IntArray | None = None
) -> Sequences:
    """Return sequences sampled from the policy, with ``prompts`` (shape ``(N,)``) given or drawn uniformly."""
    if prompts is None:
        prompts = rng.integers(len(policy.logits), size=num_sequences)
    cumulative = np.cumsum(np.exp(policy.log_probs()), axis=-1)
    cumulative /= cumulative[..., -1:]
    drawn = np.full((num_sequences, policy.max_length), END, dtype=np.int16)
    lengths = np.full(num_sequences, policy.max_length, dtype=np.intp)
    alive = np.arange(num_sequences)
    current = np.full(num_sequences, END, dtype=np.intp)
    for t in range(policy.max_length):
        current = np.sum(cumulative[prompts[alive], current] <= rng.random((len(alive), 1)), axis=1)
        drawn[alive, t] = current
        ended = current == END
        lengths[alive[ended]] = t + 1
        alive, current = alive[~ended], current[~ended]
    actions = drawn[np.arange(policy.max_length) < lengths[:, None]].astype(np.intp)
    states = np.roll(actions, 1)
    states[np.cumsum(lengths) - lengths] = END
    return Sequences(lengths, prompts, states, actions)


def _per_token_entropy(policy: Policy) -> Any:
    moves, entropies = np.exp(policy.log_probs()), policy.state_entropies()
    here = np.zeros_like(entropies)
    here[:, END] = 1.0 / len(here)
    entropy_sum = tokens = 0.0
    for _ in range(policy.max_length):
        tokens += here.sum()
        entropy_sum += (here * entropies).sum()
        here = np.einsum("ps,psa->pa", here, moves)
        here[:, END] = 0.0  # ended sequences leave
    return entropy_sum / tokens

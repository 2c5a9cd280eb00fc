from itertools import product

import numpy as np
import pytest

from analysis_helpers.synthetic.policy import (
    END,
    Policy,
    entropy_change,
    entropy_derivative,
    per_token_entropy,
    random_policy,
    sample_sequences,
    sampler_of,
)


def enumerated_entropy(policy: Policy) -> float:
    """E[sum H] / E[T] by listing every sequence; prompts equally likely."""
    log_probs, entropies = policy.log_probs(), policy.state_entropies()
    prompts, tokens = policy.logits.shape[:2]
    entropy_sum = length_sum = 0.0
    for prompt, length in product(range(prompts), range(1, policy.max_length + 1)):
        for sequence in product(range(tokens), repeat=length):
            ends_here = sequence[-1] == END or length == policy.max_length
            if END in sequence[:-1] or not ends_here:
                continue
            states = (END, *sequence[:-1])
            p = np.exp(sum(log_probs[prompt, s, a] for s, a in zip(states, sequence, strict=True))) / prompts
            entropy_sum += p * sum(entropies[prompt, s] for s in states)
            length_sum += p * length
    return entropy_sum / length_sum


def test_a_sampler_keeps_the_likeliest_tokens_that_its_options_allow() -> None:
    policy = Policy(np.log([[[0.5, 0.3, 0.15, 0.05]] * 4]))
    for options, kept in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 3}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_p": 0.8}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),  # the second token reaches 0.8
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_k": 3, "top_p": 0.1}, [1, 0, 0, 0]),
        ({"temperature": 0.5, "top_k": 2}, [0.25 / 0.34, 0.09 / 0.34, 0, 0]),
    ):
        sampler: Policy = sampler_of(policy, **options)
        assert np.exp(sampler.log_probs())[0, 0] == pytest.approx(kept, abs=1e-12)


def test_one_over_the_probability_of_a_token_counts_the_tokens_that_a_sampler_keeps() -> None:
    # E[1 / pi] = k / (mass kept) exactly, for every state: the identity behind the check `support`.
    policy = random_policy(np.random.default_rng(1), (2, 8))
    pi, drawn = np.exp(policy.log_probs()), np.exp(sampler_of(policy, top_k=3).log_probs())
    mass = np.sum(pi * (drawn > 0), axis=-1)
    assert np.sum(drawn / pi, axis=-1) == pytest.approx(3 / mass, rel=1e-12)


def test_a_softmax_has_the_entropy_of_its_probabilities() -> None:
    policy = Policy(np.log([[[1.0, 3.0], [1.0, 1.0]]]))
    expected = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), np.log(2)]
    assert policy.state_entropies()[0] == pytest.approx(expected, rel=1e-12)
    assert np.exp(policy.log_probs()).sum(axis=-1) == pytest.approx(1.0)


def test_propagation_gives_the_sum_over_all_sequences() -> None:
    policy = random_policy(np.random.default_rng(1), (2, 3), max_length=5)
    assert per_token_entropy(policy) == pytest.approx(enumerated_entropy(policy), rel=1e-12)


def test_the_derivative_is_the_limit_of_the_change_and_a_shift_of_all_logits_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    policy = random_policy(rng)
    direction = rng.normal(size=policy.logits.shape)
    slope = entropy_derivative(policy, direction)
    errors = [abs(entropy_change(policy, direction, eta) / eta - slope) for eta in (1e-2, 1e-3, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # the first omitted term is quadratic
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)
    assert entropy_change(policy, direction, 0.0) == 0.0
    assert entropy_derivative(policy, np.ones_like(policy.logits)) == pytest.approx(0.0, abs=1e-12)


def test_samples_follow_the_transition_probabilities() -> None:
    # Each frequency is within 4.5 standard errors of its probability; 72 of them: fails with probability 5e-4.
    policy = random_policy(np.random.default_rng(6), (2, 6))
    batch = sample_sequences(policy, 5_000, np.random.default_rng(7))
    counts = np.zeros(policy.logits.shape)
    np.add.at(counts, (*batch.places, batch.actions), 1)
    visits = counts.sum(axis=-1, keepdims=True)
    p = np.exp(policy.log_probs())
    assert np.all(np.abs(counts - visits * p) <= 4.5 * np.sqrt(visits * p * (1 - p)) + 1)


def test_sequences_start_at_the_start_chain_and_stop_at_the_end_or_the_limit() -> None:
    policy = random_policy(np.random.default_rng(8), max_length=20)
    batch = sample_sequences(policy, 300, np.random.default_rng(9))
    assert len(batch.actions) == batch.lengths.sum()
    cuts = np.cumsum(batch.lengths)[:-1]
    for states, actions in zip(np.split(batch.states, cuts), np.split(batch.actions, cuts), strict=True):
        assert states[0] == END
        assert np.array_equal(states[1:], actions[:-1])
        assert END not in actions[:-1]
        assert actions[-1] == END or len(actions) == 20

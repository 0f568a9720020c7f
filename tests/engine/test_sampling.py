"""Choosing tokens, against slow references written here."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny
from torch import Tensor

from cachegraph.engine.engine import Engine
from cachegraph.engine.sampling import Sampler
from cachegraph.engine.spec import GenerateSpec

VOCABULARY = 12
LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=VOCABULARY, max_size=VOCABULARY)


def spec(**values: Any) -> GenerateSpec:
    return GenerateSpec(**values)


def draws(spec: GenerateSpec, logits: Tensor, count: int = 400) -> list[int]:
    sampler = Sampler(spec, frozenset())
    return [sampler.choose(logits, [], 0) for _ in range(count)]


@given(LOGITS)
def test_without_a_temperature_the_most_likely_token_is_taken(values: list[float]) -> None:
    logits = torch.tensor(values)
    assert values[Sampler(spec(), frozenset()).choose(logits, [], 0)] == max(values)


def allowed(logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """The tokens that may be drawn and how likely each is: in words, one after the other, in float64."""
    weights = {
        token: float(torch.tensor(value / temperature, dtype=torch.float64).exp()) for token, value in enumerate(logits)
    }
    ranked = sorted(weights, key=lambda token: -weights[token])
    if top_k:
        bar = weights[ranked[min(top_k, len(ranked)) - 1]]
        ranked = [token for token in ranked if weights[token] >= bar]
    total = sum(weights[token] for token in ranked)
    kept, mass = [], 0.0
    for token in ranked:  # as many as it takes to reach top_p, the one that crosses it too
        if mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    kept = [token for token in kept if weights[token] >= min_p * weights[ranked[0]]]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(-30, 30), min_size=VOCABULARY, max_size=VOCABULARY, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.05, 0.4, 0.83, 1.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.9]),
)
def test_what_may_be_drawn_is_what_the_rules_say(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = [value / 7 for value in values]
    sampler = Sampler(spec(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0), frozenset())
    ours = sampler._probabilities(torch.tensor(logits))
    theirs = allowed(logits, temperature, top_k, top_p, min_p)
    assert set(ours.nonzero().flatten().tolist()) == set(theirs)
    for token, probability in theirs.items():
        assert float(ours[token]) == pytest.approx(probability, abs=1e-5)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    drawn = draws(spec(temperature=1.0, seed=1), logits, 4000)
    for token, probability in enumerate(logits.softmax(-1).tolist()):
        assert drawn.count(token) / 4000 == pytest.approx(probability, abs=0.03)


def test_a_seed_makes_draws_repeatable_and_its_absence_does_not() -> None:
    logits = torch.zeros(200)
    seeded, other = spec(temperature=1.0, seed=3), spec(temperature=1.0, seed=4)
    assert draws(seeded, logits) == draws(seeded, logits)
    assert draws(seeded, logits) != draws(other, logits)
    assert draws(spec(temperature=1.0), logits) != draws(spec(temperature=1.0), logits)


def test_no_temperature_is_too_low_and_no_seed_too_large() -> None:
    logits = torch.tensor([3.0, 90.0, -7.0])
    assert set(draws(spec(temperature=5e-324, seed=0), logits, 5)) == {1}
    assert draws(spec(temperature=1.0, seed=2**200), logits, 5) == draws(spec(temperature=1.0, seed=2**200), logits, 5)
    assert len(draws(spec(temperature=1.0, seed=-1), logits, 5)) == 5


def test_choosing_leaves_torchs_own_random_numbers_alone() -> None:
    """A program that seeds torch gets the numbers it expects, whether it samples here or not."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draws(spec(temperature=1.0), torch.zeros(9), 5)
    assert torch.equal(torch.rand(3), expected)


@given(LOGITS, st.lists(st.integers(0, VOCABULARY - 1), max_size=20), st.sampled_from([0.5, 1.3, 4.0]))
def test_tokens_that_occurred_are_penalised_once(values: list[float], seen: list[int], penalty: float) -> None:
    logits = torch.tensor(values)
    expected = list(logits.tolist())
    for token in set(seen):
        expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
    before = logits.clone()
    chosen = Sampler(spec(repetition_penalty=penalty), frozenset()).choose(logits, seen, len(seen))
    assert expected[chosen] == pytest.approx(max(expected), rel=1e-5, abs=1e-6)
    assert torch.equal(logits, before)


def test_the_end_is_not_chosen_before_its_time() -> None:
    logits = torch.tensor([0.0, 9.0, 1.0])
    ends = frozenset([1])
    assert Sampler(spec(), ends).choose(logits, [], 0) == 1
    assert Sampler(spec(ignore_eos=True), ends).choose(logits, [], 5) == 2
    patient = Sampler(spec(min_new_tokens=2), ends)
    assert [patient.choose(logits, [], generated) for generated in range(3)] == [2, 2, 1]


def test_a_rows_draws_do_not_depend_on_its_neighbours(tiny: Tiny) -> None:
    """Nor on the order in which they came."""
    wanted = spec(temperature=1.0, seed=5, max_new_tokens=10, top_p=0.9)

    async def run() -> None:
        engine = Engine(tiny("llama"))
        alone = (await engine.generate([1, 2, 3], spec=wanted)).ids
        found: list[Sequence[int]] = []

        async def row(seed: int, ids: list[int]) -> None:
            reply = await engine.generate(ids, spec=wanted.model_copy(update={"seed": seed}))
            if seed == 5:
                found.append(reply.ids)

        async with anyio.create_task_group() as group:
            for seed, ids in ((1, [4] * 9), (5, [1, 2, 3]), (2, [7]), (5, [1, 2, 3])):
                group.start_soon(row, seed, ids)
        engine.close()
        assert found == [alone, alone]

    anyio.run(run)


def test_the_penalty_counts_tokens_of_the_past_where_they_are_named(tiny: Tiny) -> None:
    wanted = spec(repetition_penalty=50.0, max_new_tokens=1)

    async def run() -> None:
        engine = Engine(tiny("llama"))
        past = await engine.prefill([5, 6, 7])
        free = (await engine.generate([8], past.segments, spec(max_new_tokens=1))).ids
        again = (await engine.generate([8], past.segments, wanted, seen=[*free])).ids
        engine.close()
        assert free != again

    anyio.run(run)

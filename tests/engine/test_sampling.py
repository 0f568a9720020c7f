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
from cachegraph.engine.sampling.sampler import Sampler, probabilities, sample
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

VOCABULARY = 12
LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=VOCABULARY, max_size=VOCABULARY)


def spec(**values: Any) -> GenerateSpec:
    return GenerateSpec(**values)


def draws(spec: GenerateSpec, logits: Tensor, count: int = 400) -> list[int]:
    sampler = Sampler(spec, frozenset())
    return [sampler.take(sample([sampler], [logits])[0]) for _ in range(count)]


def chosen(spec: GenerateSpec, logits: Tensor, seen: Sequence[int] = ()) -> int:
    return sample([Sampler(spec, frozenset(), seen)], [logits])[0]


@given(LOGITS)
def test_without_a_temperature_the_most_likely_token_is_taken(values: list[float]) -> None:
    assert values[chosen(spec(), torch.tensor(values))] == max(values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_equals_the_first_is_taken_as_argmax_takes_it(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (7, 300, 5001):
        rows = torch.randint(0, 9, (6, width), generator=generator).to(dtype)
        ours = sample([Sampler(spec(), frozenset()) for _ in rows], list(rows))
        assert ours == [int(row.argmax()) for row in rows]


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
    ours = probabilities([sampler], torch.tensor([logits]))[0]
    ours = ours / ours.sum()
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
    assert expected[chosen(spec(repetition_penalty=penalty), logits, seen)] == pytest.approx(
        max(expected), rel=1e-5, abs=1e-6
    )
    assert torch.equal(logits, before)


def test_the_end_is_not_chosen_before_its_time() -> None:
    logits = torch.tensor([0.0, 9.0, 1.0])
    ends = frozenset([1])
    for wanted, expected in (
        (spec(), [1]),
        (spec(ignore_eos=True), [2, 2, 2]),
        (spec(min_new_tokens=2), [2, 2, 1]),
    ):
        sampler = Sampler(wanted, ends)
        assert [sampler.take(sample([sampler], [logits])[0]) for _ in expected] == expected


def test_tokens_of_the_reply_are_penalised_too() -> None:
    assert draws(spec(repetition_penalty=10.0), torch.tensor([4.0, 3.0, 2.0, 0.1]), 4) == [0, 1, 2, 0]


SPECS = st.builds(
    GenerateSpec,
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 2, 40]),
    top_p=st.sampled_from([0.3, 0.9, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.5]),
    seed=st.integers(-5, 2**70),
    min_new_tokens=st.sampled_from([0, 2]),
    ignore_eos=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(specs=st.lists(SPECS, min_size=1, max_size=6), seed=st.integers(0, 10**6), dtype=st.sampled_from([16, 32]))
@pytest.mark.parametrize("width", [40, 1500])
def test_a_row_gets_the_same_tokens_alone_and_in_any_batch(
    specs: list[GenerateSpec], seed: int, dtype: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(4, len(specs), width, generator=generator) * 3
    steps = steps.to(torch.bfloat16 if dtype == 16 else torch.float32)
    seen = [[row, row + 7] for row in range(len(specs))]
    before = steps.clone()

    def make() -> list[Sampler]:
        return [Sampler(each, frozenset([3, 5]), past) for each, past in zip(specs, seen, strict=True)]

    def follow(samplers: list[Sampler], rows: list[int]) -> list[list[int]]:
        found = []
        for step in steps:
            tokens = sample([samplers[row] for row in rows], [step[row] for row in rows])
            found.append([samplers[row].take(token) for row, token in zip(rows, tokens, strict=True)])
        return list(map(list, zip(*found, strict=True)))

    everybody = list(range(len(specs)))
    together = follow(make(), everybody)
    alone = make()
    assert [follow(alone, [row])[0] for row in everybody] == together
    assert follow(make(), everybody[::-1])[::-1] == together
    assert torch.equal(steps, before)


@pytest.mark.parametrize("top_p", [0.2, 0.999, 1 - 1e-9])
def test_the_likeliest_few_stand_for_the_whole_vocabulary_where_they_hold_enough(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row never notices which way its neighbours made necessary."""
    from cachegraph.engine.sampling import sampler as sampler_module

    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)) * 4
    sampler = Sampler(spec(temperature=1.0, top_p=top_p), frozenset())
    quick = probabilities([sampler], logits)
    monkeypatch.setattr(sampler_module, "_LIKELY", 10**9)
    assert torch.equal(probabilities([sampler], logits), quick)
    assert 0 < int((quick > 0).sum()) < 5000


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_told(temperature: float) -> None:
    sampler = Sampler(spec(temperature=temperature), frozenset())
    for logits in (torch.full((9,), float("nan")), torch.full((9,), float("-inf"))):
        with pytest.raises(ModelError, match="logits are not numbers"):
            sampler.take(sample([sampler], [logits])[0])


def test_only_the_ids_leave_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are: one look at a result by the host, a wait for the device where it is a GPU."""
    looks: list[int] = []
    original = Tensor.tolist

    def noted(self: Tensor) -> Any:
        looks.append(self.numel())
        return original(self)

    monkeypatch.setattr(Tensor, "tolist", noted)
    for name in ("item", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda self, *_: pytest.fail("a result was looked at"))
    many = [spec(), spec(temperature=1.0, seed=1, top_k=3), spec(temperature=2.0, min_p=0.1, top_p=0.9)]
    sample([Sampler(each, frozenset([1])) for each in many], list(torch.randn(3, 50)))
    assert looks == [3]


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

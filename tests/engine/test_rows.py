"""Who gets memory and who gives it up, told with plain numbers: a position is one byte."""

import time
from random import Random
from typing import Any

import pytest
from fake_rows import Cache, FakeRequest, Segment, hold, rows, step
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph.engine.batching.admission import FETCHING, GRACE, SPARE
from cachegraph.errors import ModelError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_request_that_does_not_fit_waits_and_goes_when_another_is_done() -> None:
    work = rows(128)
    first, second = FakeRequest(64, writes=3), FakeRequest(64)
    work.add(first)
    work.add(second)
    for _ in range(3):
        assert step(work) == [first]
    step(work)
    assert step(work) == [second]
    assert not work.requests
    assert work.budget.used == 0


def test_a_request_that_could_never_fit_is_refused_at_once_with_the_sizes() -> None:
    with pytest.raises(ModelError, match=r"'m' can't read this: 300 tokens need 320B .* its budget is 128B; give"):
        rows(128).add(FakeRequest(300))
    with pytest.raises(ModelError, match=r"64 tokens need 64B of KV memory behind 100B that are there"):
        rows(128).add(FakeRequest(64, cache=Cache([Segment(100)])))


def test_the_row_that_began_last_is_swapped_out_where_an_older_one_grows() -> None:
    work = rows(64 + 32 + 2 * SPARE)
    old, young = FakeRequest(32, writes=100), FakeRequest(32, writes=40)
    for request in (old, young):
        work.add(request)
    while not young.swaps:
        assert old in step(work)
    assert old.swaps == 0
    while young.out:
        step(work)
    assert old.writes == 0
    while work.requests:
        step(work)
    assert work.budget.used == 0
    assert (young.writes, young.error) == (0, None)


def test_what_was_kept_of_earlier_prompts_is_given_up_before_anybody_waits() -> None:
    work = rows(128)
    store: Any = work._prefixes
    store.fill(96)
    request = FakeRequest(64, writes=40)
    work.add(request)
    assert step(work) == [request]
    assert store.nbytes == 64
    while work.requests:
        step(work)
    assert store.nbytes == 0 or work.budget.used == store.nbytes


def test_small_requests_do_not_overtake_a_large_one_that_waits() -> None:
    work = rows(256)
    first, large, small = FakeRequest(128, writes=20), FakeRequest(192), FakeRequest(8)
    for request in (first, large, small):
        work.add(request)
    order = []
    while work.requests:
        order += [request for request in step(work) if request not in order]
    assert order == [first, large, small]


def test_a_run_that_holds_memory_goes_before_others_and_beyond_the_budget_where_nobody_else_can_go_on(
    clock: list[float],
) -> None:
    work = rows(256)
    hold(work, "holds", 128)
    hold(work, "other", 128)
    new, goes_on = FakeRequest(32), FakeRequest(64, run="holds")
    work.add(new)
    work.add(goes_on)
    assert step(work) == []  # replies that are done may be fetched at any moment
    clock[0] += GRACE
    assert step(work) == [goes_on]
    assert work.budget.peak == 256 + 64
    assert step(work) == []
    hold(work, "holds", -128)
    assert step(work) == [new]


def test_the_oldest_row_waits_a_moment_for_a_reply_to_be_fetched_before_it_goes_beyond_the_budget(
    clock: list[float],
) -> None:
    for fetched in (True, False):
        work, request = rows(128), FakeRequest(64, writes=40)
        work.add(request)
        step(work)
        hold(work, None, 64)  # as another's reply that is done
        for _ in range(3):
            assert step(work) == []
        if fetched:
            hold(work, None, -64)
        clock[0] += GRACE
        assert step(work) == [request]
        assert work.budget.peak == (96 if fetched else 160)


def test_a_run_that_holds_too_much_itself_is_told_so_once_nothing_more_of_it_is_given_back(clock: list[float]) -> None:
    work = rows(256)
    hold(work, "holds", 224)
    request = FakeRequest(64, run="holds")
    work.add(request)
    for clock[0] in (0.0, FETCHING):
        assert step(work) == []
        assert request.error is None
    clock[0] += 0.1
    assert step(work) == []
    assert str(request.error).startswith("'m' can't read this: 64 tokens need 64B of KV memory behind 224B")


def test_a_reply_that_is_yet_to_be_fetched_refuses_nobody(clock: list[float]) -> None:
    work = rows(256)
    hold(work, "holds", 224)
    request = FakeRequest(64, run="holds")
    work.add(request)
    assert step(work) == []
    hold(work, "holds", -100)
    assert step(work) == [request]


def test_where_a_run_holds_too_much_for_one_of_its_rows_another_that_fits_goes_first(clock: list[float]) -> None:
    work = rows(256)
    hold(work, "holds", 220)
    hold(work, "other", 30)
    large, small = FakeRequest(64, run="holds", depth=1), FakeRequest(32, run="holds")
    work.add(large)
    work.add(small)
    assert step(work) == []
    clock[0] += GRACE
    assert step(work) == [small]
    hold(work, "holds", -100)
    assert step(work) == [large]


def test_nobody_waits_for_ever_for_memory_that_is_never_given_back(clock: list[float]) -> None:
    work = rows(256)
    hold(work, None, 250)
    request = FakeRequest(64)
    work.add(request)
    for clock[0] in (0.0, 50.0):
        assert step(work) == []
        assert request.error is None
    hold(work, None, -1)  # something moves: the wait begins again
    for clock[0] in (70.0, 120.0):
        step(work)
        assert request.error is None
    clock[0] = 131.0
    step(work)
    assert str(request.error).startswith("'m' has waited 60 s for KV memory: 249B of 256B are held by caches")


def test_the_run_that_was_given_least_comes_in_first_and_within_a_run_the_deepest() -> None:
    work = rows(64)
    flood = [FakeRequest(33, run="flood", depth=depth) for depth in (0, 0, 2)]
    late = FakeRequest(33, run="late")
    for request in (*flood, late):
        work.add(request)
    order = []
    while work.requests:
        order += [request for request in step(work) if request not in order]
    assert order == [flood[2], late, flood[0], flood[1]]


requests = st.lists(
    st.builds(FakeRequest, st.integers(1, 200), st.integers(0, 150), st.sampled_from("abc"), st.integers(0, 2)),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(requests, st.integers(1, 10), st.randoms(use_true_random=False))
def test_all_that_fit_the_budget_alone_are_done_within_it_whoever_is_cancelled_when(
    requests: list[FakeRequest], blocks: int, random: Random
) -> None:
    budget = 224 + 32 * blocks
    work = rows(budget)
    asked = {id(request): request.remaining + request.writes for request in requests}
    refused, cancelled = [], set()
    steps = 0
    while requests or work.requests:
        for request in requests[: random.randint(0, 3)] if steps < 30 else requests[:]:
            requests.remove(request)
            try:
                work.add(request)
            except ModelError:
                refused.append(request)
        doomed = [request for request in work.requests if steps < 30 and random.random() < 0.02]
        cancelled |= {id(request) for request in doomed}
        work.discard(doomed)
        before = work.requests
        ran = step(work)
        assert ran or not before or any(request.error for request in before)
        assert work.budget.peak <= budget
        for request in before:
            if request.error is not None:
                refused.append(request)
            elif request not in work.requests:
                assert request.remaining == request.writes == 0
        steps += 1
        assert steps < 10_000
    assert work.budget.used == 0
    for request in refused:
        assert asked[id(request)] + 31 > budget

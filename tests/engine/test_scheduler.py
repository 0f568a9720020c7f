"""Which rows run next, told with plain numbers."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from cachegraph.engine.batching.scheduler import CHUNK, Scheduler


@dataclass(eq=False)
class FakeRequest:
    remaining: int
    depth: int = 0
    run: object = field(default_factory=object)


def shares(scheduler: Scheduler[FakeRequest]) -> list[tuple[FakeRequest, int]]:
    return [(share.request, share.tokens) for share in scheduler.next_step()]


def scheduled(*requests: FakeRequest, max_rows: int = 64) -> Scheduler[FakeRequest]:
    scheduler: Scheduler[FakeRequest] = Scheduler(max_rows=max_rows)
    for request in requests:
        scheduler.add(request)
    return scheduler


def step(scheduler: Scheduler[FakeRequest]) -> list[tuple[FakeRequest, int]]:
    """Take the next step, and leave out what is done then."""
    chosen = shares(scheduler)
    for request, tokens in chosen:
        request.remaining -= tokens
    scheduler.discard([request for request, _ in chosen if not request.remaining])
    return chosen


def test_rows_that_decode_run_beside_the_first_prompt() -> None:
    decoding, prompt = FakeRequest(1), FakeRequest(CHUNK + 5)
    assert dict(shares(scheduled(prompt, decoding))) == {decoding: 1, prompt: CHUNK}


def test_short_prompts_share_a_step() -> None:
    part = CHUNK // 2
    requests = [FakeRequest(part), FakeRequest(part), FakeRequest(part)]
    assert shares(scheduled(*requests)) == [(requests[0], part), (requests[1], part)]


def test_within_a_run_the_longest_way_to_the_output_goes_first_then_what_came_first() -> None:
    late, first, critical = (
        FakeRequest(CHUNK, run="a"),
        FakeRequest(CHUNK, run="a"),
        FakeRequest(CHUNK, depth=1, run="a"),
    )
    assert shares(scheduled(first, late, critical)) == [(critical, CHUNK)]
    assert shares(scheduled(first, late)) == [(first, CHUNK)]


def test_no_more_rows_than_allowed() -> None:
    assert len(shares(scheduled(*(FakeRequest(1) for _ in range(9)), max_rows=3))) == 3
    assert len(shares(scheduled(*(FakeRequest(2) for _ in range(9)), max_rows=3))) == 3


def test_a_run_that_arrives_late_is_not_behind_one_that_floods() -> None:
    """However deep the other's graph, and however many prompts of it wait already."""
    scheduler = scheduled(*(FakeRequest(5 * CHUNK, depth=9, run="flood") for _ in range(50)))
    for _ in range(20):
        step(scheduler)
    late = FakeRequest(3 * CHUNK, run="late")
    scheduler.add(late)
    for _ in range(6):
        step(scheduler)
    assert late.remaining == 0


def test_a_run_that_comes_and_goes_takes_no_more_than_one_that_stays() -> None:
    """Leaving does not give back what it owes the others; arriving does not put it before them."""
    stays = FakeRequest(20 * CHUNK, run="stays")
    scheduler = scheduled(stays)
    steps = 0
    while stays.remaining:
        if len(scheduler.requests) == 1:
            scheduler.add(FakeRequest(CHUNK, run="comes"))
        step(scheduler)
        steps += 1
    assert steps <= 2 * 20 + 1


def test_more_rows_than_a_step_takes_decode_in_turns() -> None:
    early = [FakeRequest(1) for _ in range(4)]  # each decodes, and has always one more token
    scheduler = scheduled(*early, max_rows=4)
    for _ in range(10):
        assert len(shares(scheduler)) == 4
    scheduler.add(late := FakeRequest(1))
    taken = dict.fromkeys([*early, late], 0)
    for _ in range(100):
        for request, _ in shares(scheduler):
            taken[request] += 1
    assert sum(taken.values()) == 400
    assert set(taken.values()) == {80}


requests = st.builds(FakeRequest, st.integers(1, 3 * CHUNK), st.integers(0, 2), st.sampled_from("abc"))


@given(st.lists(requests, max_size=100), st.integers(1, 70))
def test_every_job_is_done_and_is_cut_the_same_way_whoever_else_runs(
    requests: list[FakeRequest], max_rows: int
) -> None:
    """Every step gets something done, within its bounds; a prompt's pieces begin at multiples of one number."""
    lengths = {id(request): request.remaining for request in requests}
    cuts: dict[int, list[int]] = {id(request): [] for request in requests}
    scheduler = scheduled(*requests, max_rows=max_rows)
    while scheduler:
        chosen = step(scheduler)
        assert 0 < len(chosen) <= max_rows
        assert len({id(request) for request, _ in chosen}) == len(chosen)
        assert sum(tokens for _, tokens in chosen) <= CHUNK + max_rows
        for request, tokens in chosen:
            cuts[id(request)].append(tokens)
    for request in requests:
        length = lengths[id(request)]
        assert cuts[id(request)] == [CHUNK] * (length // CHUNK) + [length % CHUNK] * (length % CHUNK > 0)


@given(st.lists(st.lists(st.integers(1, 4 * CHUNK), min_size=1, max_size=8), min_size=1, max_size=6), st.data())
def test_runs_that_wait_are_served_alike(prompts: list[list[int]], data: st.DataObject) -> None:
    """While two runs both have prompts, neither gets more than one step's budget ahead of the other."""
    runs = {number: [FakeRequest(count, run=number) for count in counts] for number, counts in enumerate(prompts)}
    scheduler = scheduled(*data.draw(st.permutations([request for each in runs.values() for request in each])))
    served = dict.fromkeys(runs, 0)
    while scheduler:
        waiting = {run for run, each in runs.items() if any(request.remaining > 1 for request in each)}
        for request, tokens in step(scheduler):
            served[request.run] += tokens  # type: ignore[index]
        still = [served[run] for run in waiting if any(request.remaining > 1 for request in runs[run])]
        assert not still or max(still) - min(still) <= 2 * CHUNK


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 300))
def test_nobody_starves(others: int, pieces: int, flood: int) -> None:
    """The others' prompts never end: a prompt waits for no more steps than runs times its pieces."""
    endless = [FakeRequest(10**9, depth=5, run=number) for number in range(others) for _ in range(1 + flood // 100)]
    scheduler = scheduled(*endless)
    for _ in range(flood):
        shares(scheduler)
    mine = FakeRequest(pieces * CHUNK, run="mine")
    scheduler.add(mine)
    steps = 0
    while mine.remaining:
        step(scheduler)
        steps += 1
    assert steps <= (others + 1) * pieces

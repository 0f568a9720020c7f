"""Which rows run next, told with plain numbers."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cachegraph.engine.scheduler import CHUNK, Scheduler


@dataclass
class Job:
    remaining: int
    priority: int = 0


def shares(scheduler: Scheduler[Job]) -> list[tuple[Job, int]]:
    return [(share.job, share.tokens) for share in scheduler.next_step()]


def test_rows_that_decode_run_beside_the_first_prompt() -> None:
    decoding, prompt = Job(1), Job(CHUNK + 5)
    assert shares(Scheduler(jobs=[prompt, decoding])) == [(decoding, 1), (prompt, CHUNK)]


def test_short_prompts_share_a_step() -> None:
    jobs = [Job(200), Job(200), Job(200)]
    assert shares(Scheduler(jobs=jobs)) == [(jobs[0], 200), (jobs[1], 200)]


def test_urgent_prompts_go_first_then_those_that_came_first() -> None:
    late, first, urgent = Job(CHUNK), Job(CHUNK), Job(CHUNK, priority=1)
    assert shares(Scheduler(jobs=[first, late, urgent])) == [(urgent, CHUNK)]
    assert shares(Scheduler(jobs=[first, late])) == [(first, CHUNK)]


def test_no_more_rows_than_allowed() -> None:
    assert len(shares(Scheduler(max_rows=3, jobs=[Job(1) for _ in range(9)]))) == 3
    assert len(shares(Scheduler(max_rows=3, jobs=[Job(2) for _ in range(9)]))) == 3


@given(
    st.lists(st.builds(Job, st.integers(1, 3 * CHUNK), st.integers(0, 2)), max_size=100),
    st.integers(1, 70),
)
def test_every_job_is_done_and_is_cut_the_same_way_whoever_else_runs(jobs: list[Job], max_rows: int) -> None:
    """Every step gets something done, within its bounds; a prompt's pieces begin at multiples of one number."""
    lengths = {id(job): job.remaining for job in jobs}
    cuts: dict[int, list[int]] = {id(job): [] for job in jobs}
    scheduler = Scheduler(max_rows=max_rows, jobs=list(jobs))
    while scheduler:
        step = scheduler.next_step()
        assert 0 < len(step) <= max_rows
        assert len({id(job) for job, _ in step}) == len(step)
        assert sum(tokens for _, tokens in step) <= CHUNK + max_rows
        for job, tokens in step:
            cuts[id(job)].append(tokens)
            job.remaining -= tokens
        scheduler.discard([job for job in jobs if job.remaining == 0])
    for job in jobs:
        length = lengths[id(job)]
        assert cuts[id(job)] == [CHUNK] * (length // CHUNK) + [length % CHUNK] * (length % CHUNK > 0)

"""Runs that hold caches, admitted so that all can finish. Told with plain numbers: a position is one byte."""

import time
from dataclasses import dataclass, field
from random import Random

import pytest
from fake_rows import Admission, FakeRequest, hold, rows, step

from cachegraph.engine.batching.admission import GRACE
from cachegraph.engine.batching.request_context import RunKey


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@dataclass(eq=False)
class Run:
    """Reads a document, answers so many times behind it, and joins the answers; holds all of it until the end."""

    document: int
    answers: list[tuple[int, int]]  # prompt and reply of each
    key: RunKey = field(default_factory=RunKey)
    held: int = 0
    stage: int = 0
    open: list[FakeRequest] = field(default_factory=list)

    def next_rows(self) -> list[FakeRequest]:
        self.stage += 1
        match self.stage:
            case 1:
                return [self._job(self.document, 0, 2, True)]
            case 2:
                return [self._job(prompt, reply, 1, True) for prompt, reply in self.answers]
            case 3:
                return [self._job(sum(prompt for prompt, _ in self.answers), 8, 0, False)]
        return []

    def _job(self, prompt: int, writes: int, depth: int, holds: bool) -> FakeRequest:
        return FakeRequest(prompt, writes, run=self.key, depth=depth, holds=holds)

    @property
    def most(self) -> int:
        """What it needs at most, in blocks of 32, when it has all memory to itself."""
        blocks = [self.document, *(prompt + reply for prompt, reply in self.answers)]
        join = sum(prompt for prompt, _ in self.answers) + 8
        return sum(-(-size // 32) * 32 for size in [*blocks, join]) + 32 * (len(blocks) + 1)


def advance(work: Admission[FakeRequest], run: Run) -> bool:
    """Take what is done, hold it, and ask for what comes next. False: the run is over."""
    done = [request for request in run.open if request not in work.requests]
    for request in done:
        run.open.remove(request)
        if request.holds:
            hold(work, run.key, request.cache.capacity)
            run.held += request.cache.capacity
    if run.open:
        return True
    run.open = run.next_rows()
    if not run.open:
        run.key.over = True
        hold(work, run.key, -run.held)
        return False
    for request in run.open:
        work.add(request)
    return True


@pytest.mark.parametrize("seed", range(60))
def test_runs_of_any_kind_finish_within_the_budget_and_what_one_row_needs(seed: int, clock: list[float]) -> None:
    dice = Random(seed)
    fan = dice.randint(1, 8)
    documents = [dice.choice([30, 60, 120, 300, 600]) for _ in range(dice.randint(2, 16))]
    runs = [Run(each, [(dice.randint(5, 40), dice.randint(1, 80)) for _ in range(fan)]) for each in documents]
    budget = max(run.most for run in runs) + dice.choice([0, 100, 500, 2000])
    work, keys = rows(budget), [run.key for run in runs]
    row, idle, steps = 0, 0, 0
    while runs:
        runs = [run for run in runs if advance(work, run)]
        row = max([row, *(request.cache.capacity_for(request.remaining + request.writes) for request in work.requests)])
        before = bool(work.requests)
        idle = idle + 1 if before and not step(work) else 0
        assert not any(request.error for request in work.requests)
        assert idle < 4  # it never takes longer than GRACE until something goes on
        clock[0] += GRACE / 2
        steps += 1
        assert steps < 20_000
    assert work.budget.used == 0
    assert work.budget.peak <= budget + row
    work._update_runs()
    assert not any(run in work._runs for run in keys)


def test_a_run_that_would_leave_none_able_to_finish_waits_until_one_has(clock: list[float]) -> None:
    runs = [Run(100, [(20, 60)] * 4) for _ in range(6)]
    work = rows(runs[0].most + 50)
    for run in runs:
        advance(work, run)
    began: list[Run] = []
    while runs:
        ran = step(work)
        began += [run for run in runs if run not in began and any(request in ran for request in run.open)]
        if len(began) == 1:
            assert runs[0] in began
        runs = [run for run in runs if advance(work, run)]
        clock[0] += GRACE / 2
        assert work.budget.used <= work.budget.limit
    assert len(began) == 6


def test_rows_of_runs_that_hold_nothing_share_the_memory_as_before() -> None:
    work = rows(512)
    requests = [FakeRequest(32, writes=4, run=RunKey()) for _ in range(6)]
    for request in requests:
        work.add(request)
    assert len(step(work)) >= 4


def test_a_run_that_waits_for_something_else_keeps_no_memory_idle(clock: list[float]) -> None:
    work = rows(1000)
    oldest, other = Run(200, [(20, 20)]), Run(200, [(20, 20)])
    advance(work, oldest)
    while oldest.open[0] in work.requests:
        step(work)
    hold(work, oldest.key, 224)  # its next agent asks a tool, for minutes
    advance(work, other)
    ran = []
    for _ in range(4):
        ran += step(work)
        clock[0] += GRACE
    assert other.open[0] in ran

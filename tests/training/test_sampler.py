from hypothesis import given
from hypothesis import strategies as st

from cachegraph.training.data.sampler import ExampleSampler

ROWS = st.lists(st.tuples(st.integers(0, 15), st.integers(1, 500)), min_size=1, max_size=60)


def steps(rows: list[tuple[int, int]], texts: int, count: int, seed: int) -> ExampleSampler:
    return ExampleSampler(
        [group for group, _ in rows], [length for _, length in rows], texts=texts, rows=count, seed=seed
    )


@given(rows=ROWS, texts=st.integers(1, 6), count=st.integers(1, 4), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_meets_each_text_once_but_for_a_last_odd_few(
    rows: list[tuple[int, int]], texts: int, count: int, seed: int, epoch: int
) -> None:
    plan = steps(rows, texts, count, seed)
    groups = [group for group, _ in rows]
    size = min(texts, len(set(groups)))
    met: list[int] = []
    for step in range(epoch * plan.per_epoch, (epoch + 1) * plan.per_epoch):
        chosen = plan.indices(step)
        assert len(chosen) == len(set(chosen))
        here = {groups[row] for row in chosen}
        assert len(here) == size
        assert all(sum(groups[row] == each for row in chosen) == min(count, groups.count(each)) for each in here)
        met += here
    assert len(met) == len(set(met)) > len(set(groups)) - size


@given(rows=ROWS, texts=st.integers(1, 4), seed=st.integers(0, 9), order=st.permutations(range(12)))
def test_a_step_has_the_same_rows_whichever_steps_came_before(
    rows: list[tuple[int, int]], texts: int, seed: int, order: list[int]
) -> None:
    ahead = steps(rows, texts, 2, seed)
    expected = [ahead.indices(step) for step in range(12)]
    again = steps(rows, texts, 2, seed)
    assert {step: again.indices(step) for step in order} == dict(enumerate(expected))


def test_epochs_and_seeds_differ_in_their_order() -> None:
    rows = [(number, number) for number in range(60)]
    plan, other = steps(rows, 2, 1, 0), steps(rows, 2, 1, 1)
    first = [plan.indices(step) for step in range(plan.per_epoch)]
    assert first != [plan.indices(step) for step in range(plan.per_epoch, 2 * plan.per_epoch)]
    assert first != [other.indices(step) for step in range(other.per_epoch)]

from hypothesis import given
from hypothesis import strategies as st

from cachegraph.evaluation.derangement import derange, sample
from cachegraph.graph.data.examples import Example


def questions(*inputs: dict[str, str]) -> list[Example]:
    return [Example(index=index, id=str(index), inputs=each) for index, each in enumerate(inputs)]


@given(st.integers(2, 40), st.integers(0, 1000))
def test_everybody_gets_anothers_cache_and_each_is_given_once(count: int, seed: int) -> None:
    examples = questions(*({"q": str(number), "style": "same for all"} for number in range(count)))
    order = [each.index for each in derange(examples, seed) or []]
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))
    assert order == [each.index for each in derange(examples, seed) or []]


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 100))
def test_questions_about_one_story_are_no_partners(stories: int, each: int, seed: int) -> None:
    rows = [{"story": str(story), "q": f"{story} {number}"} for story in range(stories) for number in range(each)]
    examples = questions(*rows)
    order = derange(examples, seed)
    assert order is not None
    assert all(a.inputs["story"] != b.inputs["story"] for a, b in zip(examples, order, strict=True))


def test_where_all_share_something_partners_differ_in_something() -> None:
    examples = questions({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "2", "b": "1"})
    order = derange(examples, 0)
    assert order is not None
    assert all(mine.inputs != other.inputs for mine, other in zip(examples, order, strict=True))


def test_examples_that_are_all_alike_have_no_partners() -> None:
    assert derange(questions({"a": "1"}, {"a": "1"}), 0) is None


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order() -> None:
    examples = questions(*({"q": str(number)} for number in range(100)))
    drawn = [each.index for each in sample(examples, 20, 0)]
    assert drawn == sorted(drawn) != list(range(20))
    assert drawn == [each.index for each in sample(examples, 20, 0)]
    assert drawn != [each.index for each in sample(examples, 20, 1)]
    assert sample(examples, None, 0) == sample(examples, 100, 5) == examples

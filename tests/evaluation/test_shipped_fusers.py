"""What the fusers that ship do with the demo models, on stories written for this test."""

from pathlib import Path

import pytest
from stories import ROWS

from cachegraph import Graph, compare

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("demo_engines"), pytest.mark.timeout(600)]

RECIPES = Path(__file__).parents[2] / "recipes"


def brief(graph: Graph) -> Graph:
    """The same with replies of one token, on which the scores of given answers don't depend."""
    parts = graph.spec.model_dump(by_alias=True, exclude_unset=True)
    parts["agents"]["answerer"]["generate"] = {"max_new_tokens": 1}
    return graph.with_spec(type(graph.spec).model_validate(parts))


def test_the_shipped_translator_hands_over_the_story_and_not_just_any() -> None:
    """Six stories: the right answer is likelier with its own story's cache than with another's or none."""
    with brief(Graph.from_yaml(RECIPES / "story-relay.yaml")) as graph:
        found = compare(graph, ROWS, variants=("cache", "alone", "mismatched"))
    likely = {row.name: row.quality["answer_logprob"].value for row in found.rows}
    assert likely["cache"] > likely["mismatched"] + 2  # nats
    assert likely["cache"] > likely["alone"] + 2


WORDS = [  # of six languages, two of them not among those that the fuser was trained on
    ("Greek", "νερό", ["water", "letter", "engine", "winter"]),
    ("Polish", "książka", ["cloud", "book", "silver", "answer"]),
    ("Swedish", "skog", ["forest", "doctor", "number", "kitchen"]),
    ("Arabic", "مدينة", ["hand", "music", "city", "question"]),
    ("Spanish", "invierno", ["mirror", "winter", "cousin", "bread"]),
    ("German", "Schlüssel", ["river", "teacher", "field", "key"]),
]
RIGHT = {"νερό": 0, "książka": 1, "skog": 0, "مدينة": 2, "invierno": 1, "Schlüssel": 3}


def test_the_shipped_word_fuser_listens() -> None:
    """Six words: the right meaning is likelier with the word's own cache than with another word's or none."""
    rows = [
        {
            "language": language,
            "question": f'What is the {language} word "{word}" in English?',
            "choices": choices,
            "answer": RIGHT[word],
        }
        for language, word, choices in WORDS
    ]
    with brief(Graph.from_yaml(RECIPES / "word-duo.yaml")) as graph:
        found = compare(graph, rows, variants=("cache", "alone", "mismatched"))
    values = {row.name: row.quality for row in found.rows}
    likely = {name: quality["answer_logprob"].value for name, quality in values.items()}
    assert likely["cache"] > likely["mismatched"] + 2  # nats
    assert likely["cache"] > likely["alone"] + 2
    assert values["cache"]["accuracy"].value >= 4 / 6
    assert values["cache"]["accuracy"].value > values["mismatched"]["accuracy"].value


@pytest.mark.parametrize(("recipe", "kind"), [("story-relay", "grafted"), ("science-duo", "fused")])
def test_a_recipe_of_the_two_models_uses_its_fuser_by_default(recipe: str, kind: str) -> None:
    with Graph.from_yaml(RECIPES / f"{recipe}.yaml") as graph:
        result = graph.run()
    (edge,) = result.edges.values()
    assert (edge.channel_used, edge.fallback_reason) == ("cache", None)
    assert {"grafted": edge.positions_grafted, "fused": edge.positions_fused}[kind] > 10
    assert result.text.strip()

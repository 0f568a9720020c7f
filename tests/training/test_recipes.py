"""The training recipes that ship."""

from pathlib import Path

import pytest

from cachegraph.errors import ConfigError, RecipeError
from cachegraph.graph.recipe.load import load_recipe
from cachegraph.training.load import changed, load_training, training_schema
from cachegraph.training.pair import choose_edge

FOLDER = Path(__file__).parents[2] / "recipes" / "train"


@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_training_recipe_names_an_edge_of_a_graph_that_is_there(recipe: Path) -> None:
    spec = load_training(recipe)
    choose_edge(load_recipe(FOLDER / spec.graph, allow_paths=True), spec.edge)


def test_the_schema_beside_them_is_the_current_one() -> None:
    """`cachegraph schema --training -o recipes/train/train.schema.json` writes it."""
    assert (FOLDER / "train.schema.json").read_text(encoding="utf-8") == training_schema()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.next_token": 0, "loss.choices": 0}, "would be wrong: loss: next_token or choices must be above 0"),
        (
            {"loss.choices": 0, "loss.temperature": 6},
            "would be wrong: loss: temperature is that of choices; set choices above 0",
        ),
        ({"loss.temperature": 0}, "wrong at 'loss.temperature': .*greater than 0"),
        ({"loss.mismatched": 1, "optim.texts": 1}, "set optim.texts to 2 or more"),
    ],
)
def test_a_loss_that_cannot_be_computed_as_asked_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(load_training(FOLDER / "story-relay.yaml"), changes)


def test_a_graphs_recipe_is_told_how_to_be_trained_for() -> None:
    with pytest.raises(RecipeError, match=r"declares a graph, not a training; train for it with: .*--for RECIPE"):
        load_training(FOLDER.parent / "story-relay.yaml")

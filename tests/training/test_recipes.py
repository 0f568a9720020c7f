"""The training recipes that ship."""

from pathlib import Path

import pytest

from cachegraph.graph.recipe.load import load_recipe
from cachegraph.training.load import load_training, training_schema
from cachegraph.training.pair import choose_edge

FOLDER = Path(__file__).parents[2] / "recipes" / "train"


@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_training_recipe_names_an_edge_of_a_graph_that_is_there(recipe: Path) -> None:
    spec = load_training(recipe)
    choose_edge(load_recipe(FOLDER / spec.graph, allow_paths=True), spec.edge)


def test_the_schema_beside_them_is_the_current_one() -> None:
    """`cachegraph schema --training -o recipes/train/train.schema.json` writes it."""
    assert (FOLDER / "train.schema.json").read_text(encoding="utf-8") == training_schema()

"""What a recipe's edges will do is known before its models are loaded: the names of models, prompts, items, cards."""

from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.fusers.files.card import Card, Evidence, Geometry, ModelEnd
from cachegraph.channels.payload import Route
from cachegraph.graph.plan.expected_routes import expected_routes, read_included
from cachegraph.graph.recipe.spec import GraphSpec

EVIDENCE = {"data": "d", "metric": "accuracy", "examples": 300, "own": 0.6, "mismatched": 0.3, "low": 0.2, "high": 0.4}
EVALUATED = [Evidence.model_validate({**EVIDENCE, "task": task}) for task in ("private", "shared")]


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders that stand for models, and a translator and a fuser between them whose cards qualify them."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    for name in ("small", "large"):
        (tmp_path / "models" / name).mkdir(parents=True)
    ends = {end: ModelEnd(name=name, geometry=Geometry(2, 1, 4)) for end, name in END_NAMES.items()}
    for name, fields in CARDS.items():
        (tmp_path / "home" / "fusers" / name).mkdir(parents=True)
        made = Card.model_validate({**ends, **fields})
        (tmp_path / "home" / "fusers" / name / "card.json").write_text(made.model_dump_json())
    return tmp_path


END_NAMES = {"receiver": "small", "sharer": "large"}
CARDS: dict[str, dict[str, Any]] = {
    "translator": {"kind": "graft", "sharer_layers": (0, 1), "evidence": EVALUATED[:1]},
    "fuser": {"kind": "fuse", "layer_map": ((0, 0), (1, 1)), "evidence": EVALUATED[1:]},
}


def routes(folder: Path, agents: dict[str, Any], edges: list[dict[str, Any]], **more: Any) -> dict[Any, Route]:
    spec = GraphSpec.model_validate(
        {
            "version": 1,
            "name": "g",
            "models": {"small": "./models/small", "large": str(folder / "models" / "large")},
            "inputs": {"topic": {}},
            "agents": agents,
            "edges": edges,
            "output": edges[-1]["to"],
            **more,
        }
    )
    return expected_routes(spec, folder, lambda entry: read_included(entry, folder))


def agent(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, **more}


AUTO = [{"from": "a", "to": "b", "channel": "auto"}]


def test_models_in_folders_go_by_their_engines_names(shelf: Path) -> None:
    found = routes(shelf, {"a": agent("large", "{{ topic }}"), "b": agent("small", "{{ a }}")}, AUTO)
    assert (found["a", "b"].used, found["a", "b"].fuser) == ("cache", "translator")


def test_one_model_by_two_names_is_one_model(shelf: Path) -> None:
    models = {"one": "./models/small", "two": str(shelf / "models" / "small")}
    agents = {"a": agent("one", "{{ topic }}"), "b": agent("two", "{{ a }}")}
    found = routes(shelf, agents, AUTO, models=models)
    assert (found["a", "b"].used, found["a", "b"].fuser) == ("cache", None)


def test_two_models_of_one_name_are_two(shelf: Path) -> None:
    (shelf / "elsewhere" / "small").mkdir(parents=True)
    models = {"one": "./models/small", "two": "./elsewhere/small"}
    agents = {"a": agent("one", "{{ topic }}"), "b": agent("two", "{{ a }}")}
    found = routes(shelf, agents, AUTO, models=models)
    assert found["a", "b"].used == "text"


@pytest.mark.parametrize("prompt", ["{{ topic | truncate(3) }} {{ a }}", "{% if a %}{{ topic }}{% endif %} {{ a }}"])
def test_a_fuser_is_not_picked_where_the_receiver_may_read_less(shelf: Path, prompt: str) -> None:
    (shelf / "home" / "fusers" / "translator" / "card.json").unlink()
    for text, used in (("{{ topic }} {{ a }}", "cache"), (prompt, "text")):
        found = routes(shelf, {"a": agent("large", "{{ topic }}"), "b": agent("small", text)}, AUTO)
        assert found["a", "b"].used == used


def test_items_of_one_name_are_not_one_text(shelf: Path) -> None:
    (shelf / "home" / "fusers" / "translator" / "card.json").unlink()
    agents = {
        "a": agent("large", "{{ item }}", for_each="topic.splitlines()"),
        "b": agent("small", "{{ item }} {{ a }}", for_each="topic.split(' ')"),
    }
    found = routes(shelf, agents, AUTO)
    assert found["a", "b"].used == "text"
    agents = {name: {**each, "model": "small"} for name, each in agents.items()}
    prompt = [{"from": "a", "to": "b", "channel": "cache", "carries": "prompt"}]
    assert routes(shelf, agents, prompt)["a", "b"].used == "cache"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"function": "f.py:f"}, "agent 'a' is a function, which has no KV cache"),
        ({"pause": "{{ topic }}?"}, "agent 'a' is a person, who has no KV cache"),
    ],
)
def test_who_has_no_model_sends_words(shelf: Path, entry: dict[str, Any], reason: str) -> None:
    found = routes(shelf, {"a": entry, "b": agent("small", "{{ a }}")}, AUTO)
    assert (found["a", "b"].used, found["a", "b"].fallback_reason) == ("text", reason)

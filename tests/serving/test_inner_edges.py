"""Edges of included recipes on a server: listed, switched, and the same in runs that a later server resumes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Running, served, wait_until
from server_graphs import tiny_team

from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.serving.served_graphs import ServedGraph

EDGE = "team/reader:team/writer"
STORY = {"story": "the sea is green"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served([tiny_team(tmp_path_factory.mktemp("team"))]) as running:
        yield running


def finished(server: Running, **body: Any) -> dict[str, Any]:
    run = server.post("/runs", {"graph": "outer", "inputs": STORY, **body}).json()["id"]
    wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")
    found: dict[str, Any] = server.get(f"/runs/{run}").json()
    return found


def used(run: dict[str, Any]) -> str:
    (edge,) = run["result"]["edges"]
    return str(edge["channel_used"])


def test_agents_and_edges_of_included_recipes_are_listed_by_their_full_names(server: Running) -> None:
    graph = server.get("/graphs/outer").json()
    assert graph["edges"] == []
    (edge,) = graph["inner_edges"]
    assert (edge["from"], edge["to"], edge["channel"]) == ("team/reader", "team/writer", "cache")
    assert "text" in graph["channels"]
    assert {name: agent["kind"] for name, agent in graph["inner_agents"].items()} == {
        "team/reader": "model",
        "team/writer": "model",
    }


def test_an_edge_of_an_included_recipe_is_switched_by_its_full_name(server: Running) -> None:
    assert used(finished(server)) == "cache"
    run = finished(server, channels={EDGE: "text"})
    assert used(run) == "text"
    (edge,) = server.get(f"/runs/{run['id']}/replay").json()["graph"]["inner_edges"]
    assert edge["channel"] == "text"
    checked = server.post("/graphs/outer/check", {"channels": {EDGE: "both"}}).json()["graph"]
    assert checked["inner_edges"][0]["channel"] == "both"


def test_an_unknown_edge_of_an_included_recipe_is_refused(server: Running) -> None:
    for name in ("team/reader:team/other", "team/reader:writer", "reader:writer", "other/a:other/b"):
        answer = server.post("/runs", {"graph": "outer", "inputs": STORY, "channels": {name: "text"}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "channels")


@pytest.mark.parametrize("first", [None, "text", "both"])
def test_the_copy_of_a_stored_recipe_is_found_by_its_inner_channels(tmp_path: Path, first: Any) -> None:
    graph = tiny_team(tmp_path)
    served_graph = ServedGraph(graph)
    base = graph.with_channels(first) if first else graph
    for channel in ("text", "cache", "auto"):
        wanted = base.with_channels({("team/reader", "team/writer"): channel})
        stored = parse_recipe(wanted.to_yaml(), folder=tmp_path, allow_paths=True)
        found = served_graph.variant_of(stored)
        assert found is not None
        assert found.spec == wanted.spec


def test_a_paused_run_with_a_switched_inner_edge_is_answered(tmp_path: Path) -> None:
    graph = tiny_team(tmp_path, asks=True)
    with served([graph]) as server:
        run = server.post("/runs", {"graph": "outer", "inputs": STORY, "channels": {EDGE: "text"}}).json()["id"]
        wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "paused")
        answer = server.post(f"/runs/{run}/answer", {"answer": "yes"})
        assert answer.status_code == 200, answer.text
        wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")


def test_a_graph_is_still_described_if_an_included_recipe_has_gone(tmp_path: Path) -> None:
    graph = tiny_team(tmp_path)
    with served([graph]) as server:
        (tmp_path / "pair.yaml").unlink()
        assert len(server.get("/graphs/outer").json()["inner_edges"]) == 1

"""What a server tells of itself: /graphs, /metrics, /openapi.json."""

import re
from pathlib import Path

import pytest
from live_server import Running, chat, send, served
from server_graphs import scripted_duo, tiny_duo

from cachegraph.agents.scripted import ScriptedAgent


def values(server: Running, name: str, **labels: str) -> list[float]:
    """The values of all samples of a metric with these labels."""
    found = []
    for line in server.get("/metrics").text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name:
            theirs = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= theirs.items():
                found.append(float(match[3]))
    return found


def test_graphs_are_told_as_they_are_declared() -> None:
    with served([tiny_duo()]) as server:
        (graph,) = server.get("/graphs").json()["graphs"]
        assert server.get("/graphs/pair").json() == graph
        assert graph["edges"][0] | {"when": None} == {
            "from": "reader",
            "to": "writer",
            "channel": "cache",
            "when": None,
            "max_rounds": None,
        }
        assert graph["inputs"]["question"]["default"] == "what?"
        assert graph["outputs"] == {"writer": "writer"}
        assert server.get("/graphs/other").status_code == 404
        assert str(Path.home()) not in server.get("/graphs").text


def test_metrics_count_runs_tokens_edges_and_memory() -> None:
    with served([tiny_duo()]) as server:
        body = chat("the sea is green", "pair")
        answer = server.post("/v1/chat/completions", body).json()
        (edge,) = answer["cachegraph"]["edges"]
        assert values(server, "cachegraph_runs_total", graph="pair", status="finished") == [1]
        assert values(server, "cachegraph_tokens_total", kind="generated") == [answer["usage"]["completion_tokens"]]
        assert values(server, "cachegraph_tokens_total", kind="cached") == [edge["positions_grafted"]]
        assert values(server, "cachegraph_edge_bytes_total", **{"from": "reader", "to": "writer"}) == [edge["bytes"]]
        assert values(server, "cachegraph_edge_positions_total", kind="grafted") == [edge["positions_grafted"]]
        assert values(server, "cachegraph_first_token_seconds_count") == [1]
        buckets = values(server, "cachegraph_run_seconds_bucket")
        assert buckets == sorted(buckets)
        assert buckets[-1] == 1
        assert values(server, "cachegraph_kv_bytes", kind="budget")[0] > 0
        assert values(server, "cachegraph_kv_bytes", kind="peak")[0] > 0
        assert values(server, "cachegraph_rows") == [0, 0, 0]
        assert values(server, "cachegraph_requests_total", path="/v1/chat", status="200") == [1]
        server.get("/v1/chat/nothing")
        server.get("/anything")
        assert values(server, "cachegraph_requests_total", path="other", status="404") == [1]


def test_a_failed_run_is_counted_too() -> None:
    with served([scripted_duo(ScriptedAgent("expert", fail=ValueError("no")))]) as server:
        server.post("/v1/chat/completions", chat())
        assert values(server, "cachegraph_runs_total", status="failed") == [1]


def test_the_document_names_every_path(scripted_server: Running) -> None:
    document = scripted_server.get("/openapi.json").json()
    routes = {route.path for route in scripted_server.process.app.routes} - {"/openapi.json"}  # type: ignore[attr-defined]
    assert set(document["paths"]) == routes
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"model", "messages", "inputs"} <= fields.keys()
    references = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', scripted_server.get("/openapi.json").text)
    assert set(references) <= document["components"]["schemas"].keys()


def test_the_document_forbids_what_the_server_refuses(scripted_server: Running) -> None:
    document = scripted_server.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["service_tier"] == {"enum": [None, "auto", "default"]}
    assert schemas["MessageRequest"]["properties"]["tools"] == {"enum": [None, []]}
    limit, *_, status = document["paths"]["/runs"]["get"]["parameters"]
    assert (limit["schema"]["maximum"], "paused" in status["schema"]["enum"]) == (200, True)


@pytest.mark.parametrize(("path", "methods"), [("/runs", "GET, HEAD, POST"), ("/runs/x/cancel", "POST")])
def test_a_wrong_method_is_told_all_that_a_path_takes(scripted_server: Running, path: str, methods: str) -> None:
    answer = send("OPTIONS", f"{scripted_server.url}{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)

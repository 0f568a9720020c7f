"""Lists at 80 and at 120 columns: names whole, replies shortened."""

from pathlib import Path

import pytest

from cachegraph import Graph
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.fusers import fuser_folder, inventory
from cachegraph.graph.store import Store

from .conftest import Call

LONG = "the_one_who_checks_all_the_citations"
REPLY = "It begins here and goes on for a very long time, " * 9


@pytest.fixture(params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.fixture
def run() -> str:
    agents = (ScriptedAgent(LONG, REPLY), ScriptedAgent("b", "short", finish_reason="length"))
    graph = Graph(name="a-graph-whose-name-is-rather-long-for-a-list", create=scripted(*agents)).add_input("q")
    graph.add_agent(LONG, model="m", prompt="{{ q }}").add_agent("b", model="m", prompt=f"{{{{ {LONG} }}}}")
    graph.add_edge(LONG, "b")
    graph.output = "b"
    return str(graph.run(q="?", store=Store()).run_id)


def test_a_run_shows_names_whole_and_replies_shortened(run: str, call: Call, columns: int) -> None:
    shown = call("runs", "show", run).out
    turns = shown[shown.index("turn") :] if columns == 120 else shown[shown.index(f"\n{LONG}") + 1 :]
    lines = turns.splitlines()
    assert max(map(len, lines)) <= columns
    (first,) = (line for line in lines if LONG in line)
    if columns == 120:
        assert "It begins here" in first
        assert "…" in first
    else:
        assert first == LONG
        assert lines[2].startswith("    It begins here and goes on")
        assert lines[2].endswith("…")
    assert "length" in turns
    assert "tokens" in turns


def test_a_list_of_runs_shows_names_whole(run: str, call: Call, columns: int) -> None:
    lines = call("runs", "list").out.splitlines()
    assert max(map(len, lines)) <= columns
    first = lines[0].index("graph")
    width = lines[0].index("status") - first
    assert "".join(line[first : first + width].strip() for line in lines[1:]) == (
        "a-graph-whose-name-is-rather-long-for-a-list"
    )
    assert run in lines[1]


def test_a_list_of_fusers_shows_names_whole(call: Call, columns: int) -> None:
    shown = call("fusers", "list").out
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= columns
    for name in ("smollm2-135m-instruct--gemma-3-270m--story", "gemma-3-270m → smollm2-135m-instruct"):
        assert any(name in line for line in lines)
    assert "graft bottleneck" in shown
    assert "shipped" in shown


def test_what_a_training_works_in_is_no_damaged_fuser(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = fuser_folder.installed_fusers()
    for name in ("mine.training/step-3", "broken", ".mine-xyz"):
        (shelf / name).mkdir(parents=True)
    names = [item.name for item in inventory.inventory() if item.where == "installed"]
    assert names == ["broken"]
    assert "mine.training" not in fuser_folder.fuser_names()
    (shelf / "odd.training").mkdir()
    (shelf / "odd.training" / "card.json").write_text("{}")  # somebody's fuser of that name
    assert "odd.training" in fuser_folder.fuser_names()

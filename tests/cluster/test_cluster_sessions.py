"""A session continues on a cluster and back in this process, with the replies of one process."""

from pathlib import Path
from typing import Any

import pytest
from clusters import kill_replicas
from typer.testing import CliRunner

from cachegraph import Graph, RunError
from cachegraph.agents.sessions.session_files import SessionRecord, read
from cachegraph.cli import app
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.run.result import Result
from cachegraph.graph.store import Store

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

Specs = dict[str, ModelSpec]
QUESTIONS = ["what is the sky?", "and the sea?", "what is the question of the answer?", "so?", "why?"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))


def chat(models: Specs, **options: Any) -> Graph:
    """A talker who remembers, and another one who takes its cache and remembers too."""
    graph = Graph(name="chat", models={"small": models["small"]}, output="checker")
    graph.add_input("q")
    parts: dict[str, Any] = {"model": "small", "generate": {"max_new_tokens": 8}, "memory": True, **options}
    graph.add_agent("talker", prompt="{{ q }}", **parts).add_agent("checker", prompt="{{ talker }} {{ q }}", **parts)
    return graph.add_edge("talker", "checker", "cache")


def recorded(session: str) -> SessionRecord:
    found = read(session)
    assert found is not None
    return found


def said(session: str) -> dict[str, Any]:
    """What a session holds, by agent, without its times."""
    return {
        name: (each.left_out, [(exchange.messages, exchange.reply) for exchange in each.exchanges])
        for name, each in recorded(session).agents.items()
    }


def turns(result: Result) -> list[int]:
    return [agent.memory.turns for agent in result.agents.values() if agent.memory is not None]


@pytest.mark.parametrize("memory", [True, {"turns": 2}])
def test_a_session_goes_to_a_cluster_survives_its_replicas_and_comes_back(
    models: Specs, cluster: Any, memory: Any
) -> None:
    with chat(models, memory=memory) as graph:
        there = graph.on_cluster(cluster)
        expected = [graph.run(q=question, session="here") for question in QUESTIONS]
        found = [graph.run(q=QUESTIONS[0], session="moving")]
        kept = recorded("moving").agents["talker"].cache
        found += [there.run(q=question, session="moving") for question in QUESTIONS[1:3]]
        assert recorded("moving").agents["talker"].cache == kept
        assert kill_replicas(cluster)
        found.append(there.run(q=QUESTIONS[3], session="moving"))
        found.append(graph.run(q=QUESTIONS[4], session="moving"))
        there.close()
    for here, elsewhere in zip(expected, found, strict=True):
        assert {name: agent.text for name, agent in elsewhere.agents.items()} == {
            name: agent.text for name, agent in here.agents.items()
        }
        assert turns(elsewhere) == turns(here)
        assert elsewhere.edges["talker", "checker"].positions_grafted > 0
    assert said("moving") == said("here")
    if memory is True:
        back = found[4].agents["talker"].memory
        assert back is not None
        assert back.reused > 0  # the first turn's cache begins the last prompt


def test_a_resumed_run_has_a_recalled_turns_cache_computed_with_what_was_said_before(
    models: Specs, cluster: Any, tmp_path: Path
) -> None:
    store, graph, failures = Store(tmp_path / "runs.db"), chat(models), list[ValueError]()

    @graph.function
    def check(talker: str) -> str:
        if failures:
            raise failures.pop()
        return talker

    graph.add_edge("talker", "check").add_edge("check", "checker")

    def resumed(where: Graph, session: str) -> Result:
        where.run(q=QUESTIONS[0], session=session)
        failures.append(ValueError("no"))
        with pytest.raises(RunError) as raised:
            where.run(q=QUESTIONS[1], session=session, store=store)
        assert raised.value.result.run_id is not None
        return where.resume(raised.value.result.run_id, store=store)

    with graph, graph.on_cluster(cluster) as there:
        expected, found = resumed(graph, "here"), resumed(there, "there")
    assert found.text == expected.text
    assert turns(found) == turns(expected) == [1, 1]
    assert said("there") == said("here")
    assert [len(exchanges) for _, exchanges in said("there").values()] == [2, 2]


def test_the_command_line_continues_a_session_on_a_cluster(models: Specs, cluster: Any, tmp_path: Path) -> None:
    chat(models).to_yaml(tmp_path / "chat.yaml")
    command = ["run", str(tmp_path / "chat.yaml"), "--allow-paths", "--quiet", "--no-store", "--session"]

    def reply(question: str, *options: str) -> str:
        ended = CliRunner().invoke(app, [*command, *options, "-i", f"q={question}"])
        assert ended.exception is None, ended.output
        return ended.stdout

    moving = [reply(QUESTIONS[0], "a"), reply(QUESTIONS[1], "a", "--cluster", "local")]
    assert moving == [reply(question, "b") for question in QUESTIONS[:2]]
    assert said("a") == said("b")


def test_of_idle_replicas_a_session_returns_to_the_one_that_took_its_last_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from cachegraph.cluster import replica_set

    model = ModelSpec.model_validate({"source": "m", "replicas": {"min": 3, "max": 3}})
    need: Any = None
    replicas = replica_set.ReplicaSet("key", model, Path(), True, need, lambda *_: None)
    handle: Any = replica_set.ReplicaHandle
    monkeypatch.setattr(replica_set, "current_head", lambda: None)
    monkeypatch.setattr(replica_set.ReplicaSet, "_start", lambda _: handle(None, None, facts=object()))
    with replicas.choose().working():
        last = replicas.choose(Path("alice"))
    assert replicas.choose() is not last
    assert replicas.choose(Path("alice")) is last
    with last.working():
        assert replicas.choose(Path("alice")) is not last

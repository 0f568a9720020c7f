"""Recipes that clients change: what they may, and what they may not."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_server import Running, served, wait_until
from server_graphs import tiny_solo

from cachegraph.agents.scripted import scripted
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.serving.auth import read_keys
from cachegraph.serving.changed_recipe import changed_spec
from cachegraph.serving.config import ServerLimits
from cachegraph.serving.recipe_source import RecipeSource

Change = Callable[[dict[str, Any]], None]

FOLDER = "/srv/models/secret-place"


def duo(**parts: Any) -> Graph:
    """A recipe whose model is a folder of the server's disk, as is its fuser."""
    models = {"m": ModelSpec(source=f"{FOLDER}/big"), "unused": ModelSpec(source="gemma-3-270m")}
    graph = Graph(name="duo", create=scripted(), models=models, **parts)
    graph.add_input("question")
    graph.add_agent("expert", model="m", prompt="{{ question }}")
    graph.add_agent("answerer", model="m", prompt="{{ expert }}!")
    graph.add_edge("expert", "answerer", "cache", fuser=f"{FOLDER}/fuser")
    graph.output = "answerer"
    return graph


def changed(change: Change, base: Graph | None = None) -> str:
    plain = yaml.safe_load(RecipeSource(base or duo()).text)
    change(plain)
    return yaml.safe_dump(plain, sort_keys=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_HOME", str(tmp_path_factory.mktemp("home")))
        with served([duo()], allow_upload=True) as running:
            yield running


def begin(server: Running, recipe: str, **more: Any) -> Any:
    return server.post("/runs", {"graph": "duo", "inputs": {"question": "why"}, "recipe": recipe, **more})


def test_the_text_of_a_recipe_has_no_path_of_the_server_and_is_accepted_as_it_is(server: Running) -> None:
    text = server.get("/graphs/duo/recipe").json()["recipe"]
    assert FOLDER not in text
    found = server.post("/graphs/duo/check", {"recipe": text}).json()
    assert found["problems"] == []
    assert FOLDER not in str(found)
    spec = changed_spec(text, RecipeSource(base := duo()), ServerLimits())
    assert spec == base.spec


def test_the_text_is_the_files_own_with_its_comments(tmp_path: Path) -> None:
    file = tmp_path / "duo.yaml"
    file.write_text(f"# why\n{duo().to_yaml()}".replace(FOLDER, "."))
    source = RecipeSource(Graph.from_yaml(file))
    assert source.text.startswith("# why\n")


def test_paths_are_told_apart_and_prompts_stay_as_they_are() -> None:
    models = {"m": ModelSpec(source="/data"), "n": ModelSpec(source="/other/data")}
    graph = Graph(name="duo", create=scripted(), models=models, fusers=("/one/fuser", "/two/fuser"))
    graph.add_agent("a", model="m", prompt="Look into /database, not into /data/x or x/data.")
    graph.add_agent("b", model="n", prompt="{{ a }}").add_edge("a", "b", "cache", fuser="/two/fuser")
    graph.output = "b"
    source = RecipeSource(graph)
    plain = yaml.safe_load(source.text)
    assert plain["agents"]["a"]["prompt"] == graph.spec.speakers["a"].prompt
    assert {"/data", "/other/data", "/one/fuser", "/two/fuser"}.isdisjoint(re.findall(r"[\w/]+", str(plain["models"])))
    assert len(set(plain["fusers"])) == 2
    assert changed_spec(source.text, source, ServerLimits()) == graph.spec


def test_a_changed_prompt_runs_and_the_served_recipe_stays(server: Running) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["agents"]["critic"] = {"model": "m", "prompt": "{{ expert }}?"}
        recipe["edges"] += [{"from": "expert", "to": "critic"}, {"from": "critic", "to": "answerer"}]
        recipe["agents"]["answerer"]["prompt"] = "{{ expert }} {{ critic }}"

    run = begin(server, changed(change), channels={"expert:answerer": "text"}).json()["id"]
    wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")
    replay = server.get(f"/runs/{run}/replay").json()
    assert list(replay["graph"]["agents"]) == ["expert", "answerer", "critic"]
    assert "critic" not in server.get("/graphs/duo").json()["agents"]
    assert "critic" not in server.get("/metrics").text
    assert 'status="finished"' in server.get("/metrics").text


def put(path: str, value: Any) -> Change:
    """Put a value at a path such as `agents.expert.model`."""

    def change(recipe: dict[str, Any]) -> None:
        *front, last = path.split(".")
        for step in front:
            recipe = recipe[int(step)] if isinstance(recipe, list) else recipe.setdefault(step, {})
        recipe[last] = value

    return change


def two(*changes: Change) -> Change:
    return lambda recipe: [change(recipe) for change in changes].clear()


FORBIDDEN: dict[str, Change] = {
    "a function": put("agents.expert", {"function": "os:getcwd"}),
    "a recipe in a file": put("agents.expert", {"graph": "/etc/passwd"}),
    "a recipe beside it": put("agents.expert", {"graph": "other.yaml"}),
    "a program as a tool server": put("tools", {"t": {"command": ["ls"]}}),
    "a tool server elsewhere": put("tools", {"t": {"url": "https://tools.example/mcp"}}),
    "tools of an agent": two(
        put("tools", {"t": {"url": "https://tools.example/mcp"}}), put("agents.expert.tools", ["t"])
    ),
    "another model of the hub": put("models.m", "someone/model"),
    "another name for a model": put("models.n", {"source": "big"}),
    "a model that the recipe does not use": put("agents.expert.model", "unused"),
    "a model by name": put("agents.expert.model", "gemma-3-270m"),
    "a model by hub id": put("agents.expert.model", "someone/model"),
    "a model by path": put("agents.expert.model", "/etc"),
    "a model by relative path": put("agents.expert.model", "./big"),
    "a hidden model by its last part": put("agents.expert.model", "big"),
    "other settings of a model": put("models.m.dtype", "float32"),
    "a chat template of the disk": put("models.m.chat_template", "/etc/passwd"),
    "an endpoint": put("models.m", {"base_url": "https://evil.example/v1", "model": "x"}),
    "an endpoint here": put("models.m", {"base_url": "http://127.0.0.1:9/v1", "model": "x"}),
    "an endpoint by its preset": put("agents.expert.model", "ollama/llama3"),
    "an endpoint with a key": put(
        "models.m", {"base_url": "https://evil.example/v1", "model": "x", "api_key_env": "CACHEGRAPH_KEY"}
    ),
    "another fuser": put("edges.0.fuser", "other"),
    "a fuser of the hub": put("edges.0.fuser", "hub:someone/name/folder"),
    "a fuser by path": put("fusers", ["/etc/fuser"]),
    "two fusers": put("edges.0.fuser", {"fuse": "fuser", "graft": "other"}),
    "another name": put("name", "other"),
    "too many tokens": put("agents.expert.generate", {"max_new_tokens": 100_000}),
    "a list of its own": put("agents.expert.for_each", "range(100000)"),
    "a long loop": lambda recipe: recipe["edges"].append(
        {"from": "answerer", "to": "expert", "max_rounds": 100_000, "when": "answerer"}
    ),
    "too many agents": lambda recipe: recipe["agents"].update(
        {f"a{n}": {"model": "m", "prompt": "{{ question }}"} for n in range(64)}
    ),
}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_a_changed_recipe_may_not_have(kind: str, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    text = changed(FORBIDDEN[kind])
    opened: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path, *_, **__: opened.append(str(path)))
        patch.setattr(Path, "open", lambda path, *_, **__: opened.append(str(path)))
        with pytest.raises(RecipeError) as refused:
            changed_spec(text, RecipeSource(duo()), ServerLimits())
    assert opened == []
    assert all(problem.line for problem in refused.value.problems)
    found = server.post("/graphs/duo/check", {"recipe": text}).json()
    assert (len(found["problems"]) > 0, found["graph"]) == (True, None)
    answer = begin(server, text)
    assert answer.status_code == 400
    assert FOLDER not in answer.text


def test_whether_a_file_exists_is_not_told(server: Running, tmp_path: Path) -> None:
    here, gone = ({"graph": str(path)} for path in (Path(__file__), tmp_path / Path(__file__).name))
    messages = [
        server.post("/graphs/duo/check", {"recipe": changed(put("agents.expert", entry))}).json()["problems"]
        for entry in (here, gone)
    ]
    assert messages[0] == messages[1]


def test_a_problem_is_at_its_line(server: Running) -> None:
    text = changed(put("agents.expert.prompt", "{{ qestion }}"))
    (problem,) = server.post("/graphs/duo/check", {"recipe": text}).json()["problems"]
    assert "qestion" in text.splitlines()[problem["line"] - 1]
    assert "question" in problem["hint"]
    (broken,) = server.post("/graphs/duo/check", {"recipe": "version: 1\nname: [\n"}).json()["problems"]
    assert broken["line"] > 0


def test_other_channels_show_what_they_drop_before_any_run(server: Running) -> None:
    found = server.post("/graphs/duo/check", {"channels": {"expert:answerer": "text"}}).json()
    assert found["graph"]["edges"][0]["channel"] == "text"
    assert server.post("/graphs/duo/check", {"channels": {"a:b": "text"}}).json()["problems"]
    assert server.post("/graphs/other/check", {}).status_code == 404


def test_without_the_flag_recipes_are_checked_here_and_shown_to_no_tenant(tmp_path: Path) -> None:
    text = changed(put("description", "other"))
    with served([duo()]) as server:
        assert begin(server, text).status_code == 403
        assert server.post("/graphs/duo/check", {"recipe": text}).json()["problems"] == []
    (tmp_path / "keys").write_text("alice secret\n")
    key = {"Authorization": "Bearer secret"}
    with served([duo()], keys=read_keys(tmp_path / "keys")) as server:
        assert server.get("/graphs/duo/recipe", headers=key).status_code == 403
        assert server.post("/graphs/duo/check", {"recipe": text}, headers=key).status_code == 403
        assert server.post("/graphs/duo/check", {}, headers=key).status_code == 200
        assert server.get("/graphs/duo/recipe").status_code == 401


def test_a_changed_recipe_that_asked_a_person_is_answered_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))

    def change(recipe: dict[str, Any]) -> None:
        recipe["agents"]["person"] = {"pause": "{{ expert }}?"}
        recipe["agents"]["answerer"]["prompt"] = "{{ person }}"
        recipe["edges"] = [{"from": "expert", "to": "person"}, {"from": "person", "to": "answerer"}]

    with served([duo()], allow_upload=True) as server:
        run = begin(server, changed(change)).json()["id"]
        wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "paused")
    with served([duo()]) as server:
        assert server.post(f"/runs/{run}/answer", {"answer": "42"}).status_code == 400
    with served([duo()], allow_upload=True) as server:
        assert server.post(f"/runs/{run}/answer", {"answer": "42"}).status_code == 200
        wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")
        assert server.get(f"/runs/{run}").json()["text"] == "answerer(42)"


def test_a_changed_recipe_gives_its_models_back_after_its_run(tmp_path: Path) -> None:
    from cachegraph.engine import pool

    with served([base := tiny_solo()], allow_upload=True) as server:
        text = changed(put("agents.a.prompt", "Well: {{ question }}"), base)
        leases = {id(entry): entry.users for entry in pool._entries.values()}
        given: dict[str, Any] = {"inputs": {"question": "?"}}
        bodies: list[dict[str, Any]] = [given, {"inputs": {}}, {**given, "channels": {"a": "x"}}]
        for body in bodies:
            answer = server.post("/runs", {"graph": "solo", "recipe": text, **body})
            if answer.status_code == 201:
                run = answer.json()["id"]
                wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")  # noqa: B023
        wait_until(lambda: {id(entry): entry.users for entry in pool._entries.values()} == leases, 20)
        assert server.post("/runs", {"graph": "solo", "inputs": {"question": "?"}}).status_code == 201


def test_the_command_line_takes_the_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cachegraph.cli import main

    monkeypatch.setattr(sys, "argv", ["cachegraph", "serve", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--allow-upload" in capsys.readouterr().out

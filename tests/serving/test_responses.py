"""/v1/responses with the official client, against a real server."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import Running, served
from server_graphs import scripted_duo, tiny_solo

from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.serving.auth import read_keys
from cachegraph.serving.openai.response_retention import sweep_responses


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    with served([tiny_solo(memory=True, generate={"max_new_tokens": 4})]) as server:
        yield server


def ask(server: Running, text: Any = "why?", model: str = "duo", **more: Any) -> Any:
    return server.openai().responses.create(model=model, input=text, **more)


def sessions(folder: Path) -> int:
    return sum(path.is_dir() for path in (folder / "sessions").glob("response-*"))


def test_a_text_is_answered_by_the_recipe(scripted_server: Running) -> None:
    answer = ask(scripted_server)
    assert answer.output_text == "answerer(expert(why?))"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "duo")
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "how?"}]}]
    assert ask(scripted_server, items).output_text == "answerer(expert(how?))"


def test_a_streamed_response_is_the_whole_one_in_events() -> None:
    with served([scripted_duo(ScriptedAgent("answerer", "one two three"))]) as server:
        events = list(ask(server, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[4:7] == ["output_text.delta"] * 3
    assert kinds[7:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "".join(event.delta for event in events[4:7]) == "one two three"
    assert events[-1].response.output_text == "one two three"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_that_is_cut_is_incomplete(tiny_server: Running) -> None:
    answer = ask(tiny_server, "the sea is green", "pair@cache", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 3
    assert answer.usage.input_tokens_details.cached_tokens == answer.cachegraph["edges"][0]["positions_grafted"] > 0


def test_a_response_goes_on_from_an_earlier_one_which_stays_as_it_was(remembering: Running, tmp_path: Path) -> None:
    first = ask(remembering, "hi", "solo")
    second = ask(remembering, "and?", "solo", previous_response_id=first.id)
    again = ask(remembering, "and?", "solo", previous_response_id=first.id)
    third = ask(remembering, "and?", "solo", previous_response_id=second.id)
    alone = ask(remembering, "and?", "solo")
    sizes = [each.usage.input_tokens for each in (alone, second, again, third)]
    assert sizes[0] < sizes[1] == sizes[2] < sizes[3]
    assert second.output_text == again.output_text
    assert second.previous_response_id == first.id
    assert sessions(tmp_path) == 5


def test_old_responses_are_deleted_and_the_oldest_of_too_many(remembering: Running, tmp_path: Path) -> None:
    ids = [ask(remembering, "hi", "solo").id for _ in range(3)]
    ask_by_name = {"model": "solo", "messages": [{"role": "user", "content": "hi"}], "session": "mine"}
    assert remembering.post("/v1/chat/completions", ask_by_name).status_code == 200
    folders = [tmp_path / "sessions" / f"response-{each}" for each in ids]
    for folder, days in zip(folders, (40, 20, 10), strict=True):
        changed = time.time() - days * 86_400
        os.utime(folder / "session.json", (changed, changed))
    assert sweep_responses(30, 1e9) == 1
    assert [folder.is_dir() for folder in folders] == [False, True, True]
    size = sum(file.stat().st_size for file in folders[2].iterdir())
    assert sweep_responses(30, size * 1.5) == 1
    assert [folder.is_dir() for folder in folders] == [False, False, True]
    assert sweep_responses(0, 0) == 1
    assert (tmp_path / "sessions" / "mine").is_dir()
    assert not list((tmp_path / "sessions").glob(".lock-response-*"))
    with pytest.raises(openai.BadRequestError, match="no response"):
        ask(remembering, "and?", "solo", previous_response_id=ids[0])
    assert not list((tmp_path / "sessions").glob(".lock-response-*"))


def test_responses_of_tenants_are_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    (tmp_path / "keys").write_text("alice one\n")
    graph = tiny_solo(memory=True, generate={"max_new_tokens": 4})
    with served([graph], keys=read_keys(tmp_path / "keys")) as server:
        server.openai("one").responses.create(model="solo", input="hi")
        assert sessions(tmp_path) == 1
        assert sweep_responses(30, 1e9) == 0
        assert sweep_responses(0, 1e9) == 1


def test_a_response_that_is_not_stored_leaves_nothing(remembering: Running, tmp_path: Path) -> None:
    first = ask(remembering, "hi", "solo")
    second = ask(remembering, "and?", "solo", previous_response_id=first.id, store=False)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert sessions(tmp_path) == 1
    with pytest.raises(openai.BadRequestError, match="no response"):
        ask(remembering, "and?", "solo", previous_response_id=second.id)


@pytest.mark.parametrize("previous", ["resp_0", "resp_" + "0" * 24, "../x", ""])
def test_a_response_that_there_is_not_is_refused(remembering: Running, tmp_path: Path, previous: str) -> None:
    with pytest.raises(openai.BadRequestError, match="no response"):
        ask(remembering, "and?", "solo", previous_response_id=previous)
    assert sessions(tmp_path) == 0


def test_a_recipe_without_memory_goes_on_from_nothing(scripted_server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="memory: true"):
        ask(scripted_server, previous_response_id="resp_" + "0" * 24)


def test_a_response_of_one_tenant_is_none_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    (tmp_path / "keys").write_text("alice one\nbob two\n")
    graph = tiny_solo(memory=True, generate={"max_new_tokens": 4})
    with served([graph], keys=read_keys(tmp_path / "keys")) as server:
        alice, bob = server.openai("one"), server.openai("two")
        first = alice.responses.create(model="solo", input="hi")
        with pytest.raises(openai.BadRequestError, match="no response"):
            bob.responses.create(model="solo", input="and?", previous_response_id=first.id)
        alice.responses.create(model="solo", input="and?", previous_response_id=first.id)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "none of the caller's"),
        ({"reasoning": {"effort": "high"}}, "'reasoning' is set"),
        ({"background": True}, "'background' is set"),
        ({"max_output_tokens": 100_000}, "at most 4096"),
        ({"text": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "takes? messages alone"),
        ({"extra_body": {"stop": "x"}}, "there is no field 'stop'"),
    ],
)
def test_what_a_recipe_can_not_honour_is_refused(scripted_server: Running, more: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(scripted_server, **more)

"""/v1/chat/completions with the official client, against a real server."""

import json
from typing import Any

import anyio
import openai
import pytest
from live_server import Running, chat, served
from server_graphs import scripted_duo

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.graph import Graph


def ask(server: Running, text: str = "why?", model: str = "duo", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return server.openai().chat.completions.create(model=model, messages=messages, **more)


def test_the_last_user_message_becomes_the_recipes_input_and_its_reply_the_answer(scripted_server: Running) -> None:
    answer = ask(scripted_server)
    assert answer.choices[0].message.content == "answerer(expert(why?))"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "duo"


def test_a_streamed_answer_is_the_whole_one_in_pieces(scripted_server: Running) -> None:
    agent = ScriptedAgent("answerer", "one two three")
    with served([scripted_duo(agent)]) as server:
        chunks = list(ask(server, stream=True, stream_options={"include_usage": True}))
    *pieces, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == "one two three"
    assert len([chunk for chunk in pieces if chunk.choices[0].delta.content]) == 3
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in pieces][-1] == "stop"
    assert {chunk.choices[0].finish_reason for chunk in pieces[:-1]} == {None}
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done_and_tells_usage_only_where_asked(scripted_server: Running) -> None:
    answer = scripted_server.post("/v1/chat/completions", chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert all("usage" not in json.loads(event) for event in events[:-1])


def test_the_asynchronous_client_streams_too(scripted_server: Running) -> None:
    async def pieces() -> str:
        async with openai.AsyncOpenAI(base_url=f"{scripted_server.url}/v1", api_key="none") as asynchronous:
            messages: Any = [{"role": "user", "content": "why?"}]
            stream = await asynchronous.chat.completions.create(model="duo", messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert anyio.run(pieces) == "answerer(expert(why?))"


def test_inputs_may_all_be_given_by_name(scripted_server: Running) -> None:
    answer = ask(scripted_server, "go", extra_body={"inputs": {"question": "how?"}})
    assert answer.choices[0].message.content == "answerer(expert(how?))"
    assert any("reaches nobody" in warning for warning in answer.cachegraph["warnings"])


def test_messages_before_the_last_one_are_warned_of_or_reach_an_input_for_them(scripted_server: Running) -> None:
    messages: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "why?"}]
    answer = scripted_server.openai().chat.completions.create(model="duo", messages=messages)
    assert "1 other message reaches nobody" in answer.cachegraph["warnings"][0]  # type: ignore[attr-defined]
    talk = Graph(name="talk", create=scripted(ScriptedAgent("a", lambda turn: repr(turn.inputs["messages"]))))
    talk.add_input("messages", type="list")
    talk.add_agent("a", model="m", prompt="{{ messages }}")
    talk.output = "a"
    with served([talk]) as server:
        whole = server.openai().chat.completions.create(model="talk", messages=messages)
    assert whole.choices[0].message.content == repr(messages)
    assert whole.cachegraph["warnings"] == []  # type: ignore[attr-defined]


def test_content_may_come_in_parts_of_text(scripted_server: Running) -> None:
    parts: Any = [{"type": "text", "text": "wh"}, {"type": "text", "text": "y?"}]
    assert ask(scripted_server, parts).choices[0].message.content == "answerer(expert(why?))"
    with pytest.raises(openai.BadRequestError, match="recipes take text alone"):
        ask(scripted_server, [{"type": "image_url", "image_url": {"url": "x"}}])  # type: ignore[arg-type]


def test_a_channel_is_chosen_with_the_model(tiny_server: Running) -> None:
    def edge(model: str) -> Any:
        (found,) = ask(tiny_server, "the sky is blue", model).cachegraph["edges"]
        return found

    assert (edge("pair")["channel"], edge("pair@cache")["channel"]) == ("cache", "cache")
    assert edge("pair@text")["channel"] == "text"
    assert edge("pair@both")["channel"] == "both"
    assert edge("pair@auto")["asked"] == "auto"
    assert edge("pair@cache")["positions_grafted"] > 0
    assert edge("pair@text")["positions_grafted"] == 0


def test_cached_tokens_are_the_positions_that_were_grafted_or_found(tiny_server: Running) -> None:
    answer = ask(tiny_server, "the sea is green", "pair@cache")
    (edge,) = answer.cachegraph["edges"]
    usage = answer.usage
    assert usage.prompt_tokens_details.cached_tokens == edge["positions_grafted"] > 0
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.cachegraph["bytes"] == edge["bytes"] > 0
    assert ask(tiny_server, "the sea is green", "pair@text").usage.prompt_tokens_details.cached_tokens == 0


def test_a_prompt_that_was_read_before_counts_as_cached(tiny_server: Running) -> None:
    long = "the sky is blue and the sea is green " * 30
    first, second = (ask(tiny_server, long, "solo", max_tokens=1).usage for _ in range(2))
    assert first.prompt_tokens == second.prompt_tokens
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens > 0


def test_settings_change_the_reply(tiny_server: Running) -> None:
    def text(**more: Any) -> Any:
        return ask(tiny_server, "what", "solo", **more)

    whole = text().choices[0].message.content
    short = text(max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3
    assert whole.startswith(short.choices[0].message.content)
    assert text(max_completion_tokens=3).usage.completion_tokens == 3
    stopped = text(stop=whole[2:4]).choices[0]
    assert stopped.message.content == whole[: whole.index(whole[2:4])]
    assert stopped.finish_reason == "stop"
    seeded = [text(temperature=2.0, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_several_choices_differ_and_keep_their_places(tiny_server: Running) -> None:
    answer = ask(tiny_server, "what", "solo", n=3, temperature=2.0, seed=7)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 36
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(tiny_server, "what", "solo", n=3, temperature=2.0, seed=7, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_a_reply_is_held_to_a_json_schema(tiny_server: Running) -> None:
    schema = {"enum": ["yes", "no"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = ask(tiny_server, "what", "solo", response_format=wanted, max_tokens=60)
    assert json.loads(answer.choices[0].message.content) in schema["enum"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "none of the caller's"),
        ({"presence_penalty": 1}, "'presence_penalty' is set, and no recipe can honour it"),
        ({"logprobs": True}, "'logprobs' is set"),
        ({"max_tokens": 100_000}, "at most 4096"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 50}, "'temperature' is wrong"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 9}, "at most 8 choices"),
        ({"extra_body": {"inputs": {"qestion": "x"}}}, "did you mean 'question'"),
        ({"extra_body": {"tempratur": 1}}, "did you mean 'temperature'"),
        ({"extra_body": {"session": "s"}}, "no agent of 'duo' remembers a session"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no `schema`"),
    ],
)
def test_what_a_recipe_can_not_honour_is_refused_in_a_sentence(
    scripted_server: Running, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(scripted_server, **more)


def test_a_missing_input_is_refused_with_the_way_to_give_it_in_a_request(scripted_server: Running) -> None:
    remedy = 'give it by name, as {"inputs": {"question": ...}}'
    answer = scripted_server.post("/runs", {"graph": "duo"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(f"'question' is missing (A question.); {remedy}")
    messages: Any = [{"role": "system", "content": "Be short."}]
    with pytest.raises(openai.BadRequestError, match="there is no user message") as caught:
        scripted_server.openai().chat.completions.create(model="duo", messages=messages)
    assert remedy in caught.value.message


def test_an_unknown_model_or_channel_is_not_found(scripted_server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'duo'"):
        ask(scripted_server, model="dua")
    with pytest.raises(openai.NotFoundError, match="did you mean 'cache'"):
        ask(scripted_server, model="duo@cash")


def test_models_are_the_recipes(tiny_server: Running) -> None:
    assert [model.id for model in tiny_server.openai().models.list()] == ["solo", "pair"]
    assert tiny_server.openai().models.retrieve("pair@text").id == "pair@text"
    with pytest.raises(openai.NotFoundError):
        tiny_server.openai().models.retrieve("other")


def test_the_reply_of_a_loop_is_streamed_as_its_last_round_wrote_it() -> None:
    drafts = iter(["first", "second"])
    writer = ScriptedAgent("writer", lambda turn: next(drafts))
    graph = Graph(name="loop", create=scripted(writer, ScriptedAgent("critic", "again")))
    graph.add_input("task")
    graph.add_agent("writer", model="m", prompt="{{ task }} {{ critic }}")
    graph.add_agent("critic", model="m", prompt="{{ writer }}")
    graph.add_edge("writer", "critic")
    graph.add_edge("critic", "writer", max_rounds=2)
    graph.output = "writer"
    with served([graph]) as server:
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask(server, "x", "loop", stream=True)]
    assert "".join(pieces) == "second"


def test_a_run_that_fails_is_an_error_before_a_stream_and_an_event_within_it() -> None:
    failing = ScriptedAgent("answerer", fail=ValueError("no"))
    with served([scripted_duo(failing)]) as server:
        with pytest.raises(openai.UnprocessableEntityError, match="agent 'answerer' failed"):
            ask(server)
        with pytest.raises(openai.UnprocessableEntityError, match="agent 'answerer' failed"):
            ask(server, stream=True)


@pytest.mark.models
def test_demo_models_answer_over_both_channels(demo_engines: Any) -> None:
    from pathlib import Path

    recipe = Path(__file__).parents[2] / "recipes" / "science-duo.yaml"
    with served([Graph.from_yaml(recipe)]) as server:
        cache = ask(server, "Why is the sky blue?", "science-duo@cache", max_tokens=8)
        text = ask(server, "Why is the sky blue?", "science-duo@text", max_tokens=8)
    assert cache.cachegraph["edges"][0]["positions_fused"] > 0
    assert text.cachegraph["edges"][0]["channel"] == "text"
    assert cache.choices[0].message.content != ""
    assert cache.usage.completion_tokens == 8
    assert text.usage.completion_tokens == 8 + text.usage.completion_tokens_details.reasoning_tokens

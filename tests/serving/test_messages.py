"""/v1/messages with the official client of the Anthropic API, against a real server."""

from typing import Any

import anthropic
import anyio
import pytest
from live_server import Running, served
from server_graphs import scripted_duo

from cachegraph.agents.scripted import ScriptedAgent


def ask(server: Running, text: str = "why?", model: str = "duo", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return server.anthropic().messages.create(model=model, messages=messages, **{"max_tokens": 64, **more})


def test_a_message_is_answered_by_the_recipe(scripted_server: Running) -> None:
    answer = ask(scripted_server)
    assert [block.text for block in answer.content] == ["answerer(expert(why?))"]
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "duo")
    assert answer.stop_reason == "end_turn"
    assert answer.cachegraph["edges"][0]["to"] == "answerer"


def test_a_streamed_message_is_the_whole_one_in_events() -> None:
    with served([scripted_duo(ScriptedAgent("answerer", "one two three"))]) as server:
        messages: Any = [{"role": "user", "content": "why?"}]
        with server.anthropic().messages.stream(model="duo", messages=messages, max_tokens=64) as stream:
            kinds = [event.type for event in stream if event.type != "text"]
            assert stream.get_final_text() == "one two three"
            final = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[2:5] == ["content_block_delta"] * 3
    assert kinds[5:] == ["content_block_stop", "message_delta", "message_stop"]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 4


def test_the_asynchronous_client_works_too(scripted_server: Running) -> None:
    async def pieces() -> str:
        async with anthropic.AsyncAnthropic(base_url=scripted_server.url, api_key="none") as client:
            messages: Any = [{"role": "user", "content": "why?"}]
            async with client.messages.stream(model="duo", messages=messages, max_tokens=9) as stream:
                return "".join([text async for text in stream.text_stream])

    assert anyio.run(pieces) == "answerer(expert(why?))"


def test_usage_counts_what_was_cached_apart(tiny_server: Running) -> None:
    answer = ask(tiny_server, "the sea is green", "pair@cache", max_tokens=4)
    grafted = answer.cachegraph["edges"][0]["positions_grafted"]
    assert answer.usage.cache_read_input_tokens == grafted > 0
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens == 4
    assert answer.stop_reason == "max_tokens"


def test_a_stop_sequence_is_named(tiny_server: Running) -> None:
    whole = ask(tiny_server, "what", "solo", max_tokens=12).content[0].text
    answer = ask(tiny_server, "what", "solo", max_tokens=12, stop_sequences=[whole[2:4]])
    assert answer.content[0].text == whole[: whole.index(whole[2:4])]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", whole[2:4])


def test_tokens_are_counted_without_a_run(tiny_server: Running) -> None:
    messages: Any = [{"role": "user", "content": "the sky is blue"}]
    client = tiny_server.anthropic()
    few = client.messages.count_tokens(model="solo", messages=messages).input_tokens
    more = client.messages.count_tokens(model="solo", messages=messages, system="the sea is green").input_tokens
    assert 0 < few < more


def test_models_are_listed_for_this_client_too(scripted_server: Running) -> None:
    (model,) = scripted_server.anthropic().models.list()
    assert (model.id, model.type, model.display_name) == ("duo", "model", "duo")
    assert scripted_server.anthropic().models.retrieve("duo@text").id == "duo@text"


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"model": "dua"}, anthropic.NotFoundError, "did you mean 'duo'"),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
            anthropic.BadRequestError,
            "none of the caller",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, anthropic.BadRequestError, "'thinking' is set"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"extra_body": {"tempratur": 1}}, anthropic.BadRequestError, "did you mean 'temperature'"),
    ],
)
def test_errors_are_those_that_the_client_knows(
    scripted_server: Running, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask(scripted_server, **more)


def test_a_failing_run_is_an_error_in_a_stream_too() -> None:
    with (
        served([scripted_duo(ScriptedAgent("answerer", fail=ValueError("no")))]) as server,
        pytest.raises(anthropic.UnprocessableEntityError, match="agent 'answerer' failed"),
    ):
        ask(server, stream=True)


def test_a_message_without_a_key_is_refused_in_the_words_of_this_api(tmp_path: Any) -> None:
    from cachegraph.serving.auth import read_keys

    (tmp_path / "keys").write_text("secret")
    with served([scripted_duo()], keys=read_keys(tmp_path / "keys")) as server:
        with pytest.raises(anthropic.AuthenticationError):
            ask(server)
        assert (
            server.anthropic("secret")
            .messages.count_tokens(model="duo", messages=[{"role": "user", "content": "12345678"}])
            .input_tokens
            == 2
        )

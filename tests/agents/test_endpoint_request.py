"""What is sent to an endpoint: parameters that a model refuses, headers and bodies of a recipe, secrets."""

import json
import logging
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest
from chat_server import DONE, Answer, Server, event, piece, status, stream
from endpoint_agent import KEY, say

from cachegraph.agents.endpoint.agent import EndpointAgent
from cachegraph.agents.endpoint.request import body_of, chat_address
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError, RecipeError
from cachegraph.graph.recipe.load import load_recipe

pytestmark = pytest.mark.anyio

OK = stream(piece("Yes.", "stop"), DONE)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def refuses(message: str, http: int = 400, **error: Any) -> Answer:
    return status(http, json.dumps({"error": {"message": message, **error}}), content_type="application/json")


MISTRAL = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]}
REFUSALS: dict[str, tuple[Answer, dict[str, Any]]] = {
    "OpenAI: max_tokens": (
        refuses(
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        {"max_tokens": None, "max_completion_tokens": 128},
    ),
    "OpenAI: temperature": (
        refuses(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
            param="temperature",
        ),
        {"temperature": None, "max_tokens": 128},
    ),
    "OpenAI: streaming": (
        refuses("Your organization must be verified to stream this model.", param="stream"),
        {"stream": None, "stream_options": None},
    ),
    "Azure: no param": (refuses("`temperature` is deprecated for this model."), {"temperature": None}),
    "Mistral: FastAPI's words": (status(422, json.dumps(MISTRAL)), {"stream_options": None, "stream": True}),
    "a proxy: words": (status(400, "Unrecognized request argument supplied: stream_options"), {"stream_options": None}),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refused_parameter_is_left_out_or_renamed_and_that_is_remembered(server: Server, name: str) -> None:
    refusal, wanted = REFUSALS[name]
    server.script = [refusal, OK, OK]
    agent = EndpointAgent("x", AgentSpec(model="m", prompt="p"), EndpointSpec(base_url=server.url, model="big"))
    await agent.open()
    from cachegraph.agents.base import Turn

    for _ in range(2):
        assert (await agent.turn(Turn({}))).payload.text == "Yes."
    assert len(server.requests) == 3
    for request in server.requests[1:]:
        assert {key: request.get(key) for key in wanted} == wanted


async def test_several_refused_parameters_are_found_one_after_the_other(server: Server) -> None:
    server.script = [REFUSALS["OpenAI: max_tokens"][0], REFUSALS["OpenAI: temperature"][0], OK]
    await say(server, retries=0)
    assert server.requests[-1].keys() == {"model", "messages", "stream", "stream_options", "max_completion_tokens"}


@pytest.mark.parametrize(
    "answer",
    [
        refuses("max_tokens is too large: 128. This model supports at most 64 completion tokens.", param="max_tokens"),
        refuses("Unsupported parameter: 'seed'", param="seed"),
        refuses("Unsupported parameter: 'top_p'", param="top_p"),
        refuses("unknown model"),
        refuses("temperature is not supported", http=500),
    ],
)
async def test_other_refusals_are_errors_at_once(server: Server, answer: Answer) -> None:
    server.script = [answer, OK]
    with pytest.raises(ModelError, match="answered [45]0"):
        await say(server, retries=0)
    assert len(server.requests) == 1


async def test_a_parameter_is_refused_only_once(server: Server) -> None:
    server.script = [REFUSALS["OpenAI: temperature"][0]]
    with pytest.raises(ModelError, match="answered 400: Unsupported value: 'temperature'"):
        await say(server, retries=0)
    assert len(server.requests) == 2


async def test_headers_and_body_of_the_recipe_are_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    server.script = [OK]
    place = {
        "base_url": f"{server.url}?api-version=2024-10-21",
        "headers": {"api-key": {"env": "CACHEGRAPH_KEY"}, "X-Title": "our graph"},
        "extra_body": {"reasoning_effort": "low", "temperature": 1, "provider": {"order": ["a"]}, "x": None},
    }
    await say(server, endpoint=place)
    assert server.headers[0]["api-key"] == KEY
    assert server.headers[0]["X-Title"] == "our graph"
    assert server.headers[0]["path"] == "/v1/chat/completions?api-version=2024-10-21"
    request = server.requests[0]
    assert (request["reasoning_effort"], request["temperature"], request["x"]) == ("low", 1, None)
    assert request["provider"] == {"order": ["a"]}


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("https://h/v1", "https://h/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h", "https://h/chat/completions"),
        ("https://h/a?b=c", "https://h/a/chat/completions?b=c"),
        ("https://h/a/?b=c#d", "https://h/a/chat/completions?b=c"),
    ],
)
def test_the_path_of_chats_stands_in_front_of_a_query(base: str, address: str) -> None:
    assert chat_address(base) == address


@pytest.mark.parametrize(
    "trouble",
    [
        lambda echo: status(401, json.dumps({"error": {"message": f"bad key {echo}"}})),
        lambda echo: status(500, f"<html><title>{echo}</title></html>"),
        lambda echo: status(400, " " * 65_000 + echo * 100),
        lambda echo: stream(event({"error": {"message": echo}})),
        lambda echo: stream(event(f"no JSON {echo}")),
        lambda echo: stream(event({"choices": [{"delta": {"refusal": echo}, "finish_reason": "stop"}]}), DONE),
        lambda echo: status(200, echo, content_type=f"text/{echo}"),
        lambda echo: status(200, "x", content_encoding=echo),
    ],
)
async def test_a_secret_is_in_no_error_and_no_log(
    server: Server, trouble: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    monkeypatch.setenv("CACHEGRAPH_OTHER", KEY + "-other")
    server.script = [trouble(f"{KEY}-other {KEY}")]
    place = {"headers": {"X-Key": {"env": "CACHEGRAPH_OTHER"}}}
    with caplog.at_level(logging.INFO), pytest.raises(ModelError) as caught:
        await say(server, key="CACHEGRAPH_KEY", endpoint=place, retries=0)
    assert "very-secret" not in str(caught.value) + repr(caught.value) + caplog.text
    assert "-other" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({"retry_after": "2"}, 2),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": formatdate(time() - 60, usegmt=True)}, 0),
        ({"retry_after": "-5"}, 0),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "Mon, 99 Jan 99999999999 00:00:00 GMT"}, None),
    ],
)
async def test_a_server_is_asked_again_when_it_says(
    server: Server, headers: dict[str, str], waited: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("cachegraph.agents.endpoint.retrying_client.anyio.sleep", sleep)
    monkeypatch.setattr("cachegraph.agents.endpoint.retrying_client.random", lambda: 0.5)
    server.script = [status(429, **headers), OK]
    await say(server, retry={"max_attempts": 2, "backoff": 7})
    assert waits == [7 if waited is None else waited]


@pytest.mark.parametrize(
    "trouble",
    [
        stream(event({"error": {"message": "slow down", "code": 429}})),
        stream(event({"object": "error", "message": "overloaded", "code": 503}), DONE),
        stream(event({"choices": [{"delta": {}, "finish_reason": "error"}]}), DONE),
        status(200, json.dumps({"error": {"message": "busy", "code": "529"}}), content_type="application/json"),
    ],
)
async def test_a_passing_error_inside_an_answer_is_tried_again_while_nothing_was_heard(
    server: Server, trouble: Answer
) -> None:
    server.script = [trouble, OK]
    assert (await say(server)).payload.text == "Yes."


async def test_a_passing_error_behind_words_is_not_tried_again(server: Server) -> None:
    server.script = [stream(piece("One"), event({"error": {"message": "slow down", "code": 429}})), OK]
    with pytest.raises(ModelError, match="reported an error: slow down"):
        await say(server)
    assert len(server.requests) == 1


RECIPE = """version: 1
name: e
models:
  m:
    base_url: {url}
    model: x
    {entry}
agents: {{a: {{model: m, prompt: Hi}}}}
output: a
"""


def test_headers_and_bodies_come_from_a_recipe_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    entry = "headers: {X-A: {env: CACHEGRAPH_K}, X-B: b}\n    extra_body: {a: [1, {b: null}], c: {d: []}, e: 1.5}"
    path.write_text(RECIPE.format(entry=entry, url="https://h/v1"))
    model = load_recipe(path).models["m"]
    assert isinstance(model, EndpointSpec)
    assert json.loads(json.dumps(model.extra_body)) == {"a": [1, {"b": None}], "c": {"d": []}, "e": 1.5}
    assert hash(model) == hash(load_recipe(path).models["m"])


@pytest.mark.parametrize(
    ("entry", "url", "message"),
    [
        ("headers: {Authorization: Bearer abc}", "https://h/v1", "7:30.*'Authorization' holds a secret"),
        ("headers: {x-api-key: abc}", "https://h/v1", "holds a secret.*name the variable"),
        ("headers: {Host: other}", "https://h/v1", "7:15.*belongs to the connection"),
        ("headers: {Content-Length: '5'}", "https://h/v1", "belongs to the connection"),
        ("headers: {X-A: a, x-a: b}", "https://h/v1", "7:[0-9]+.*'x-a' is given twice"),
        ('headers: {x: "a\\nb"}', "https://h/v1", "one line of printable ASCII"),
        ("headers: {'x y': a}", "https://h/v1", "7:15.*'x y' can't name an HTTP header"),
        ("headers: {x: {env: HOME}}", "https://h/v1", "no business with the environment variable 'HOME'"),
        ("headers: {x: {env: OPENAI_API_KEY}}", "https://h/v1", "goes to https://api.openai.com only"),
        ("headers: {x: {env: CACHEGRAPH_K}}", "http://h/v1", "'CACHEGRAPH_K' would travel unencrypted"),
        ("extra_body: {messages: []}", "https://h/v1", "7:18.*'messages' of a request is not extra"),
        ("extra_body: {n: 2}", "https://h/v1", "'n' of a request is not extra"),
        (
            "extra_body: {max_tokens: 5}",
            "https://h/v1",
            "7:18.*'max_tokens' .* 'generate.max_new_tokens' of its agents sets it; remove it here, and write",
        ),
        ("extra_body: {response_format: {type: text}}", "https://h/v1", "write it as 'generate.json_schema'"),
        ("extra_body: {model: big}", "https://h/v1", "'model' of the model sets it"),
        ("extra_body: {a: .inf}", "https://h/v1", "7:21"),
    ],
)
def test_headers_and_bodies_that_may_not_be_are_refused_with_their_place(
    tmp_path: Path, entry: str, url: str, message: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(entry=entry, url=url))
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("host", ["api.openai.com", "h"])
def test_no_key_that_a_recipe_sets_elsewhere_may_be_extra(tmp_path: Path, host: str) -> None:
    spec = GenerateSpec(
        temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=2.0, stop=("a",), seed=1, min_new_tokens=1,
        ignore_eos=True, json_schema={"type": "object"},
    )  # fmt: skip
    assert all(
        getattr(spec, name) != getattr(GenerateSpec(), name)
        for name in GenerateSpec.model_fields
        if name != "max_new_tokens"
    )
    url = f"https://{host}/v1"
    body = body_of("a", EndpointSpec(base_url=url, model="m"), [], spec, [])
    others = ("logprobs", "top_logprobs", "functions", "n", "max_tokens", "max_completion_tokens", "max_new_tokens")
    path = tmp_path / "r.yaml"
    for key in {*body, *others}:
        path.write_text(RECIPE.format(entry=f"extra_body: {{{key}: null}}", url=url))
        with pytest.raises(RecipeError, match=f"7:18: '{key}' of a request is not extra"):
            load_recipe(path)

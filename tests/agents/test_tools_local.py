"""A model of this machine at work with tools: what it is told, what it reads in each round, and that it goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_rows import check_row, plane, row

from cachegraph.agents.base import Reply, ToolCall, Turn
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.agents.spec import AgentSpec
from cachegraph.agents.tools.connection import Tool
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.engine.engine import Engine
from cachegraph.engine.request import Generated
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ModelError, RunError, ToolError

pytestmark = pytest.mark.anyio

WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
BARE = '{"name": "add", "arguments": {"a": 1}}'


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Adder:
    """Stands in for a connected server."""

    name = "calc"

    def __init__(self) -> None:
        self.closed = 0
        self.broken = False

    async def tools(self) -> list[Tool]:
        return [Tool("add", "Adds.", {"type": "object"}), Tool("sub", "", {"type": "object"})]

    async def call(self, tool: str, arguments: dict[str, Any]) -> Content:
        if self.broken:
            raise ToolError("the tool server 'calc' is gone")
        return (
            Content(str(arguments["a"] + arguments["b"])) if "b" in arguments else Content("b is missing", error=True)
        )

    async def close(self) -> None:
        self.closed += 1


def toolbox(*servers: Any) -> Toolbox:
    box = Toolbox()
    box._servers = {server.name: server for server in servers}
    box._users = {server.name: set() for server in servers}
    return box


def scripted(monkeypatch: pytest.MonkeyPatch, replies: Sequence[str]) -> list[str]:
    """The engine reads as ever, and these replies stand in for what it would decode; gives what it read each time."""
    script, reads = iter(replies), []

    async def generate(self: Engine, ids: Sequence[int], past: Any = (), spec: Any = None, **more: Any) -> Generated:
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        reads.append(tokenizer.raw.decode(ids, skip_special_tokens=False))
        text = next(script)
        reply = tokenizer.encode(text, special=False).ids
        done = await self.prefill([*ids, *reply], past, positions=more.get("positions"))
        if more.get("on_text"):
            more["on_text"](text)
        done.cost.generated = len(reply)
        return Generated(reply, text, "eos", done.segments, done.cost)

    monkeypatch.setattr(Engine, "generate", generate)
    return reads


@pytest.fixture
def speak(loaded: dict[str, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call it with replies to have an agent take a turn that gives them; what it read, and its reply."""

    async def take(
        *replies: str, box: Toolbox | None = None, model: str = "small", template: str | None = None, **parts: Any
    ) -> tuple[list[str], Reply]:
        reads = scripted(monkeypatch, replies)
        source = loaded[model]
        if template is not None:
            (tmp_path / "chat.jinja").write_text(template)
            source = replace_template(source, str(tmp_path / "chat.jinja"))
        spec = AgentSpec.model_validate({"model": model, "prompt": "{{ q }}", "tools": ["calc.add"], **parts})
        agent = LocalAgent("solver", spec, source, tmp_path, inputs=["q"], upstream=[], toolbox=box or toolbox(Adder()))
        turn = Turn({"q": "what is the sum?"}, needs_cache=True, id="solver#2")
        try:
            await agent.open()
            reply = await agent.turn(turn)
            await check_rebuilt(agent, turn, reply)
            return reads, reply
        finally:
            await agent.close()

    return take


async def check_rebuilt(agent: LocalAgent, turn: Turn, reply: Reply) -> None:
    """A resumed run has the cache of the turn again, and whose text each of its entries is."""
    calls = [ToolCall(**vars(call)) for call in reply.tool_calls]
    again = await agent.rebuild(turn, reply.ids, calls)
    assert (list(again.ids), list(again.origins)) == (list(plane(reply).ids), list(plane(reply).origins))


def replace_template(source: ModelSpec, file: str) -> ModelSpec:
    return source.model_copy(update={"chat_template": file})


async def test_results_are_read_behind_the_call_and_nothing_is_read_twice(speak: Any) -> None:
    reads, reply = await speak(CALL, "It is 3.", template=WITH_TOOLS)
    assert '"name": "add"' in reads[0]
    assert "sub" not in reads[0]
    assert reads[1] == "<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
    assert reply.payload.text == "It is 3."
    assert [(c.tool, c.arguments, c.result, c.error, c.round) for c in reply.tool_calls] == [
        ("calc.add", {"a": 1, "b": 2}, "3", False, 1)
    ]
    check_row(reply)
    assert reply.tokens.prefilled == len(plane(reply).ids)


async def test_the_row_is_what_reading_all_of_it_at_once_gives(speak: Any, loaded: Any, tmp_path: Path) -> None:
    from cachegraph.engine.pool import lease

    _, reply = await speak(CALL, CALL.replace("1", "5"), "It is 7.", template=WITH_TOOLS)
    taken = await lease(loaded["small"], tmp_path)
    try:
        whole = await taken.engine.prefill(list(plane(reply).ids))
    finally:
        taken.release()
    for ours, theirs in zip(row(reply).layers, whole.segments[0].layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-4)


async def test_results_are_handed_on_with_the_prompt_and_calls_are_nobodys_words(speak: Any) -> None:
    _, reply = await speak("Let me see." + CALL, "It is 3.", template=WITH_TOOLS)
    names = {origin[0] for origin in plane(reply).origins if origin}
    assert names == {"q", "solver.tools", "solver#2"}
    assert reply.payload.text == "Let me see.\n\nIt is 3."
    spoken = [origin for origin in plane(reply).origins if origin and origin[0] == "solver#2"]
    said = "".join(reply.payload.text[start:end] for _, start, end in spoken)
    assert said == "Let me see.It is 3."  # what it said before it called, too: as over text


@pytest.mark.parametrize("template", [None, STRICT])
async def test_a_template_without_tools_is_told_in_the_system_message(speak: Any, template: str | None) -> None:
    reads, reply = await speak(CALL, "It is 3.", template=template, system="Be brief.")
    assert reads[0].startswith("<|im_start|>system\nBe brief.\n\nYou can call tools.")
    role, wrapped = ("user", "<tool_response>\n3\n</tool_response>") if template else ("tool", "3")
    assert reads[1] == f"<|im_end|>\n<|im_start|>{role}\n{wrapped}<|im_end|>\n<|im_start|>assistant\n"
    assert reply.payload.text == "It is 3."


async def test_a_model_without_a_chat_template_reads_plain_text(speak: Any) -> None:
    reads, reply = await speak(CALL, "It is 3.", model="plain")
    assert reads[0].startswith("You can call tools.")
    assert reads[1] == "\n\n<tool_response>\n3\n</tool_response>\n\n"
    check_row(reply)


async def test_what_goes_wrong_in_a_call_is_told_to_the_model(speak: Any) -> None:
    bad = ['<tool_call>{"name": "sub"}</tool_call>', "<tool_call>{</tool_call>", CALL.replace(', "b": 2', "")]
    reads, reply = await speak(*bad, "I can't.", template=WITH_TOOLS)
    assert "Error: there is no tool 'sub'; there is add" in reads[1]
    assert "Error: this is not a call" in reads[2]
    assert "Error: b is missing" in reads[3]
    assert [call.error for call in reply.tool_calls] == [True] * 3


async def test_a_long_result_is_cut(speak: Any) -> None:
    reads, _ = await speak(CALL.replace("1", "123456"), "Long.", template=WITH_TOOLS, tool_limits={"result_bytes": 3})
    assert "123\n[cut: 3 of 6 bytes]" in reads[1]


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        ({"rounds": 1}, "its limit is 1 rounds .agents.solver.tool_limits.rounds"),
        ({"calls": 1}, "its limit is 1 calls"),
    ],
)
async def test_a_model_that_does_nothing_but_call_is_stopped(speak: Any, limits: dict[str, int], limit: str) -> None:
    with pytest.raises(RunError, match=limit):
        await speak(CALL, CALL, CALL, template=WITH_TOOLS, tool_limits=limits)


async def test_results_that_fill_the_context_are_an_error(speak: Any) -> None:
    long = CALL.replace('"a": 1', f'"a": {10**400}')
    with pytest.raises(ModelError, match="with the results of its tools agent 'solver' has read"):
        await speak(long, "x", template=WITH_TOOLS)


async def test_a_lost_server_ends_the_turn(speak: Any) -> None:
    server = Adder()
    server.broken = True
    with pytest.raises(ToolError, match="is gone"):
        await speak(CALL, "x", template=WITH_TOOLS, box=toolbox(server))
    assert server.closed == 1


async def test_a_tool_that_is_not_offered_is_named_with_those_that_are(speak: Any) -> None:
    with pytest.raises(
        ToolError, match="wants the tool 'mul', which the server 'calc' does not.*it offers 'add', 'sub'"
    ):
        await speak("x", tools=["calc.mul"])


async def test_tools_of_one_name_are_told_apart_by_their_servers(speak: Any) -> None:
    other = Adder()
    other.name = "other"
    call = CALL.replace('"add"', '"other_add"')
    reads, reply = await speak(call, "3", template=WITH_TOOLS, tools=["calc", "other.add"], box=toolbox(Adder(), other))
    assert '"calc_add"' in reads[0]
    assert '"sub"' in reads[0]
    assert reply.tool_calls[0].tool == "other.add"


async def test_calls_are_told_as_they_are_made(speak: Any, loaded: Any, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(monkeypatch, [CALL, "It is 3."])
    spec = AgentSpec.model_validate({"model": "small", "prompt": "{{ q }}", "tools": ["calc"]})
    agent = LocalAgent("solver", spec, loaded["small"], tmp_path, inputs=["q"], upstream=[], toolbox=toolbox(Adder()))
    heard: list[Any] = []
    await agent.open()
    try:
        await agent.turn(Turn({"q": "?"}, on_text=heard.append, on_tool=heard.append))
    finally:
        await agent.close()
    assert isinstance(heard[0], ToolCall)
    assert heard[1:] == ["It is 3."]


@pytest.mark.parametrize("model", ["small", "plain"])
@pytest.mark.parametrize(
    "replies",
    [
        ["It is 3."],
        ["See." + BARE, "See." + CALL, "   "],
        ["  " + CALL, "Done."],
        [f"[{BARE}, {BARE}]", "Two."],
        ["\n\n<tool_response>\n3\n</tool_response>\n\n" + CALL, "It is 3."],
    ],
)
async def test_a_rebuilt_turn_has_the_origins_of_the_first(speak: Any, model: str, replies: list[str]) -> None:
    _, reply = await speak(*replies, model=model, template=WITH_TOOLS if model == "small" else None)
    names = {origin.name for origin in plane(reply).origins if origin}
    assert ("solver.tools" in names) == bool(reply.tool_calls)


async def test_a_recorded_reply_without_its_results_is_refused(speak: Any, loaded: Any, tmp_path: Path) -> None:
    _, reply = await speak(CALL, "It is 3.")
    spec = AgentSpec.model_validate({"model": "small", "prompt": "{{ q }}", "tools": ["calc.add"]})
    agent = LocalAgent("solver", spec, loaded["small"], tmp_path, inputs=["q"], upstream=[], toolbox=toolbox(Adder()))
    other = [ToolCall("calc.add", {}, "4")]
    await agent.open()
    try:
        with pytest.raises(RunError, match="agent 'solver' does not hold the recorded results of its tools"):
            await agent.rebuild(Turn({"q": "what is the sum?"}), reply.ids, other)
    finally:
        await agent.close()

"""Agents on a cluster call tools of servers beside the driver, each call once, whatever dies."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch
from tiny import config_of, save_model, save_tokenizer
from transformers import AutoModelForCausalLM

from cachegraph import Graph
from cachegraph.agents.base import ToolCall
from cachegraph.agents.tools.agent_tools import ToolSet
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.parse_calls import ParsedCall
from cachegraph.agents.tools.spec import ToolLimits
from cachegraph.engine.engine import Engine
from cachegraph.engine.request import Generated
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import RunError
from cachegraph.graph.run.events import ToolCalled
from cachegraph.graph.run.result import Result

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

CALL = '<tool_call>{"name": "note", "arguments": {"text": "blue"}}</tool_call>'
END = 2
SERVER = """
from mcp.server import MCPServer
server = MCPServer("notes")

@server.tool()
def note(text: str) -> str:
    with open("notes", "a") as file:
        file.write(text + "\\n")
    return "the sky"

server.run("stdio")
"""


def graph(folder: Path) -> Graph:
    """An agent that notes something, and one who takes its cache."""
    (folder / "server.py").write_text(SERVER)
    small = ModelSpec(source=str(folder / "model"), dtype="float32")
    made = Graph(models={"small": small}, folder=folder, output="next")
    made.add_tools("notes", command=[sys.executable, "server.py"])
    short: dict[str, Any] = {"model": "small", "chat": False, "generate": {"max_new_tokens": 90}}
    made.add_agent("writer", prompt="what?", tools=["notes"], **short)
    made.add_agent("next", prompt="{{ writer }} why?", **short)
    return made.add_edge("writer", "next", "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt by heart to call the tool, and to answer after its result."""
    found = tmp_path_factory.mktemp("tools")
    config = config_of("llama")
    config.eos_token_id = END
    save_model(config, found / "model", seed=0)
    save_tokenizer(found / "model")
    texts = _lessons(found)
    network = AutoModelForCausalLM.from_pretrained(found / "model", dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(500):
        loss = sum(network(input_ids=ids, labels=labels).loss for ids, labels in texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    network.save_pretrained(found / "model")
    return found


def _lessons(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the agent reads before each reply, and the reply; labels of the reply alone."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    read: list[int] = []
    replies = iter([CALL, "blue sea", "why"])

    async def generate(self: Engine, ids: Any, past: Any = (), spec: Any = None, **more: Any) -> Generated:
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        text = next(replies)
        reply = list(tokenizer.encode(text, special=False).ids)
        if text != "why":
            read.extend(ids)
            lesson = [*read, *reply, END]
            labels = [*[-100] * len(read), *reply, END]
            found.append((torch.tensor([lesson]), torch.tensor([labels])))
            read.extend(reply)
        done = await self.prefill([*ids, *reply], past, positions=more.get("positions"))
        return Generated(reply, text, "eos", done.segments, done.cost)

    with pytest.MonkeyPatch.context() as patch, graph(folder) as made:
        patch.setattr(Engine, "generate", generate)
        made.run()
        (folder / "notes").unlink()
    return found


def test_a_call_is_made_beside_the_driver_once_and_the_reply_is_the_same(folder: Path, cluster: Any) -> None:
    made = graph(folder)
    expected = made.run()
    assert [call.result for call in expected.agents["writer"].tool_calls] == ["the sky"]
    (folder / "notes").unlink()
    there, killed = made.on_cluster(cluster), [0]

    async def run() -> tuple[Result, list[ToolCall]]:
        stream, calls = there.stream(), []
        async for event in stream:
            if isinstance(event, ToolCalled):
                calls.append(event.call)
                for handle in [each for replicas in cluster.sets.values() for each in replicas.handles if each.facts]:
                    with suppress(ProcessLookupError):
                        os.kill(handle.facts.process, signal.SIGKILL)
                    killed[0] += 1
        return stream.result, calls

    undisturbed = there.run()
    assert (folder / "notes").read_text() == "blue\n"
    result, calls = anyio.run(run)
    there.close()
    made.close()
    assert killed[0]
    for found in (undisturbed, result):
        assert {name: agent.text for name, agent in found.agents.items()} == {
            name: agent.text for name, agent in expected.agents.items()
        }
        (call,) = found.agents["writer"].tool_calls
        assert (call.tool, call.arguments, call.result) == ("notes.note", {"text": "blue"}, "the sky")
    assert len(calls) == 1
    assert (folder / "notes").read_text() == "blue\nblue\n"  # one note of each run


class Counter(ToolSet):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__(ToolLimits())
        self.calls = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def call(self, call: ParsedCall) -> Content:
        self.calls += 1
        await anyio.sleep(0.01)
        return Content(str(self.calls))


def test_a_second_attempt_is_told_what_the_first_was_and_may_not_call_something_else() -> None:
    from cachegraph.cluster.remote_tools import ToolAsked, TurnCalls

    tools = Counter()
    call = ParsedCall("note", {"text": "blue"})

    async def run() -> None:
        calls = TurnCalls("writer", tools)
        async with anyio.create_task_group() as group:
            group.start_soon(calls.make, ToolAsked(0, call))
            await anyio.lowlevel.checkpoint()
            await calls.settle()  # the replica has died, and the call is under way
        assert await calls.make(ToolAsked(0, call)) == Content("1")
        assert await calls.make(ToolAsked(1, call)) == Content("2")
        with pytest.raises(RunError, match="another one calls different ones; run again"):
            await calls.make(ToolAsked(0, ParsedCall("note", {"text": "red"})))

    anyio.run(run)
    assert tools.calls == 2

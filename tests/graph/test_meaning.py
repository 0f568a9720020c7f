"""Whatever the channel, a receiver hears what it would over text: the same words, and no others."""

from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph import Graph, Result
from cachegraph.errors import ChannelError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model") / "small"
    save_tokenizer(save_model(config_of("llama"), folder))
    return {"small": {"source": str(folder), "dtype": "float32"}}


def agent(prompt: str, *, chat: bool = False, **options: Any) -> dict[str, Any]:
    generate = {"max_new_tokens": 6, "ignore_eos": True, **options.pop("generate", {})}
    return {"model": "small", "prompt": prompt, "chat": chat, "generate": generate, **options}


async def replies(model: dict[str, Any], channel: str, **agents: Any) -> Result:
    """Of a chain of these agents, whose input is a word."""
    names = list(agents)
    edges = [{"from": a, "to": b, "channel": channel} for a, b in zip(names, names[1:], strict=False)]
    for edge in edges if channel == "cache" else ():
        edge["fallback"] = "error"
    data = {"version": 1, "name": "g", "models": model, "inputs": {"word": {}}, "agents": agents, "edges": edges}
    async with Graph.from_dict({**data, "output": names[-1]}, allow_paths=True) as graph:
        return await graph.arun(word="osprey")


CHANNELS = ["text", "cache", "auto", "both"]


async def test_a_stop_string_and_what_is_behind_it_go_over_no_channel(model: dict[str, Any]) -> None:
    whole = (await replies(model, "text", a=agent("The word {{ word }}."))).text
    stop: dict[str, Any] = {"generate": {"stop": [whole[3:5]]}}
    for channel in CHANNELS[1:]:
        result = await replies(model, channel, a=agent("The word {{ word }}.", **stop), b=agent("So {{ a }}: "))
        edge = result.edges["a", "b"]
        assert result.agents["a"].text == whole[: whole.index(whole[3:5])]
        assert 0 < edge.positions_grafted < result.agents["a"].tokens.generated


@pytest.mark.parametrize("prompt", ["So {{ a }}: ", "{% if a %}It said {{ a }}. {% endif %}So: ", "So: "])
async def test_an_empty_reply_leaves_an_empty_slot_over_every_channel(model: dict[str, Any], prompt: str) -> None:
    first = (await replies(model, "text", a=agent("The word {{ word }}."))).text[:1]
    silent = agent("The word {{ word }}.", generate={"stop": [first]})
    found = {channel: await replies(model, channel, a=silent, b=agent(prompt)) for channel in CHANNELS}
    assert {result.text for result in found.values()} == {found["text"].text}
    cache = found["cache"]
    assert (cache.edges["a", "b"].channel_used, cache.edges["a", "b"].positions_grafted) == ("cache", 0)
    assert "the cache edge 'a' -> 'b' carried no position, since the reply of 'a' is empty" in map(str, cache.warnings)


@pytest.mark.parametrize("channel", CHANNELS)
async def test_the_system_message_of_an_agent_that_only_reads_is_for_itself(
    model: dict[str, Any], channel: str
) -> None:
    reader = agent("Read it.", system="The word {{ word }}.", chat=True, generate={"max_new_tokens": 0})
    result = await replies(model, channel, a=reader, b=agent("{{ a }} So: "))
    assert result.agents["a"].text in ("Read it.", None)
    if channel != "text":
        bare = await replies(
            model, channel, a=agent("Read it.", generate={"max_new_tokens": 0}), b=agent("{{ a }} So: ")
        )
        assert result.edges["a", "b"].positions_grafted == bare.edges["a", "b"].positions_grafted
    assert str(result.warnings[0]) == (
        "the output never gets the input 'word': 'word' -x 'a', since 'a' only reads, and hands over its prompt "
        "without its system message"
    )


async def test_a_slot_that_is_written_twice_holds_the_positions_once(model: dict[str, Any]) -> None:
    once = await replies(model, "cache", a=agent("The word {{ word }}."), b=agent("So {{ a }} and : "))
    twice = await replies(model, "cache", a=agent("The word {{ word }}."), b=agent("So {{ a }} and {{ a }}: "))
    assert twice.text == once.text
    assert twice.warnings == once.warnings


async def test_what_is_cut_in_an_included_recipe_is_said(model: dict[str, Any], tmp_path: Path) -> None:
    inner = Graph.from_dict(
        {
            "version": 1,
            "name": "i",
            "models": model,
            "inputs": {"t": {}},
            "agents": {"p": agent("{{ t }}")},
            "output": "p",
        },
        allow_paths=True,
    )
    inner.to_yaml(tmp_path / "inner.yaml")
    data = {
        "version": 1,
        "name": "g",
        "inputs": {"word": {}},
        "agents": {"team": {"graph": "inner.yaml", "inputs": {"t": "{{ word }}"}}},
        "output": "team",
    }
    async with Graph.from_dict(data, tmp_path, allow_paths=True) as graph:
        result = await graph.arun(word="osprey")
    assert [(each.kind, each.names) for each in result.warnings] == [("cut", ("team/p",))]
    assert str(result.warnings[0]).startswith("in 'team': the reply of 'p' was cut")


async def test_an_edge_that_can_not_work_in_an_included_recipe_names_it(model: dict[str, Any], tmp_path: Path) -> None:
    agents = {"p": agent("{{ t }}"), "q": agent("{{ p }} {{ t }}")}
    edge = {"from": "p", "to": "q", "channel": "cache", "carries": "prompt", "fallback": "error"}
    inner = {"version": 1, "name": "i", "models": model, "inputs": {"t": {}}, "agents": agents, "edges": [edge]}
    Graph.from_dict({**inner, "output": "q"}, allow_paths=True).to_yaml(tmp_path / "inner.yaml")
    team = {"team": {"graph": "inner.yaml", "inputs": {"t": "{{ word }}"}}}
    data = {"version": 1, "name": "g", "inputs": {"word": {}}, "agents": team, "output": "team"}
    with pytest.raises(ChannelError, match="in 'team': the cache edge 'p' -> 'q' can't work: agent 'q' itself reads"):
        async with Graph.from_dict(data, tmp_path, allow_paths=True) as graph:
            await graph.arun(word="osprey")

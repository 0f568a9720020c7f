"""What people see of a prompt: whose text each part is, and which tokens of an edge stand for which."""

from pathlib import Path
from typing import Any

import pytest
from agent_rows import fuser, info

from cachegraph.agents.prompt.chat_layout import Message
from cachegraph.agents.prompt.prompt_view import MessagesView, PromptPart
from cachegraph.agents.prompt.template import compile_template

pytestmark = pytest.mark.anyio

STORY = "the sea is green and the sky is blue"
QUESTION = "what is the sky?"
SHORT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def joined(parts: list[PromptPart], *kinds: str) -> str:
    return "".join(part.text for part in parts if part.kind in kinds)


async def test_every_part_of_a_prompt_has_its_source(cast: Any) -> None:
    agents = {"a": {"model": "small", "system": "Be brief.", "prompt": "Well: {{ question }}", "generate": SHORT}}
    async with cast(agents, question=QUESTION) as players:
        await players.play()
        prompt = players.prompts["a"]
        parts = prompt.parts()
        (words,) = [part for part in parts if part.kind == "words"]
        assert (words.text.strip(), words.source, words.by) == (QUESTION, "question", ())
        assert "Be brief." in joined(parts, "template")
        assert sum(part.tokens for part in parts) == prompt.tokens
        assert prompt.alignments() == {}


async def test_a_graft_is_the_senders_tokens_at_positions_of_the_receiver(cast: Any) -> None:
    agents = {
        "reader": {"model": "small", "prompt": "{{ story }}", "generate": {"max_new_tokens": 0}},
        "writer": {"model": "small", "prompt": "{{ reader }} {{ question }}", "generate": SHORT},
    }
    edge = {"from": "reader", "to": "writer", "channel": "cache", "fallback": "error"}
    async with cast(agents, [edge], story=STORY, question=QUESTION) as players:
        replies = await players.play()
        prompt = players.prompts["writer"]
        grafted = [part for part in prompt.parts() if part.kind == "grafted"]
        assert joined(grafted, "grafted") == STORY
        assert {part.by for part in grafted} == {("reader",)}
        assert sum(part.tokens for part in grafted) == replies["writer"].edges["reader"].positions_grafted
        ((alignment,),) = prompt.alignments().values()
        assert alignment.kind == "graft"
        assert "".join(alignment.sharer) == STORY
        assert [alignment.receiver[at] for at, _ in alignment.pairs] == list(alignment.sharer)


@pytest.mark.parametrize("align", ["longest", "offsets"])
async def test_a_fused_token_stands_over_the_sharers_token_that_ends_where_it_does(
    cast: Any, tmp_path: Path, align: str
) -> None:
    agents = {
        "one": {"model": "other", "prompt": "Think: {{ question }}", "generate": SHORT},
        "answerer": {"model": "small", "system": "Be brief.", "prompt": "Well: {{ question }}", "generate": SHORT},
    }
    async with cast(agents, question=QUESTION) as players:
        ends = {"receiver": info(players, "answerer"), "sharer": info(players, "one")}
        name = fuser(tmp_path, **ends, alignment=align)
    edge = {"from": "one", "to": "answerer", "channel": "cache", "fuser": name, "fallback": "error"}
    async with cast(agents, [edge], question=QUESTION) as players:
        replies = await players.play()
        prompt = players.prompts["answerer"]
        fused = [part for part in prompt.parts() if part.kind == "fused"]
        assert sum(part.tokens for part in fused) == replies["answerer"].edges["one"].positions_fused > 0
        assert QUESTION in joined(fused, "fused")
        ((alignment,),) = prompt.alignments().values()
        assert len(alignment.pairs) == replies["answerer"].edges["one"].positions_fused
        if align == "offsets":
            for receiver, sharer in alignment.pairs:
                assert alignment.receiver[receiver][-1] == alignment.sharer[sharer][-1]


async def test_a_prompt_for_an_endpoint_is_its_messages() -> None:
    content = compile_template("Well: {{ question }}").render({"question": QUESTION})
    view = MessagesView([Message("user", content)])
    assert [(part.kind, part.text) for part in view.parts()] == [
        ("template", "[user]\nWell: "),
        ("words", QUESTION),
        ("template", "\n\n"),
    ]

"""A cache that was lost with its process is computed again from the prompt and the recorded reply."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
import torch

from cachegraph.agents.base import Delivery, Turn
from cachegraph.engine.kv.cache import concat

Cast = Callable[..., Any]
LONG = "the sea is green and the sky is blue, " * 3
AGENTS = {
    "reader": {"model": "small", "prompt": "{{ text }}", "generate": {"max_new_tokens": 5}},
    "next": {"model": "small", "prompt": "What of {{ reader }}?", "generate": {"max_new_tokens": 4}},
}


def same(one: Any, other: Any) -> None:
    assert (one.ids, one.origins) == (other.ids, other.origins)
    ours, theirs = concat(one.segments), concat(other.segments)
    assert torch.equal(ours.positions, theirs.positions)
    for layer, expected in zip(ours.layers, theirs.layers, strict=True):
        for mine, its in zip(layer, expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs_text", [True, False])
def test_a_rebuilt_cache_is_the_one_that_was_lost(cast: Cast, needs_text: bool) -> None:
    async def play() -> None:
        async with cast({"reader": AGENTS["reader"]}, text=LONG) as players:
            turn = Turn({"text": LONG}, needs_text=needs_text, needs_cache=True)
            reader = players.agents["reader"]
            reply = await reader.turn(turn)
            assert len(reply.ids) == (5 if needs_text else 0)
            same(reply.payload.cache, await reader.rebuild(turn, reply.ids))

    anyio.run(play)


@pytest.mark.parametrize("carries", ["prompt", "all"])
def test_a_rebuilt_cache_holds_what_was_grafted_into_it(cast: Cast, carries: str) -> None:
    edge = {"from": "reader", "to": "next", "channel": "cache", "carries": carries}

    async def play() -> None:
        async with cast(AGENTS, [edge], text=LONG) as players:
            replies = await players.play(keep=["next"])
            route = players.routes["reader", "next"]
            assert route.used == "cache"
            turn = Turn({"text": LONG}, [Delivery(route, replies["reader"].payload)], needs_cache=True)
            again = await players.agents["next"].rebuild(replace(turn), replies["next"].ids)
            same(replies["next"].payload.cache, again)

    anyio.run(play)

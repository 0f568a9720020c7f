"""What a second attempt of a turn passes on, and what a turn takes along. No test here needs Ray."""

from dataclasses import fields, replace
from typing import Any

import pytest

from cachegraph.agents.base import ToolCall, Turn
from cachegraph.agents.prompt.prompt_view import PromptPart, PromptSnapshot
from cachegraph.cluster.event_log import TurnEvents
from cachegraph.cluster.messages import portable_turn
from cachegraph.cluster.spoken import SpokenText
from cachegraph.errors import RunError


def test_a_second_attempt_passes_on_what_follows_and_nothing_twice() -> None:
    said: list[str] = []
    calls: list[ToolCall] = []
    spoken = SpokenText("writer", Turn({}, on_text=said.append, on_tool=calls.append))
    first, second = ToolCall("search", {}, "found"), ToolCall("read", {}, "text")
    spoken.begin()
    spoken.hear(TurnEvents(["the sky ", first, "is"], None))
    spoken.begin()
    spoken.hear(TurnEvents(["the "], None))
    spoken.hear(TurnEvents(["sky ", first, "is blue", second], None))
    assert said == ["the sky ", "is", " blue"]
    assert calls == [first, second]


def test_a_second_attempt_that_writes_another_text_is_an_error() -> None:
    said: list[str] = []
    spoken = SpokenText("writer", Turn({}, on_text=said.append))
    spoken.begin()
    spoken.hear(TurnEvents(["the sky is"], None))
    spoken.begin()
    with pytest.raises(RunError, match="another one writes a different reply; run again"):
        spoken.hear(TurnEvents(["the sea"], None))
    assert said == ["the sky is"]


def test_a_prompt_is_shown_once_and_before_the_reply() -> None:
    told: list[Any] = []
    spoken = SpokenText("writer", Turn({}, on_text=told.append, on_prefill=told.append))
    view = PromptSnapshot(2, [PromptPart("words", "the sea", 2)], {})
    for _ in range(2):
        spoken.begin()
        spoken.hear(TurnEvents(["the sky"], None, view))
    assert told == [view, "the sky"]
    assert SpokenText("reader", Turn({}, on_prefill=told.append)).is_heard


def test_a_turn_travels_without_its_callbacks() -> None:
    callbacks: dict[str, Any] = {each.name: print for each in fields(Turn) if each.name.startswith("on_")}
    sent = portable_turn(replace(Turn({}), **callbacks))
    assert [getattr(sent, name) for name in callbacks] == [None] * len(callbacks)

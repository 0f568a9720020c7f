"""The JSON form of events, and that docs/reference/events.md says all of it."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from cachegraph.agents.base import FinishReason, MemoryReport, Timing, Tokens, ToolCall, Traffic
from cachegraph.channels.payload import EdgeReport
from cachegraph.graph.run import events
from cachegraph.graph.run.events import AgentEvent, AgentStarted, EdgeTravelled, Event
from cachegraph.graph.run.result import AgentResult, Loading, Result, Totals
from cachegraph.graph.run_warning import RunWarning

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "events.md").read_text()
TYPES = {
    kind.type: kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, AgentEvent)
}
OBJECTS = {
    "agent result": {each.name for each in fields(AgentResult)},
    "timing": {each.name for each in fields(Timing)},
    "tokens": {each.name for each in fields(Tokens)},
    "tool call": {each.name for each in fields(ToolCall)},
    "memory": {each.name for each in fields(MemoryReport)},
    "report": {each.name for each in fields(EdgeReport)},
    "result": set(Result.model_fields),
    "warning": {each.name for each in fields(RunWarning)},
    "traffic": {each.name for each in fields(Traffic)},
    "totals": {each.name for each in fields(Totals)},
    "loading": {each.name for each in fields(Loading)},
    "finish reason": set(get_args(FinishReason)),
}


def documented() -> dict[str, set[str]]:
    """The fields in each of the page's tables, by heading."""
    sections = re.split(r"^### (.+)$", PAGE, flags=re.MULTILINE)
    rows = [set(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)) for body in sections[2::2]]
    return dict(zip(sections[1::2], rows, strict=True))


def test_the_page_lists_every_type_and_object_and_no_other() -> None:
    assert documented().keys() == TYPES.keys() | OBJECTS.keys()


@pytest.mark.parametrize("name", TYPES)
def test_the_page_lists_every_field_of_an_event_and_no_other(name: str) -> None:
    assert documented()[name] == {each.name for each in fields(TYPES[name])} - {"at"}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_page_lists_every_field_of_what_is_in_events_and_no_other(name: str) -> None:
    assert documented()[name] == OBJECTS[name]


def test_every_event_says_the_version_of_its_form_and_its_type() -> None:
    assert list(AgentStarted(0.5, "a").to_dict().items()) == [
        ("schema_version", 1),
        ("type", "agent_started"),
        ("at", 0.5),
        ("agent", "a"),
        ("turn", "a"),
    ]
    assert "`schema_version` | 1 |" in PAGE


def test_a_turn_has_its_agents_name_unless_told_otherwise() -> None:
    assert AgentStarted(0.0, "a", turn="a#2[3]").turn == "a#2[3]"
    edge = EdgeTravelled(0.0, "a", "b", EdgeReport("text", "text"), sender_turn="a#2")
    assert (edge.sender_turn, edge.turn) == ("a#2", "b")
    assert json.loads(json.dumps(edge.to_dict()))["report"]["asked"] == "text"
